"""Models, inference runtime and policy node of NORA for ROS 2."""
