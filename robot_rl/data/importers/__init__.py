"""Episodes from elsewhere: ROS bags, LeRobot, Minari, robomimic, D4RL, npz."""

from robot_rl.data.importers.base import EpisodeSource, ImportOptions
from robot_rl.data.importers.run import IMPORTERS, Limits, detect, import_dataset

__all__ = ["IMPORTERS", "EpisodeSource", "ImportOptions", "Limits", "detect", "import_dataset"]
