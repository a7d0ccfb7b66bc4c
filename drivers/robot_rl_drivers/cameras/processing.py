"""What is done to a picture on its way to the agent: rectify, crop, scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError

Image = NDArray[np.uint8]
# Distortion models of ROS's camera_info, and how many coefficients each may have.
MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}


@dataclass(frozen=True)
class Calibration:
    """Intrinsics of a camera, as ROS's camera_info says them.

    ``matrix`` (3, 3) maps rays to pixels of the raw picture [pixels], ``rotation`` (3, 3) and
    ``projection`` (3, 3) are those of the rectified one.
    """

    size: tuple[int, int]  # width, height
    model: str
    matrix: NDArray[np.float64]
    distortion: NDArray[np.float64]
    rotation: NDArray[np.float64]
    projection: NDArray[np.float64]


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration file in the format of ROS's camera_info.

    Raises:
        InvalidInputError: it cannot be read, or lacks something; the message says what.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise InvalidInputError(f"calibration {path}: cannot be read ({reason})") from None
    if not isinstance(raw, dict):
        raise InvalidInputError(f"calibration {path}: should be a camera_info file of ROS")
    model = raw.get("distortion_model")
    if model not in MODELS:
        raise InvalidInputError(
            f"calibration {path}: distortion_model is {model!r}; valid: {', '.join(MODELS)}"
        )
    width, height = (_whole(raw, key, path) for key in ("image_width", "image_height"))
    distortion = _matrix(raw, "distortion_coefficients", path)
    if distortion.size not in MODELS[model]:
        raise InvalidInputError(
            f"calibration {path}: {distortion.size} distortion_coefficients; {model} has "
            + " or ".join(map(str, MODELS[model]))
        )
    matrix = _matrix(raw, "camera_matrix", path, (3, 3))
    rotation, projection = np.eye(3), matrix
    if "rectification_matrix" in raw:
        rotation = _matrix(raw, "rectification_matrix", path, (3, 3))
    if "projection_matrix" in raw:
        projection = _matrix(raw, "projection_matrix", path, (3, 4))[:, :3]
    return Calibration((width, height), model, matrix, distortion.ravel(), rotation, projection)


def _whole(raw: dict[str, Any], key: str, path: str | Path) -> int:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 14:
        raise InvalidInputError(f"calibration {path}: {key} is {value!r}, should be a number of "
                                f"pixels in [1, {1 << 14}]")
    return value


def _matrix(
    raw: dict[str, Any], key: str, path: str | Path, shape: tuple[int, int] | None = None
) -> NDArray[np.float64]:
    part = raw.get(key)
    try:
        values = np.array(part["data"], np.float64)  # type: ignore[index]
        values = values.reshape(shape) if shape else values
    except (TypeError, KeyError, ValueError):
        values = np.array(np.nan)
    if not np.isfinite(values).all():
        raise InvalidInputError(
            f"calibration {path}: {key} is {str(part)[:80]}, should have finite numbers as data"
            + (f", {shape[0]} x {shape[1]}" if shape else "")
        )
    return values


class Processor:
    """Makes the picture that the agent sees (height, width, 3) from the camera's (H, W, 3).

    In this order: rectify, crop (x, y, width, height), scale by areas. A height or width that is
    None stays as it is.

    Raises:
        InvalidInputError: the calibration or the crop does not fit the camera's pictures.
    """

    def __init__(
        self,
        height: int | None = None,
        width: int | None = None,
        crop: tuple[int, int, int, int] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.height, self.width = height, width
        self._crop, self._calibration = crop, calibration
        self._maps = _maps(calibration) if calibration is not None else None

    def __call__(self, image: Image) -> Image:
        """A new array (height, width, 3) uint8, contiguous, that nothing else refers to."""
        out = image
        if self._maps is not None and self._calibration is not None:
            size = (image.shape[1], image.shape[0])
            if size != self._calibration.size:
                raise InvalidInputError(
                    f"the calibration is for pictures of {_by(self._calibration.size)} pixels "
                    f"(width x height), the camera's have {_by(size)}"
                )
            out = np.asarray(cv2.remap(image, *self._maps, cv2.INTER_LINEAR), np.uint8)
        if self._crop is not None:
            out = _cropped(out, self._crop)
        height, width = self.height or out.shape[0], self.width or out.shape[1]
        if out.shape[:2] != (height, width):
            larger = height > out.shape[0] or width > out.shape[1]
            how = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
            out = np.asarray(cv2.resize(np.ascontiguousarray(out), (width, height),
                                        interpolation=how), np.uint8)
        out = np.ascontiguousarray(out)
        return out.copy() if np.shares_memory(out, image) else out


def _maps(calibration: Calibration) -> tuple[Any, Any]:
    """For each pixel of the rectified picture, where it lies in the raw one."""
    make = (cv2.fisheye.initUndistortRectifyMap if calibration.model == "equidistant"
            else cv2.initUndistortRectifyMap)
    first, second = make(
        calibration.matrix, calibration.distortion, calibration.rotation, calibration.projection,
        calibration.size, cv2.CV_16SC2,
    )
    return first, second


def _cropped(image: Image, crop: tuple[int, int, int, int]) -> Image:
    x, y, width, height = crop
    if x + width > image.shape[1] or y + height > image.shape[0]:
        raise InvalidInputError(
            f"crop {x},{y},{width},{height} (x,y,width,height) lies outside pictures of "
            f"{_by((image.shape[1], image.shape[0]))} pixels"
        )
    return image[y : y + height, x : x + width]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
