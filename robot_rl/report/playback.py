"""An episode to look at: a video of what its cameras saw, or a strip of frames.

Where there were no cameras, the positions that the episode holds are drawn from above.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import Episode
from robot_rl.data.summary import Entry, Source
from robot_rl.envs.tasks import TASKS
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.report.episodes import check_out, outcome, state_times, write_file
from robot_rl.report.optional import need
from robot_rl.report.plots import GRID, INK, SERIES, dress, new_figure
from robot_rl.report.video import HOLD_S, MAX_FPS, Frame, draw_label, write_video

PLAY_SUFFIXES = (".mp4", ".gif", ".png")
_HEIGHTS = (240, 480)  # A camera's picture is scaled to a height [px] in this range.
_GIF_FPS, _GIF_WIDTH = 15.0, 640
_BAR = 46
_UNKNOWN_FPS = 10.0
# RGB: paper, ink, reward, success, intervention, reset.
_PAPER, _TEXT, _REWARD = (24, 27, 31), (230, 237, 243), (74, 168, 232)
_FLAG_COLORS = {"SUCCESS": (0, 158, 115), "INTERVENTION": (230, 159, 0), "RESET": (204, 121, 167)}


def play_episode(
    source: Source,
    entry: Entry,
    out: str | Path,
    *,
    cameras: Sequence[str] = (),
    fps: float = 0.0,
    frames: int = 8,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Show an episode: ``.mp4`` or ``.gif`` for a video, ``.png`` for a strip of frames.

    Cameras stand side by side, a bar below shows time, reward, success, interventions and resets.
    Without cameras the positions of the tool and of what the goal is about are drawn from above,
    where the episode holds any: one picture for ``.png``.

    Args:
        cameras: which to show; none for all.
        fps: frames per second; 0 for real time, as far as that is known.
        frames: pictures of a strip.

    Returns:
        ``path``, ``episode``, ``steps``, ``success``, ``frames``, ``fps`` (None for a picture) and
        ``cameras`` (empty for a view from above).

    Raises:
        InvalidInputError: ``out`` cannot be written, no such camera, nothing to be seen, or the
            episode is damaged.
        MissingDependencyError: a package of ``robot_rl[report]`` is not installed.
    """
    path = check_out(out, PLAY_SUFFIXES, overwrite=overwrite)
    if not (math.isfinite(fps) and (fps == 0.0 or 0.1 <= fps <= 240.0)):
        raise InvalidInputError(f"fps is {fps}, should be in [0.1, 240], or 0 for real time")
    if not 1 <= frames <= 100:
        raise InvalidInputError(f"frames is {frames}, should be in [1, 100]")
    need("cv2", "videos")
    episode = source.read(entry)
    for name in cameras:
        if name not in episode.images:
            raise unknown_name("camera", name, episode.images)
    names = list(cameras) or list(episode.images)
    view: _View = _Cameras(episode, names) if names else _Above(source, entry, episode)
    film = _Film(episode, view, source.info.rate_hz)
    if path.suffix.lower() == ".png":
        picture = film.strip(frames) if names else film.overview()
        path, rate = write_file(path, _png(picture)), None
        count = min(frames, len(film.every)) if names else 1
    else:
        kept = film.at_rate(fps, _GIF_FPS if path.suffix.lower() == ".gif" else MAX_FPS)
        rate, count = kept.fps, len(kept.states)
        path = _write_gif(path, kept) if path.suffix.lower() == ".gif" else (
            write_video(path, kept, kept.fps))
    return {"path": str(path), "episode": entry.number, "steps": len(episode),
            "success": bool(episode.success[-1]), "frames": count, "fps": rate, "cameras": names}


# -- what is seen ---------------------------------------------------------------------------------


class _View(Protocol):
    def at(self, state: int) -> Frame: ...

    @property
    def picture(self) -> Frame: ...


class _Cameras:
    """Cameras side by side, scaled to one height."""

    def __init__(self, episode: Episode, names: Sequence[str]) -> None:
        self._cv2 = need("cv2", "videos")
        self._images = {name: episode.images[name] for name in names}
        tallest = max(images.frames.shape[1] for images in self._images.values())
        self._height = min(max(tallest, _HEIGHTS[0]), _HEIGHTS[1])

    def at(self, state: int) -> Frame:
        return np.concatenate([self.one(name, state) for name in self._images], axis=1)

    @property
    def picture(self) -> Frame:
        return self.at(0)

    @property
    def names(self) -> list[str]:
        return list(self._images)

    def one(self, name: str, state: int) -> Frame:
        """What one camera saw, with its name where there are several."""
        images = self._images[name]
        frame = images.frames[images.index[state]]
        rgb = np.broadcast_to(frame, (*frame.shape[:2], 3))
        width = max(1, round(frame.shape[1] * self._height / frame.shape[0]))
        shrinks = self._height < frame.shape[0]
        method = self._cv2.INTER_AREA if shrinks else self._cv2.INTER_LINEAR
        scaled: Frame = self._cv2.resize(np.ascontiguousarray(rgb), (width, self._height),
                                         interpolation=method)
        if len(self._images) > 1:
            draw_label(self._cv2, scaled, name, 0, (255, 255, 255))
        return scaled


class _Above:
    """Positions in the horizontal plane: the tool's, and of what the goal is about."""

    def __init__(self, source: Source, entry: Entry, episode: Episode) -> None:
        self._cv2 = need("cv2", "videos")
        paths = _paths(source, episode)
        if not paths:
            raise InvalidInputError(
                f"episode {entry.number} of {source.path} was recorded without cameras and holds "
                "no positions to draw from above; `robot-rl data plot "
                f"{source.path} --episode {entry.number}` draws its arrays"
            )
        figure = new_figure((5.4, 5.0))
        axes = figure.add_subplot()
        known = source.info.task in TASKS
        dress(axes, f"Episode {entry.number}: {outcome(entry)}",
               f"{'x [m]' if known else 'dimension 0'}  (seen from above; open circles: the start)",
               "y [m]" if known else "dimension 1", False)
        for (name, points), color in zip(paths.items(), SERIES, strict=False):
            axes.plot(points[:, 0], points[:, 1], color=color, linewidth=1.4, alpha=0.45,
                      label=name)
            axes.plot(*points[0], "o", color=color, markersize=6, fillstyle="none")
        if len(episode.desired) >= 2:
            axes.plot(*episode.desired[:2], "*", color=INK, markersize=13, label="goal")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        figure.set_dpi(100)
        canvas: Any = figure.canvas
        canvas.draw()
        self._background = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
        height = self._background.shape[0]
        self._last, self._paths = len(episode), []
        for (_, points), color in zip(paths.items(), SERIES, strict=False):
            pixels = axes.transData.transform(points[:, :2])
            drawn = np.stack([pixels[:, 0], height - pixels[:, 1]], axis=1).round().astype(np.int32)
            self._paths.append((drawn, tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))))

    def at(self, state: int) -> Frame:
        frame = self._background.copy()
        for points, color in self._paths:
            self._cv2.polylines(frame, [points[: state + 1]], False, color, 2, self._cv2.LINE_AA)
            self._cv2.circle(frame, tuple(map(int, points[state])), 6, color, -1,
                             self._cv2.LINE_AA)
        return frame

    @property
    def picture(self) -> Frame:
        return self.at(self._last)


def _paths(source: Source, episode: Episode) -> dict[str, NDArray[np.float64]]:
    """Positions (T + 1, 2) by what they are of."""
    task = TASKS.get(source.info.task)
    found = {}
    # Our own tasks' observations begin with the tool's position.
    if task is not None and episode.observation.shape[1] >= 3:
        found["tool"] = np.asarray(episode.observation[:, :2], np.float64)
    if episode.achieved.shape[1] >= 2:
        achieved = np.asarray(episode.achieved[:, :2], np.float64)
        if "tool" not in found or not np.allclose(achieved, found["tool"], atol=1e-6):
            found["achieved goal"] = achieved
    return found


# -- how it is shown ------------------------------------------------------------------------------


class _Film:
    """The pictures of an episode, each with the bar below it."""

    def __init__(self, episode: Episode, view: _View, rate_hz: float) -> None:
        self._cv2 = need("cv2", "videos")
        self._episode, self.view = episode, view
        self._times, self._unit = state_times(episode, rate_hz)
        self.every = range(len(episode) + 1)
        gaps = np.diff(self._times)
        self.rate = round(1.0 / float(np.median(gaps)), 3) if self._unit == "s" else _UNKNOWN_FPS
        self._bars: dict[int, Frame] = {}

    def at_rate(self, fps: float, most: float) -> _Frames:
        """All states at ``fps``, or in real time; fewer where that would be faster than ``most``.
        """
        rate = fps or self.rate
        every = max(1, math.ceil(rate / most - 1e-9))
        states = list(self.every[::every])
        if states[-1] != self.every[-1]:
            states.append(self.every[-1])
        return _Frames(self, states, min(max(rate / every, 0.1), most))

    def at(self, state: int) -> Frame:
        """The picture of one state."""
        seen = self.view.at(state)
        return np.concatenate([seen, self._bar(seen.shape[1], [state])])

    def overview(self) -> Frame:
        """The whole episode in one picture, as far as the view can show it."""
        seen = self.view.picture
        return np.concatenate([seen, self._bar(seen.shape[1], [])])

    def strip(self, count: int) -> Frame:
        """Evenly spaced pictures, one row for each camera, with their times."""
        view = self.view
        assert isinstance(view, _Cameras)
        states = np.unique(np.linspace(0, self.every[-1], count).round().astype(int)).tolist()
        width = max(view.one(name, 0).shape[1] for name in view.names) + 2
        columns = []
        for state in states:
            cells = [self._cell(view.one(name, state), width) for name in view.names]
            draw_label(self._cv2, cells[0], self._time(state), 1 if len(cells) > 1 else 0,
                   (255, 255, 255))
            columns.append(np.concatenate(cells))
        picture = np.concatenate(columns, axis=1)
        return np.concatenate([picture, self._bar(picture.shape[1], states)])

    def _cell(self, frame: Frame, width: int) -> Frame:
        cell = np.empty((frame.shape[0] + 2, width, 3), np.uint8)
        cell[:] = _PAPER
        left = (width - frame.shape[1]) // 2
        cell[: frame.shape[0], left : left + frame.shape[1]] = frame
        return cell

    def _time(self, state: int) -> str:
        return f"{self._times[state]:.2f} s" if self._unit == "s" else f"step {state}"

    def _x(self, state: NDArray[Any] | int, width: int) -> NDArray[np.int32]:
        span = max(float(self._times[-1]), 1e-12)
        return np.asarray(4 + self._times[state] / span * (width - 9)).astype(np.int32)

    def _bar(self, width: int, states: Sequence[int]) -> Frame:
        """Time from left to right, with marks at ``states``; in words for a single one."""
        if width not in self._bars:
            self._bars[width] = self._empty_bar(width)
        bar = self._bars[width].copy()
        for state in states:
            x = int(self._x(state, width))
            bar[18:, max(x - 1, 0) : x + 1] = _TEXT
        if len(states) == 1:
            self._words(bar, states[0])
        return bar

    def _words(self, bar: Frame, state: int) -> None:
        episode = self._episode
        text = f"step {state}/{len(episode)}"
        if self._unit == "s":
            text += f"  {self._times[state]:.2f} s"
        if state:
            text += f"  reward {episode.reward[state - 1]:.3g}"
        font = self._cv2.FONT_HERSHEY_SIMPLEX
        self._cv2.putText(bar, text, (4, 12), font, 0.38, _TEXT, 1, self._cv2.LINE_AA)
        x = 4 + self._cv2.getTextSize(text, font, 0.38, 1)[0][0] + 10
        for name, marks in self._flags().items():
            if state and marks[state - 1]:
                color = _FLAG_COLORS[name]
                self._cv2.putText(bar, name, (x, 12), font, 0.38, color, 1, self._cv2.LINE_AA)
                x += self._cv2.getTextSize(name, font, 0.38, 1)[0][0] + 8

    def _empty_bar(self, width: int) -> Frame:
        bar = np.empty((_BAR, width, 3), np.uint8)
        bar[:] = _PAPER
        for row, (name, marks) in enumerate(self._flags().items()):
            for step in np.flatnonzero(marks).tolist():
                left, right = int(self._x(step, width)), int(self._x(step + 1, width))
                top = 19 + 4 * row
                bar[top : top + 3, left : max(right, left + 1)] = _FLAG_COLORS[name]
        reward = self._episode.reward.astype(np.float64)
        low, high = float(reward.min()), float(reward.max())
        share = (reward - low) / (high - low) if high > low else np.full(len(reward), 0.5)
        y = (_BAR - 3 - share * 11).round().astype(np.int32)
        x = self._x(np.arange(1, len(reward) + 1), width)
        self._cv2.polylines(bar, [np.stack([x, y], axis=1)], False, _REWARD, 1, self._cv2.LINE_AA)
        return bar

    def _flags(self) -> dict[str, NDArray[np.bool_]]:
        episode = self._episode
        found = {"SUCCESS": episode.success, "INTERVENTION": episode.intervention,
                 "RESET": episode.reset}
        return {name: marks for name, marks in found.items() if marks is not None}


class _Frames(Sequence[Frame]):
    """The pictures of a video, made when they are asked for; the last one stands for a while."""

    def __init__(self, film: _Film, states: list[int], fps: float) -> None:
        self._film, self.states, self.fps = film, states, fps
        self._hold = round(HOLD_S * fps)

    def __len__(self) -> int:
        return len(self.states) + self._hold

    @overload
    def __getitem__(self, at: int) -> Frame: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Frame]: ...

    def __getitem__(self, at: int | slice) -> Frame | Sequence[Frame]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self._film.at(self.states[min(at % len(self), len(self.states) - 1)])


def _write_gif(path: Path, frames: _Frames) -> Path:
    image = need("PIL.Image", "animated pictures")

    def pictures() -> Iterator[Any]:
        for i in range(len(frames.states)):
            picture = image.fromarray(frames[i])
            if picture.width > _GIF_WIDTH:
                size = (_GIF_WIDTH, round(picture.height * _GIF_WIDTH / picture.width))
                picture = picture.resize(size)
            yield picture.convert("P", palette=image.Palette.ADAPTIVE)

    made = pictures()
    first = next(made)
    each_ms = round(1000.0 / frames.fps)
    lasts = [each_ms] * (len(frames.states) - 1) + [round(1000.0 * HOLD_S)]
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=made, duration=lasts, loop=0)
    return write_file(path, buffer.getvalue())


def _png(picture: Frame) -> bytes:
    cv2 = need("cv2", "pictures")
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    if not done:
        raise InvalidInputError(f"a picture of shape {picture.shape} cannot be written as PNG")
    return bytes(data)
