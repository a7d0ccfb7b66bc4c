"""robot_rl: a learning stack for real robot arms.

Importing it registers ``robot_rl/<Task>-v0`` with gymnasium.
"""

from robot_rl.envs.registration import register_envs

__version__ = "0.1.0"

register_envs()
