"""The one room that may import rclpy and rospy: what drivers and nodes talk to ROS with."""
