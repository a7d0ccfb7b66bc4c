"""The durable log of episodes, and replay: sampling with relabelled goals."""

from robot_rl.data.episodes import DatasetInfo, Episode, Images
from robot_rl.data.log import Log, load_dataset, open_log
from robot_rl.data.recorder import EpisodeRecorder
from robot_rl.data.recording import LiveEpisode, RecordingOptions
from robot_rl.data.replay import MixedReplay, Relabelling, Replay
from robot_rl.data.writer import DatasetWriter

__all__ = [
    "DatasetInfo",
    "DatasetWriter",
    "Episode",
    "EpisodeRecorder",
    "Images",
    "LiveEpisode",
    "Log",
    "MixedReplay",
    "RecordingOptions",
    "Relabelling",
    "Replay",
    "load_dataset",
    "open_log",
]
