"""The one room that may import rclpy: runtime and nodes. Nothing in this version."""
