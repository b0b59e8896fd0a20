"""ROS nodes of nora_policy: convert, call, publish."""
