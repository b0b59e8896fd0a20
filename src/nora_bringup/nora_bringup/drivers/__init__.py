"""Drivers: safe targets to the robot's own messages, and its state back."""
