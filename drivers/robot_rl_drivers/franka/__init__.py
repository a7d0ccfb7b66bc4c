"""Franka arms (Panda, FR3): over ROS 2 with franka_ros2 and CRISP, or directly with franky."""
