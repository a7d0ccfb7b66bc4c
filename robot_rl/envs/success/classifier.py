"""Success by a small network that looks at the cameras' images.

The weights lie in one safetensors file whose header says what the network looks at; nothing is
unpickled. :mod:`robot_rl.training.success_classifier` fits it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robot_rl.data.files import write_atomically
from robot_rl.envs.success.base import Detector, Vote
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Camera

FORMAT = "robot_rl success classifier 1"
_LARGEST_BYTES = 64 << 20
_CHANNELS = 32
_SQUEEZED = 8


@dataclass(frozen=True)
class ClassifierInfo:
    """What a classifier looks at and how it decides.

    ``cameras`` are stacked along the channels in this order, each brought to ``height`` x
    ``width`` by averaging. ``goal_dim`` is 0 where every recorded goal was the same. An image
    counts from ``threshold`` in (0, 1) on, success is ``votes`` such images among the last
    ``window``. ``measured`` is how well it did on episodes kept apart.
    """

    cameras: tuple[str, ...]
    height: int
    width: int
    goal_dim: int = 0
    threshold: float = 0.5
    votes: int = 2
    window: int = 3
    measured: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cameras or not all(isinstance(name, str) and name for name in self.cameras):
            raise InvalidInputError(f"classifier: cameras is {self.cameras}, should be names")
        for name in ("height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 16 <= value <= 512:
                raise InvalidInputError(f"classifier: {name} is {value}, should be in [16, 512]")
        if not 0 <= self.goal_dim <= 1000:
            raise InvalidInputError(f"classifier: goal_dim is {self.goal_dim}")
        if not 0.0 < self.threshold < 1.0:
            raise InvalidInputError(
                f"classifier: threshold is {self.threshold}, should be in (0, 1)"
            )
        if not 1 <= self.votes <= self.window <= 100:
            raise InvalidInputError(
                f"classifier: {self.votes} votes of {self.window}, should be 1 <= votes <= window "
                "<= 100"
            )


class SuccessNet(nn.Module):
    """Images (B, C, H, W) in [0, 1] and goals (B, g) to logits (B,).

    Where things are comes from a spatial softmax over the last feature maps, what the scene looks
    like from the maps themselves, squeezed to few channels.
    """

    goal_mean: Tensor
    goal_scale: Tensor

    def __init__(self, channels: int, height: int, width: int, goal_dim: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 5, stride=2, padding=2), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.Conv2d(16, _CHANNELS, 3, stride=2, padding=1), nn.GroupNorm(4, _CHANNELS),
            nn.ReLU(), nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1),
        )
        self.squeeze = nn.Conv2d(_CHANNELS, _SQUEEZED, 1)
        self.sharpness = nn.Parameter(torch.tensor(2.0))
        places = math.ceil(height / 4) * math.ceil(width / 4)
        self.head = nn.Sequential(
            nn.Linear(2 * _CHANNELS + _SQUEEZED * places + goal_dim, 64), nn.ReLU(),
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1),
        )
        self.register_buffer("goal_mean", torch.zeros(goal_dim))
        self.register_buffer("goal_scale", torch.ones(goal_dim))

    def forward(self, images: Tensor, goals: Tensor) -> Tensor:
        maps = self.features(images - 0.5)
        rows = torch.linspace(-1.0, 1.0, maps.shape[2], device=maps.device)
        columns = torch.linspace(-1.0, 1.0, maps.shape[3], device=maps.device)
        share = torch.softmax(self.sharpness * maps.flatten(2), dim=2).view_as(maps)
        parts = [
            (share.sum(3) * rows).sum(2),
            (share.sum(2) * columns).sum(2),
            torch.relu(self.squeeze(torch.relu(maps))).flatten(1),
            (goals - self.goal_mean) * self.goal_scale,
        ]
        logits: Tensor = self.head(torch.cat(parts, 1))[:, 0]
        return logits


def stack(images: Sequence[NDArray[np.uint8]], height: int, width: int) -> NDArray[np.uint8]:
    """Images (H, W, 3) or (H, W, 1) of several cameras as one (height, width, channels) uint8,
    each averaged down (or repeated up) to that size."""
    parts = []
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or not image.size:
            raise InvalidInputError(
                f"an image is {image.dtype} of shape {image.shape}, should be uint8 (H, W, 3)"
            )
        if image.shape[:2] != (height, width):
            tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
            small = nn.functional.interpolate(tensor, (height, width), mode="area")
            image = small[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
        parts.append(image)
    return np.concatenate(parts, axis=2)


class Classifier:
    """A network and what it is for: probabilities of success from images."""

    def __init__(self, info: ClassifierInfo, net: SuccessNet) -> None:
        self.info, self.net = info, net.eval()

    @torch.no_grad()
    def probability(self, images: NDArray[np.uint8], goals: NDArray[Any]) -> NDArray[np.float64]:
        """Success (B,) in [0, 1] for stacked images (B, height, width, channels) and goals
        (B, goal_dim)."""
        found = []
        for begin in range(0, len(images), 256):
            batch = to_tensor(images[begin:begin + 256])
            goal = torch.from_numpy(np.asarray(goals[begin:begin + 256], dtype=np.float32))
            found.append(torch.sigmoid(self.net(batch, goal)).double().numpy())
        return np.concatenate(found) if found else np.zeros(0)

    def save(self, path: str | Path) -> None:
        """Write it to one file, whole or not at all."""
        tensors = {name: value.contiguous() for name, value in self.net.state_dict().items()}
        about = json.dumps({"format": FORMAT, **asdict(self.info)}, allow_nan=False)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, save(tensors, metadata={"about": about}))

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """Read what :meth:`save` wrote.

        Raises:
            InvalidInputError: the file is missing, damaged or of something else.
        """
        where = Path(path)
        try:
            if where.stat().st_size > _LARGEST_BYTES:
                raise ValueError(f"it takes more than {_LARGEST_BYTES} bytes")
            with safe_open(where, framework="pt") as file:
                about = json.loads((file.metadata() or {})["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            if about.pop("format") != FORMAT:
                raise ValueError("it has another format")
            info = ClassifierInfo(**{**about, "cameras": tuple(about["cameras"])})
            channels = tensors["features.0.weight"].shape[1]
            net = SuccessNet(channels, info.height, info.width, info.goal_dim)
            net.load_state_dict(tensors)
            if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
                raise ValueError("it holds values that are not finite")
        except FileNotFoundError:
            raise InvalidInputError(f"classifier: {where} does not exist") from None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError,
                AttributeError, IndexError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidInputError(f"classifier: {where} is not one ({first})") from None
        return cls(info, net)

    @property
    def channels(self) -> int:
        """Colour channels of all its cameras together."""
        weight: Tensor = self.net.features[0].weight  # type: ignore[assignment]
        return int(weight.shape[1])


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Images (B, H, W, C) uint8 as (B, C, H, W) float in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255.0)


class _FrameSuccess(Detector):
    """Whether the images are of success, one look at a time."""

    def __init__(
        self, cameras: Mapping[str, Camera], classifier: Classifier, max_age_s: float
    ) -> None:
        for name in classifier.info.cameras:
            if name not in cameras:
                raise unknown_name("camera of the success classifier", name, cameras)
        self._cameras = [cameras[name] for name in classifier.info.cameras]
        self._classifier = classifier
        self._max_age_s = max_age_s
        self._goal = np.zeros(classifier.info.goal_dim)
        self._knows_goal = classifier.info.goal_dim == 0
        self.probability = math.nan

    def begin(self, goal: ArrayLike) -> None:
        size = self._classifier.info.goal_dim
        if size == 0:
            return
        given = np.asarray(goal, dtype=np.float64)
        if given.shape != (size,) or not np.isfinite(given).all():
            raise InvalidInputError(
                f"the success classifier takes goals of {size} finite numbers, got {given}"
            )
        self._goal, self._knows_goal = given.copy(), True

    def success(self) -> bool:
        if not self._knows_goal:
            raise InvalidInputError("the success classifier was not told the goal: call begin()")
        info = self._classifier.info
        images = [camera.read(self._max_age_s).image for camera in self._cameras]
        stacked = stack(images, info.height, info.width)
        if stacked.shape[2] != self._classifier.channels:
            raise InvalidInputError(
                f"the success classifier takes {self._classifier.channels} colour channels, the "
                f"cameras {', '.join(info.cameras)} give {stacked.shape[2]}"
            )
        found = self._classifier.probability(stacked[None], self._goal[None])
        self.probability = float(found[0])
        return self.probability >= info.threshold


class ClassifierSuccess(Vote):
    """Success when enough of the last images are of success.

    ``probability`` is that of the last image.
    """

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        classifier: Classifier,
        *,
        votes: int | None = None,
        window: int | None = None,
        max_age_s: float = 0.5,
    ) -> None:
        info = classifier.info
        self._frames = _FrameSuccess(cameras, classifier, max_age_s)
        super().__init__(
            self._frames,
            info.votes if votes is None else votes,
            info.window if window is None else window,
        )

    @property
    def probability(self) -> float:
        """Of success at the last look, in [0, 1]; NaN before the first."""
        return self._frames.probability
