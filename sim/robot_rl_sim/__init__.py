"""Simulation: the interfaces of `robot_rl` on MuJoCo and on PyBullet, from one URDF per arm and
one scene description.

Imports `robot_rl`, never `robot_rl_drivers` or `robot_rl_calibration`.
"""
