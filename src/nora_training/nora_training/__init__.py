"""Offline training of NORA policies from rosbags."""
