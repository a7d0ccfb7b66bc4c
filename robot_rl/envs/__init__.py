"""One environment for hardware and simulation, and the tasks that run in it."""

from robot_rl.envs.factory import make_env
from robot_rl.envs.registration import register_envs
from robot_rl.envs.robot_env import RobotEnv

__all__ = ["RobotEnv", "make_env", "register_envs"]
