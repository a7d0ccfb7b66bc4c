"""Episodes on disk, and replay: sampling with relabelled goals."""

from robot_rl.data.episodes import (
    DatasetInfo,
    DatasetWriter,
    Episode,
    EpisodeRecorder,
    load_dataset,
)
from robot_rl.data.replay import MixedReplay, Relabelling, Replay

__all__ = [
    "DatasetInfo",
    "DatasetWriter",
    "Episode",
    "EpisodeRecorder",
    "MixedReplay",
    "Relabelling",
    "Replay",
    "load_dataset",
]
