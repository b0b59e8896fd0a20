"""From action chunks to joint targets: player, safety gate, kinematics, controller."""
