"""Episodes in rosbag2 files: write, label, audit, repair, record."""
