"""Hardware: Sawyer, Franka, cameras, grippers, teleoperation and resets on the real table.

Imports `robot_rl` and the makers' libraries, never `robot_rl_sim` or `robot_rl_calibration`.
"""
