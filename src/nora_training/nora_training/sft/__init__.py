"""Supervised fine-tuning of the NORA family (NORA-1.5, section 3.2). Runs without ROS."""
