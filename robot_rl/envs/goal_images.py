"""Pictures of the goal where no simulator can make them: files that somebody has taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError, MissingDependencyError

Image = NDArray[np.uint8]
_PICTURES = (".png", ".jpg", ".jpeg")
_SUFFIXES = (*_PICTURES, ".npy")


def load_goal_images(path: str | Path, shape: Sequence[int]) -> list[Image]:
    """The goal images of a file, or of every such file in a folder in the order of their names.

    PNG and JPEG hold one camera's picture in colour; ``.npy`` holds an observation's image, the
    cameras stacked along the channels. All must have ``shape`` (H, W, 3 x cameras), as the
    observations have it: nothing is scaled or cut, since the agent compares the two.

    Raises:
        InvalidInputError: there is none, or one cannot be read or has another shape.
        MissingDependencyError: OpenCV is not installed, and they are PNG or JPEG.
    """
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES) if (
        path.is_dir()) else [path]
    if not files:
        raise InvalidInputError(f"goal images: {path} holds no {', '.join(_SUFFIXES)}")
    return [check_goal_image(_read(file), shape, str(file)) for file in files]


def check_goal_image(image: Any, shape: Sequence[int], where: str = "option goal_image") -> Image:
    """``image`` if it can stand for a goal among observations of ``shape``.

    Raises:
        InvalidInputError: it has another shape, or is not uint8.
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.shape != tuple(shape):
        raise InvalidInputError(
            f"goal images: {where} has shape {array.shape} and type {array.dtype}, should be "
            f"{tuple(shape)} and uint8, as the observations are"
        )
    return array.copy()


def _read(file: Path) -> Any:
    if file.suffix.lower() not in _SUFFIXES:
        raise InvalidInputError(f"goal images: {file} is no {', '.join(_SUFFIXES)}")
    try:
        data = file.read_bytes()
        if file.suffix.lower() == ".npy":
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(f"goal images: {file} cannot be read ({error})") from None
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenCV is not installed ({error}): pip install 'robot_rl[cameras]'"
        ) from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise InvalidInputError(f"goal images: {file} is no picture")
    return np.ascontiguousarray(image[:, :, ::-1])
