"""``robot-rl camera``: which cameras there are, what they show, whether one can rely on them."""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.backends import list_backends
from robot_rl.cli.commands import Command, Outcome, group, no_arguments
from robot_rl.cli.flags import Parser
from robot_rl.envs.factory import make_env
from robot_rl.errors import (
    InvalidInputError,
    MissingDependencyError,
    RobotRLError,
    unknown_name,
)
from robot_rl.interfaces import Camera, Clock, Frame
from robot_rl.safety.cameras import (
    CameraWatch,
    MonotonicClock,
    StreamingCamera,
    brightness,
    fingerprint,
)

GROUP = "robot_rl.cameras"
_SIM_OPTIONS = ("robot", "size", "fps")
_SIM_SIZE, _SIM_RATE_HZ = (320, 240), 30.0
# How often one looks for a new frame: the resolution of what is said of delays.
_POLL_S = 0.002
_MAX_VIDEO_S = 60.0
# Rows and columns of the middle by which sharpness is judged.
_SHARP_SIZE = 256


# -- where frames come from ---------------------------------------------------------------------


@dataclass
class Opened:
    """A camera that gives frames: ``wait`` returns at the next one, or says that there is none."""

    camera: Camera
    clock: Clock
    rate_hz: float
    may_repeat: bool
    wait: Callable[[float], Frame | None]
    close: Callable[[], None]

    def fault(self) -> str | None:
        return self.camera.fault() if isinstance(self.camera, StreamingCamera) else None

    @property
    def ended(self) -> bool:
        return bool(getattr(self.camera, "ended", False))

    @property
    def notes(self) -> list[str]:
        return list(getattr(self.camera, "notes", ()))


def _installed(name: str) -> Callable[..., Any]:
    """What the drivers offer under that name."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise InvalidInputError(
            f"no cameras' drivers are installed (entry point group {GROUP!r} has no {name!r}); "
            "install the package again, e.g. pip install -e '.[cameras]'"
        )
    loaded: Callable[..., Any] = found[name].load()
    return loaded


@contextmanager
def _opened(source: str) -> Iterator[Opened]:
    opened = _simulated(source) if source.startswith("sim:") else _streaming(source)
    try:
        yield opened
    finally:
        opened.close()


def _streaming(source: str) -> Opened:
    clock = MonotonicClock()
    camera = _installed("make")("camera", source, height=None, width=None, clock=clock)
    last_s = -math.inf

    def wait(timeout_s: float) -> Frame | None:
        nonlocal last_s
        end_s = time.monotonic() + timeout_s
        while True:
            for frame in camera.history():
                if frame.stamp_s > last_s:
                    last_s = frame.stamp_s
                    found: Frame = frame
                    return found
            if time.monotonic() >= end_s or camera.ended:
                return None
            time.sleep(_POLL_S)

    return Opened(camera, clock, camera.rate_hz, camera.may_repeat, wait, camera.close)


def _simulated(source: str) -> Opened:
    """A camera of a scene whose time goes on as ours does, where the machine keeps up."""
    (backend, task, name), options = _sim_parts(source)
    width, height = options["size"]
    env = make_env(task, options["robot"], backend, image_size=(height, width))
    if name not in env.rig.cameras:
        known = list(env.rig.cameras)
        env.close()
        raise unknown_name(f"camera of {source!r}:", name, known)
    env.reset(seed=0)
    clock, camera, period_s = env.rig.clock, env.rig.cameras[name], 1.0 / options["fps"]
    camera.read(period_s)  # the first picture takes long: graphics are set up
    began_s, scene_s = time.monotonic(), clock.now_s()
    number = 0

    def wait(timeout_s: float) -> Frame | None:
        nonlocal number
        number += 1
        time.sleep(max(0.0, began_s + number * period_s - time.monotonic()))
        clock.sleep_until(scene_s + number * period_s)
        return camera.read(period_s)

    return Opened(camera, clock, options["fps"], True, wait, env.close)


def _engines() -> list[str]:
    """The backends that render."""
    return [name for name in list_backends() if name in ("mujoco", "pybullet")]


def _sim_parts(source: str) -> tuple[list[str], dict[str, Any]]:
    target, _, query = source.removeprefix("sim:").partition("?")
    parts = target.split("/")
    if len(parts) != 3 or not all(parts):
        raise InvalidInputError(
            f"camera source {source!r} should be sim:BACKEND/TASK/CAMERA, e.g. "
            "sim:mujoco/Push/front"
        )
    if parts[0] not in (engines := _engines()):
        raise unknown_name("engine", parts[0], engines)
    options: dict[str, Any] = {"robot": "sawyer", "size": _SIM_SIZE, "fps": _SIM_RATE_HZ}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key not in options:
            raise unknown_name(f"option of camera source {source!r}:", key, _SIM_OPTIONS)
        try:
            options[key] = _sim_value(key, value)
        except ValueError as error:
            raise InvalidInputError(
                f"camera source {source!r}: {key} is {value!r}, should be {error}"
            ) from None
    return parts, options


def _sim_value(key: str, value: str) -> Any:
    if key == "robot":
        return value
    if key == "size":
        width, _, height = value.partition("x")
        if not (width.isdigit() and height.isdigit()):
            raise ValueError("WIDTHxHEIGHT, e.g. 320x240")
        return int(width), int(height)
    if not value.replace(".", "", 1).isdigit() or not 1.0 <= float(value) <= 200.0:
        raise ValueError("a number in [1, 200]")
    return float(value)


# -- list ---------------------------------------------------------------------------------------


def _list_run(args: argparse.Namespace) -> Outcome:
    found: dict[str, list[dict[str, str]]] = _installed("find")()
    found["sim"] = [{"source": f"sim:{backend}/Push/front", "about": "a simulated camera"}
                    for backend in _engines()]
    sources = [entry["source"] for entries in found.values() for entry in entries
               if "source" in entry]
    lines = []
    for kind, entries in found.items():
        lines.append(kind if entries else f"{kind}: none")
        lines += [f"  {entry.get('source', '-'):<40} {entry['about']}" for entry in entries]
    return Outcome({"sources": sources, "found": found}, "\n".join(lines))


# -- check --------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What a check gathers."""

    stamps_s: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    brightness: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    prints: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = (0, 0, 3)

    def add(self, frame: Frame, now_s: float) -> None:
        self.stamps_s.append(frame.stamp_s)
        self.ages_s.append(now_s - frame.stamp_s)
        self.brightness.append(brightness(frame.image))
        self.sharpness.append(_sharpness(frame.image))
        self.prints.append(fingerprint(frame.image))
        self.shape = frame.image.shape

    def complain(self, text: str | None, kind: str = "") -> None:
        """Once for each kind of complaint; its figures change from one look to the next."""
        if text is not None and not any(_kind(text) == _kind(other) for other in self.problems):
            self.problems.append(text)


def _kind(text: str) -> str:
    return "".join(letter for letter in text if not (letter.isdigit() or letter == "."))


def _sharpness(image: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of the brightness in the picture's middle: small where it is out of
    focus."""
    top, left = (max(0, (size - _SHARP_SIZE) // 2) for size in image.shape[:2])
    middle = image[top : top + _SHARP_SIZE, left : left + _SHARP_SIZE]
    grey = middle.astype(np.float32).mean(axis=2)
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4.0 * grey[1:-1, 1:-1]).var())


def _check_arguments(parser: Parser) -> None:
    _source_argument(parser)
    parser.add_argument("--seconds", metavar="S", type=float, default=3.0,
                        help="for how long to look (default: 3)")


def _source_argument(parser: Parser) -> None:
    parser.add_argument("--source", metavar="SOURCE", required=True,
                        help="e.g. opencv:0, realsense:, ros2:/camera/image_raw, test:pattern or "
                             "sim:mujoco/Push/front")


def _check_run(args: argparse.Namespace) -> Outcome:
    _in_range("--seconds", args.seconds, 0.2, 600.0)
    seen = _Seen()
    with _opened(args.source) as opened:
        watch = CameraWatch(opened.camera) if isinstance(opened.camera, StreamingCamera) else None
        end_s = time.monotonic() + args.seconds
        # A simulation on a slow machine takes longer for its frames, and is none the worse for it.
        while not opened.ended and (
            time.monotonic() < end_s or (watch is None and len(seen.stamps_s) < 3)
        ):
            frame = opened.wait(min(0.02, max(end_s - time.monotonic(), 0.001)))
            if frame is not None:
                seen.add(frame, opened.clock.now_s())
            if watch is not None and not opened.ended:
                seen.complain(watch.check())
        frozen = _is_frozen(seen, opened)
        rate_hz = opened.rate_hz
        notes = opened.notes
    values = _check_values(seen, frozen, rate_hz, notes)
    lines = [f"{args.source}: {'ok' if values['ok'] else 'NOT OK'}",
             f"  {values['width']} x {values['height']} pixels, {values['rate_hz']:.1f} frames a "
             f"second (expected {rate_hz:g}), longest gap {values['max_gap_ms']:.0f} ms",
             f"  brightness {values['brightness']:.0f} of 255, sharpness "
             f"{values['sharpness']:.0f}, frames are {values['age_ms']:.0f} ms old when seen"]
    lines += [f"  problem: {text}" for text in values["problems"]]
    lines += [f"  note: {text}" for text in notes]
    return Outcome(values, "\n".join(lines), 0 if values["ok"] else 1)


def _is_frozen(seen: _Seen, opened: Opened) -> bool:
    fault = opened.fault()
    if fault is not None and fault.startswith("frozen"):
        return True
    if len(seen.stamps_s) < 2 or max(np.diff(seen.stamps_s)) <= 0.0:
        return True
    return not opened.may_repeat and len(set(seen.prints)) == 1


def _check_values(
    seen: _Seen, frozen: bool, expected_hz: float, notes: list[str]
) -> dict[str, Any]:
    gaps_s = np.diff(seen.stamps_s) if len(seen.stamps_s) > 1 else np.zeros(0)
    rate_hz = 1.0 / float(gaps_s.mean()) if gaps_s.size and gaps_s.mean() > 0.0 else 0.0
    if frozen:
        seen.complain("the picture is frozen")
    if rate_hz < 2.0 / 3.0 * expected_hz:
        seen.complain(f"{rate_hz:.1f} frames a second, expected {expected_hz:g}")
    return {
        "ok": not seen.problems,
        "rate_hz": rate_hz,
        "frozen": frozen,
        "width": seen.shape[1],
        "height": seen.shape[0],
        "frames": len(seen.stamps_s),
        "expected_rate_hz": expected_hz,
        "max_gap_ms": 1e3 * float(gaps_s.max()) if gaps_s.size else 0.0,
        "age_ms": 1e3 * statistics.median(seen.ages_s) if seen.ages_s else 0.0,
        "brightness": statistics.fmean(seen.brightness) if seen.brightness else 0.0,
        "sharpness": statistics.fmean(seen.sharpness) if seen.sharpness else 0.0,
        "problems": seen.problems,
        "notes": notes,
    }


def _in_range(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidInputError(f"{flag} is {value:g}, should be in [{low:g}, {high:g}]")


# -- view ---------------------------------------------------------------------------------------


def _view_arguments(parser: Parser) -> None:
    _source_argument(parser)
    parser.add_argument("--out", metavar="PATH", default="",
                        help="write a video (PATH ends in .mp4) or a folder of PNG files instead "
                             "of opening a window")
    parser.add_argument("--seconds", metavar="S", type=float, default=None,
                        help="for how long (default: 5 with --out, else until the window closes)")


def _view_run(args: argparse.Namespace) -> Outcome:
    if args.seconds is not None:
        _in_range("--seconds", args.seconds, 0.1, _MAX_VIDEO_S if args.out else 86400.0)
    if not args.out and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InvalidInputError(
            "there is no display to open a window on; give --out view.mp4 or --out FOLDER"
        )
    seconds = args.seconds if args.seconds is not None else (5.0 if args.out else math.inf)
    with _opened(args.source) as opened:
        sink = _sink(args.out, opened.rate_hz)
        try:
            frames, rate_hz = _show(opened, sink, seconds, quiet=args.quiet)
        finally:
            where = sink.finish()
        fault = opened.fault()
    values = {"source": args.source, "frames": frames, "rate_hz": rate_hz, "out": where,
              "fault": fault}
    text = f"{frames} frames, {rate_hz:.1f} a second" + (f"; {where}" if where else "")
    failed = frames == 0 or (fault is not None and not opened.ended)
    return Outcome(values, text + (f"; {fault}" if failed and fault else ""), int(failed))


def _show(opened: Opened, sink: Any, seconds: float, *, quiet: bool) -> tuple[int, float]:
    """Hand frames on until the time is over, the camera is lost or the window is closed; how many
    there were, and their rate [Hz]."""
    begin_s = said_s = time.monotonic()
    stamps: list[float] = []
    while time.monotonic() - begin_s < seconds and not opened.ended:
        frame = opened.wait(0.1)
        if frame is not None:
            stamps.append(frame.stamp_s)
            if not sink.take(frame.image):
                break
        if not quiet and time.monotonic() - said_s >= 1.0:
            said_s = time.monotonic()
            said = opened.fault() or f"{_rate(stamps[-30:]):.1f} frames a second"
            print(f"\r{said:<60}", end="", file=sys.stderr, flush=True)
    if not quiet and said_s > begin_s:
        print(file=sys.stderr)
    return len(stamps), _rate(stamps)


def _rate(stamps_s: list[float]) -> float:
    span_s = stamps_s[-1] - stamps_s[0] if len(stamps_s) > 1 else 0.0
    return (len(stamps_s) - 1) / span_s if span_s > 0.0 else 0.0


def _sink(out: str, rate_hz: float) -> Any:
    if not out:
        return _Window()
    return _Video(Path(out), rate_hz) if out.endswith(".mp4") else _Pictures(Path(out))


class _Pictures:
    """PNG files in a folder."""

    def __init__(self, folder: Path) -> None:
        from robot_rl.report.optional import need

        self._cv2, self._folder, self._count = need("cv2", "pictures"), folder, 0
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidInputError(f"--out {folder} is in use; give a new or empty folder")
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, image: NDArray[np.uint8]) -> bool:
        self._count += 1
        path = self._folder / f"frame_{self._count:05d}.png"
        if not self._cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1])):
            raise RobotRLError(f"cannot write {path}")
        return True

    def finish(self) -> str:
        return str(self._folder)


class _Video:
    """A short film."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        if path.exists():
            raise InvalidInputError(f"--out {path} is there already; give another name")
        self._path, self._rate_hz = path, rate_hz
        self._frames: list[NDArray[np.uint8]] = []

    def take(self, image: NDArray[np.uint8]) -> bool:
        self._frames.append(image)
        return True

    def finish(self) -> str:
        from robot_rl.report.video import write_video

        if not self._frames:
            return ""
        return str(write_video(self._path, self._frames, min(self._rate_hz, 240.0)))


class _Window:
    """A window, until it is closed or a key is pressed."""

    def __init__(self) -> None:
        try:
            import pygame
        except ImportError as error:
            raise MissingDependencyError(
                f"windows need pygame ({error}); install robot_rl[teleop], or give --out view.mp4"
            ) from None
        self._pygame: Any = pygame
        try:
            pygame.display.init()
        except pygame.error as error:
            raise InvalidInputError(
                f"no window can be opened ({error}); give --out view.mp4 or --out FOLDER"
            ) from None
        self._screen: Any = None

    def take(self, image: NDArray[np.uint8]) -> bool:
        pygame = self._pygame
        if self._screen is None:
            self._screen = pygame.display.set_mode((image.shape[1], image.shape[0]))
            pygame.display.set_caption("robot-rl camera view")
        pygame.surfarray.blit_array(self._screen, image.swapaxes(0, 1))
        pygame.display.flip()
        return not any(event.type in (pygame.QUIT, pygame.KEYDOWN)
                       for event in pygame.event.get())

    def finish(self) -> str:
        self._pygame.display.quit()
        return ""


# -- the command --------------------------------------------------------------------------------

_EPILOG = """\
examples:
  robot-rl camera list
  robot-rl camera check --source opencv:0
  robot-rl camera check --source 'opencv:0?size=1280x720&exposure=120&white_balance=4600' --json
  robot-rl camera check --source sim:mujoco/Push/front
  robot-rl camera view  --source realsense: --out wrist.mp4 --seconds 5

sources:
  opencv:0, opencv:/dev/video0     a webcam            realsense:, realsense:SERIAL
  opencv:/path/video.mp4           a file, real time   realsense:/path/recording.db3 or .bag
  opencv:rtsp://...                a stream            ros1:/topic, ros2:/topic
  test:pattern                     moving colour bars  sim:BACKEND/TASK/CAMERA
Options follow a question mark: ?crop=x,y,width,height&rectify=FILE.yaml&fps=30&exposure=120
(docs/cameras.md lists them).
"""


COMMAND = group(
    "camera", "find cameras, look at them, check that they can be relied on",
    "Cameras by the text that names their source, as --camera name=SOURCE takes it.",
    Command(
        "list", "the sources on this machine",
        "RealSense devices, video devices, and image topics of ROS 1 and ROS 2 where a master "
        "or a domain answers.", no_arguments, _list_run,
    ),
    Command(
        "view", "a window with what a camera shows, or a video of it",
        "Opens a window where there is a display; with --out it writes a video or PNG files. "
        "Prints the rate.", _view_arguments, _view_run,
        "examples:\n  robot-rl camera view --source opencv:0\n"
        "  robot-rl camera view --source test:pattern --out pattern.mp4 --seconds 3",
    ),
    Command(
        "check", "whether a camera is open, fast enough, moving, lit and sharp",
        "Looks at a camera for a while. Exit code 0: it is well; 1: it is not, the problems "
        "say why; 2: it cannot be opened.", _check_arguments, _check_run,
        "examples:\n  robot-rl camera check --source opencv:0\n"
        "  robot-rl camera check --source 'ros2:/camera/image_raw?fps=30' --json",
    ),
    epilog=_EPILOG,
)
