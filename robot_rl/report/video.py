"""Episodes as videos that play in any browser."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError, RobotRLError
from robot_rl.report.optional import need
from robot_rl.training.evaluate import HELD_OUT, Policy, run_episode

Frame = NDArray[np.uint8]

VIDEO_SIZE = (240, 320)  # Height, width of what record_videos writes.
MAX_FPS = 30.0  # Faster environments are filmed at every second step, third, and so on.
HOLD_S = 1.0  # For how long the last frame stands, so that the outcome can be read.

_log = logging.getLogger(__name__)


class VideoError(RobotRLError):
    """No video can be made here: nothing renders, or nothing encodes."""


@dataclass(frozen=True)
class _Encoder:
    codec: str
    container: str
    suffix: str
    pixels: str
    container_options: dict[str, str]
    codec_options: dict[str, str]


# SD material is BT.601; saying so keeps players from guessing the colours. The second is the H.264
# encoder of builds without x264; what follows is for builds without any.
_X264 = "colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m"
_ENCODERS = (
    _Encoder("libx264", "mp4", ".mp4", "yuv420p", {"movflags": "+faststart"},
             {"crf": "23", "preset": "medium", "x264-params": _X264}),
    _Encoder("libopenh264", "mp4", ".mp4", "yuv420p", {"movflags": "+faststart"}, {}),
    _Encoder("libwebp_anim", "webp", ".webp", "yuv420p", {"loop": "0"}, {}),
    _Encoder("apng", "apng", ".png", "rgb24", {"plays": "0"}, {}),
)


def write_video(path: str | Path, frames: Sequence[Frame], fps: float) -> Path:
    """Write frames (H, W, 3) uint8 as an H.264 mp4 (yuv420p, index first), whole or not at all.

    Odd sizes get one more row or column. Without an H.264 encoder it becomes an animated WebP or
    PNG, with a warning in the log; the path that is returned then ends differently.

    Raises:
        InvalidInputError: the frames or the rate cannot be used, or the file cannot be written.
        MissingDependencyError: PyAV is not installed.
        VideoError: PyAV encodes none of these formats.
    """
    path = Path(path)
    _check_frames(frames, fps)
    av = need("av", "videos")
    encoder = _find_encoder(av)
    target = path.with_suffix(encoder.suffix)
    if encoder.suffix != ".mp4":
        _log.warning("this PyAV has no H.264 encoder: %s is written instead of %s", target, path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _encode(av, beside, encoder, frames, Fraction(fps).limit_denominator(1001))
        os.replace(beside, target)
    except av.error.FFmpegError as error:
        raise VideoError(f"cannot encode {target} with {encoder.codec}: {error}") from None
    except OSError as error:
        raise InvalidInputError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    return target


def _check_frames(frames: Sequence[Frame], fps: float) -> None:
    if not (np.isfinite(fps) and 0.0 < fps <= 240.0):
        raise InvalidInputError(f"video: fps is {fps}, should be in (0, 240]")
    if len(frames) == 0:
        raise InvalidInputError("video: there are no frames")
    shape = np.shape(frames[0])
    for i, frame in enumerate(frames):
        found, kind = np.shape(frame), np.asarray(frame).dtype
        if found != shape or len(found) != 3 or found[2] != 3 or 0 in found or kind != np.uint8:
            raise InvalidInputError(
                f"video: frame {i} is {found} {kind}, should be (height, width, 3) uint8 as the "
                f"first, which is {shape}"
            )


def _find_encoder(av: Any) -> _Encoder:
    for encoder in _ENCODERS:
        try:
            av.codec.Codec(encoder.codec, "w")
        except ValueError:
            continue
        return encoder
    names = ", ".join(encoder.codec for encoder in _ENCODERS)
    raise VideoError(f"this PyAV ({av.__version__}) has none of the encoders {names}")


def _encode(
    av: Any, file: Path, encoder: _Encoder, frames: Sequence[Frame], rate: Fraction
) -> None:
    height, width = frames[0].shape[:2]
    more = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(
        str(file), "w", format=encoder.container, options=encoder.container_options
    ) as container:
        stream = container.add_stream(encoder.codec, rate=rate, options=encoder.codec_options)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = encoder.pixels
        stream.codec_context.thread_count = 1
        for i, frame in enumerate(frames):
            padded = np.ascontiguousarray(np.pad(frame, more, mode="edge"))
            picture = av.VideoFrame.from_ndarray(padded, format="rgb24")
            picture.pts, picture.time_base = i, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class Film:
    """One filmed episode: where it is and how it went."""

    path: Path
    number: int
    steps: int
    success: bool
    first_success: int | None
    distance: float | None
    unit: str

    @property
    def outcome(self) -> str:
        """How it went, in words."""
        if self.success:
            text = "success"
            if self.first_success is not None:
                text += f", first at step {self.first_success} of {self.steps}"
        elif self.first_success is not None:
            text = f"success at step {self.first_success}, but lost by the end"
        else:
            text = f"no success in {self.steps} steps"
        if self.distance is not None:
            text += f"; {format_distance(self.distance, self.unit)} from the goal at the end"
        return text


class _Watch(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps what ``on_step`` is not given: the last ``info``, the step, whether it was the end."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.info: dict[str, Any] = {}
        self.steps, self.ended = 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> (
        tuple[Any, dict[str, Any]]
    ):
        observation, self.info = self.env.reset(seed=seed, options=options)
        self.steps, self.ended = 0, False
        return observation, self.info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, self.info = self.env.step(action)
        self.steps, self.ended = self.steps + 1, terminated or truncated
        return observation, reward, terminated, truncated, self.info


def record_videos(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    folder: str | Path,
    episodes: int,
    seed: int,
    *,
    name: str,
) -> list[Path]:
    """Film the first ``episodes`` episodes that ``evaluate(env, policy, ..., seed)`` would run.

    Returns:
        ``folder/<name>-<number>.mp4``, one for each.

    Raises:
        VideoError: the environment does not render here.
    """
    return [film.path for film in film_episodes(env, policy, folder, episodes, seed, name=name)]


def film_episodes(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    folder: str | Path,
    episodes: int,
    seed: int,
    *,
    name: str,
) -> list[Film]:
    """As :func:`record_videos`, with how each episode went."""
    need("cv2", "videos")
    watch = _Watch(env)
    inner = env.unwrapped
    unit = inner.task.goal_unit if isinstance(inner, RobotEnv) else ""
    rate = float(env.metadata.get("render_fps") or 10)
    every = max(1, math.ceil(rate / MAX_FPS - 1e-9))
    fps = rate / every
    films = []
    for i in range(episodes):
        frames: list[Frame] = []

        def on_step(frames: list[Frame] = frames) -> None:
            if watch.steps % every == 0 or watch.ended:
                frames.append(_annotate(_render(env), watch.steps, watch.info, unit))

        episode, info = run_episode(
            watch, policy, seed=HELD_OUT + 10_000 * seed + i, on_step=on_step
        )
        frames += [frames[-1]] * round(HOLD_S * fps)
        path = write_video(Path(folder) / f"{name}-{i + 1:02d}.mp4", frames, fps)
        reached = np.flatnonzero(episode.success)
        films.append(
            Film(
                path=path,
                number=i + 1,
                steps=len(episode),
                success=bool(episode.success[-1]),
                first_success=int(reached[0]) + 1 if len(reached) else None,
                distance=_distance(info),
                unit=unit,
            )
        )
    return films


def format_distance(distance: float, unit: str) -> str:
    """A distance to a goal for people: metres as centimetres."""
    return f"{100.0 * distance:.1f} cm" if unit == "m" else f"{distance:.2f} {unit}".rstrip()


def _distance(info: dict[str, Any]) -> float | None:
    value = info.get("distance")
    return float(value) if value is not None and np.isfinite(value) else None


def _render(env: gymnasium.Env[Any, Any]) -> Frame:
    try:
        image = env.render()
    except Exception as error:  # graphics drivers and their bindings raise what they like
        raise VideoError(
            f"nothing renders here ({type(error).__name__}: {error}); "
            "`robot-rl doctor` says what is missing"
        ) from None
    frame = np.asarray(image)
    if image is None or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        found = "nothing" if image is None else f"{frame.shape} {frame.dtype}"
        raise VideoError(
            f"the environment renders {found}, videos need (height, width, 3) uint8; make it with "
            'render_mode="rgb_array"'
        )
    return frame


def _annotate(image: Frame, step: int, info: dict[str, Any], unit: str) -> Frame:
    """The image at VIDEO_SIZE, with a line of text on it."""
    cv2 = need("cv2", "videos")
    frame = _fit(cv2, image)
    text = f"step {step}"
    distance = _distance(info)
    if distance is not None:
        text += f", {format_distance(distance, unit)} to goal"
    draw_label(cv2, frame, text, 0, (255, 255, 255))
    if info.get("is_success"):
        draw_label(cv2, frame, "SUCCESS", 1, (140, 240, 170))
    return frame


def _fit(cv2: Any, image: Frame) -> Frame:
    """Scaled into VIDEO_SIZE with its proportions kept, on black; always a copy."""
    height, width = VIDEO_SIZE
    scale = min(height / image.shape[0], width / image.shape[1])
    if scale != 1.0:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        method = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
        image = cv2.resize(image, size, interpolation=method)
    frame = np.zeros((height, width, 3), np.uint8)
    top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    frame[top:top + image.shape[0], left:left + image.shape[1]] = image
    return frame


def draw_label(cv2: Any, frame: Frame, text: str, row: int, color: tuple[int, int, int]) -> None:
    """Write ``text`` into the ``row``-th line of ``frame``, in place, on a dark ground."""
    font, scale, thickness = cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1
    (width, _), _ = cv2.getTextSize(text, font, scale, thickness)
    top, height = 4 + 20 * row, 18
    box = frame[top:top + height, 4:min(4 + width + 8, frame.shape[1])]
    box[:] = box // 4  # Dark behind the text, whatever the scene looks like.
    cv2.putText(frame, text, (8, top + 13), font, scale, color, thickness, cv2.LINE_AA)
