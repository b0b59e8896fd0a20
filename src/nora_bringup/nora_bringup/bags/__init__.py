"""Bags without ROS: write, label, audit and repair them (no rclpy, no torch)."""
