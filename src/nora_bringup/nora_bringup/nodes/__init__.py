"""ROS nodes of nora_bringup: convert, call, publish."""
