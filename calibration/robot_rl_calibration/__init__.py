"""Calibration: camera intrinsics, hand-eye, workspace, force bias and latency.

Imports `robot_rl`, never `robot_rl_sim` or `robot_rl_drivers`.
"""
