"""Rethink Sawyer through its Intera topics on ROS 1."""
