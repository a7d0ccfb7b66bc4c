"""What LeRobot normalises with: extent, mean, deviation and quantiles of every feature."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_NAMES = tuple(f"q{int(100 * q):02d}" for q in QUANTILES)
# Of an episode's images so many are looked at, at about so many rows and columns.
_MAX_IMAGES, _MAX_SIDE = 50, 150
Values = dict[str, Any]


class Statistics:
    """Statistics of each episode, and those of all episodes from them.

    Extent, mean and (population) standard deviation of all are exact; quantiles of all are the
    mean of the episodes' by their length, as LeRobot has them. Values that are not finite are
    left out. Images are in [0, 1] by channel, from a sample of frames and pixels.
    """

    def __init__(self) -> None:
        self._all: dict[str, dict[str, NDArray[np.float64]]] = {}

    def vector(self, name: str, array: NDArray[Any]) -> Values:
        """Of rows (T, ...) of a feature; scalars count as shape (1,)."""
        rows = array.astype(np.float64)
        rows = rows[:, None] if rows.ndim == 1 else rows
        return self._add(name, rows, len(rows))

    def images(self, name: str, frames: NDArray[np.uint8]) -> Values:
        """Of frames (T, H, W, C), by channel in the shape (C, 1, 1)."""
        some = np.unique(np.linspace(0, len(frames) - 1, _MAX_IMAGES).astype(int))
        steps = [max(1, size // _MAX_SIDE) for size in frames.shape[1:3]]
        sample = frames[some, ::steps[0], ::steps[1]].reshape(-1, frames.shape[3], 1, 1)
        return self._add(name, sample / 255.0, len(frames))

    def all(self) -> dict[str, Values]:
        """Of all episodes by feature, as JSON."""
        return {name: {part: value.tolist() for part, value in parts.items()}
                for name, parts in self._all.items()}

    def _add(self, name: str, rows: NDArray[np.float64], count: int) -> Values:
        found = _of(rows) | {"count": np.array([count])}
        before = self._all.get(name)
        self._all[name] = found if before is None else _merged(before, found)
        return {part: value.tolist() for part, value in found.items()}


def _of(rows: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    finite = np.isfinite(rows)
    if finite.all():
        quantiles = np.quantile(rows, QUANTILES, axis=0)
        return {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0),
                **dict(zip(_NAMES, quantiles, strict=True))}
    # Where nothing is finite there is nothing to say: 0.
    rows = np.where(finite.any(0), np.where(finite, rows, np.nan), 0.0)
    quantiles = np.nanquantile(rows, QUANTILES, axis=0)
    return {"min": np.nanmin(rows, 0), "max": np.nanmax(rows, 0), "mean": np.nanmean(rows, 0),
            "std": np.nanstd(rows, 0), **dict(zip(_NAMES, quantiles, strict=True))}


def _merged(
    one: dict[str, NDArray[Any]], two: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    count = one["count"][0] + two["count"][0]
    share = two["count"][0] / count
    gap = two["mean"] - one["mean"]
    variance = ((1 - share) * one["std"] ** 2 + share * two["std"] ** 2
                + share * (1 - share) * gap**2)
    return {
        "min": np.minimum(one["min"], two["min"]), "max": np.maximum(one["max"], two["max"]),
        "mean": one["mean"] + share * gap, "std": np.sqrt(variance),
        **{name: (1 - share) * one[name] + share * two[name] for name in _NAMES},
        "count": np.array([count]),
    }
