"""Quality of service of the suite's topics; a number instead of a profile means reliable."""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

# Images, joint states, /clock: only the newest counts, and a publisher never waits.
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# A value that a late subscriber still gets.
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
