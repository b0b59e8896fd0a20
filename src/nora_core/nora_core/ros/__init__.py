"""ROS messages and nodes: the only room of nora_core that imports rclpy."""
