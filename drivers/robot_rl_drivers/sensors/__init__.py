"""Sensors of the task and of force on hardware: serial lines and ROS topics."""
