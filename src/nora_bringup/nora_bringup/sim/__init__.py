"""MuJoCo simulation of the WidowX-250s: no ROS, no torch."""
