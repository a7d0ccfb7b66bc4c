"""Success by a goal image: the mean absolute difference of pixels in a region (seed 001, ch. 6)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.envs.success.base import Detector
from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Camera

Image = NDArray[np.uint8]
_GREY = np.array([0.299, 0.587, 0.114])
_FORMAT = "robot_rl goal image 1"


@dataclass(frozen=True)
class GoalImage:
    """What the goal looks like in one camera, and how near is near enough.

    ``image`` (H, W, 3) uint8. ``region`` is (top, left, bottom, right) in pixels, the last two
    excluded; None is the whole image. ``threshold`` is a mean absolute difference in [0, 1];
    ``grey`` compares brightness only.
    """

    image: Image
    threshold: float
    region: tuple[int, int, int, int] | None = None
    grey: bool = False

    def __post_init__(self) -> None:
        _check_image(self.image, "the goal image")
        if not 0.0 < self.threshold <= 1.0:
            raise InvalidInputError(f"threshold is {self.threshold}, should be in (0, 1]")
        if self.region is not None:
            height, width = self.image.shape[:2]
            top, left, bottom, right = self.region
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise InvalidInputError(
                    f"region {self.region} (top, left, bottom, right) does not lie in an image of "
                    f"{height} x {width}"
                )

    def distance(self, image: Image) -> float:
        """Mean absolute difference in [0, 1] to ``image`` (H, W, 3) within the region.

        Raises:
            InvalidInputError: it has another size.
        """
        _check_image(image, "the image")
        if image.shape != self.image.shape:
            raise InvalidInputError(
                f"the image has shape {image.shape}, the goal image {self.image.shape}"
            )
        return float(np.abs(self._part(image) - self._part(self.image)).mean() / 255.0)

    def _part(self, image: Image) -> NDArray[np.float64]:
        if self.region is not None:
            top, left, bottom, right = self.region
            image = image[top:bottom, left:right]
        return image @ _GREY if self.grey else image.astype(np.float64)

    def save(self, path: str | Path) -> None:
        """Write it to one ``.npz`` file, which holds no pickled objects."""
        about = {"format": _FORMAT, "threshold": self.threshold, "region": self.region,
                 "grey": self.grey}
        with open(path, "wb") as file:
            np.savez_compressed(file, image=self.image, about=np.array(json.dumps(about)))

    @classmethod
    def load(cls, path: str | Path) -> GoalImage:
        """Read what :meth:`save` wrote.

        Raises:
            InvalidInputError: the file is missing, damaged or of something else.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                image = np.asarray(held["image"])
                about: dict[str, Any] = json.loads(str(held["about"]))
            if about["format"] != _FORMAT:
                raise ValueError(f"format is {about['format']!r}")
            region = None
            if about["region"] is not None:
                top, left, bottom, right = (int(n) for n in about["region"])
                region = (top, left, bottom, right)
            return cls(image, float(about["threshold"]), region, bool(about["grey"]))
        except FileNotFoundError:
            raise InvalidInputError(f"goal image: {path} does not exist") from None
        except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
            raise InvalidInputError(f"goal image: {path} is not one ({error})") from None


@dataclass(frozen=True)
class Calibration:
    """How well a threshold tells the given images apart."""

    goal: GoalImage
    positives: NDArray[np.float64]
    negatives: NDArray[np.float64]

    @property
    def recall(self) -> float:
        """Share of the given positives within the threshold."""
        return float((self.positives <= self.goal.threshold).mean())


def calibrate(
    image: Image,
    positives: Sequence[Image],
    negatives: Sequence[Image],
    *,
    region: tuple[int, int, int, int] | None = None,
    grey: bool = False,
) -> Calibration:
    """The goal image with a threshold from examples: none of the negatives is within it.

    It lies halfway between the farthest positive that is nearer than every negative and the
    nearest negative.

    Raises:
        InvalidInputError: fewer than half of the positives can be told from the negatives so.
    """
    if not positives or not negatives:
        raise InvalidInputError(
            f"calibration needs images of success and of failure, got {len(positives)} and "
            f"{len(negatives)}"
        )
    goal = GoalImage(image, 1.0, region, grey)
    near = np.sort([goal.distance(one) for one in positives])
    far = np.sort([goal.distance(one) for one in negatives])
    inside = near[near < far[0]]
    if 2 * len(inside) < len(near):
        raise InvalidInputError(
            f"the goal image does not tell success from failure: {len(inside)} of {len(near)} "
            f"images of success are nearer to it (at most {near[-1]:.4f}) than every failure (at "
            f"least {far[0]:.4f}); give a smaller region, or train a classifier"
        )
    threshold = float(0.5 * (inside[-1] + far[0]))
    return Calibration(replace(goal, threshold=threshold), near, far)


class GoalImageSuccess(Detector):
    """Success while a camera's image is near enough to a goal image."""

    def __init__(self, camera: Camera, goal: GoalImage, *, max_age_s: float = 0.5) -> None:
        self.camera, self.goal = camera, goal
        self._max_age_s = max_age_s

    def success(self) -> bool:
        image = self.camera.read(self._max_age_s).image
        return self.goal.distance(image) <= self.goal.threshold


def _check_image(image: Image, what: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InvalidInputError(
            f"{what} is {image.dtype} of shape {image.shape}, should be uint8 (height, width, 3)"
        )
