"""Embodiments, launch, arm bridge, simulator of NORA for ROS 2."""
