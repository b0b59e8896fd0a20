"""MuJoCo models of the arms, for kinematics and simulator."""
