"""Cameras by a text that names their source: webcams, RealSense, files, streams, ROS topics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl.interfaces import Camera, Clock

if TYPE_CHECKING:
    from robot_rl_drivers.cameras.options import SourceText
    from robot_rl_drivers.cameras.stream import FrameSource, StreamCamera


def make_camera(
    name: str,
    source: str,
    *,
    height: int | None,
    width: int | None,
    clock: Clock,
    **options: Any,
) -> StreamCamera:
    """Open a camera; returns once it has given its first frame.

    Args:
        name: what the rig calls it.
        source: see docs/cameras.md, e.g. ``opencv:0?exposure=120&white_balance=4600``.
        height, width: pixels of the frames; None keeps the camera's own.
        clock: the rig's, which stamps count by.
        options: as in the source's text, which overrules them.

    Raises:
        InvalidInputError: the text is wrong, or there is no such camera.
        MissingDependencyError: the library for this kind of camera is not installed.
        StaleDataError: it opened and gives no frames.
    """
    from robot_rl_drivers.cameras.options import parse_source

    parsed = parse_source(source, options)
    if parsed.scheme in ("sim", "none"):
        raise InvalidInputError(
            f"camera {name!r}: {source!r} is no camera of this machine; simulated cameras belong "
            "to the backends mujoco and pybullet"
        )
    try:
        from robot_rl_drivers.cameras.processing import Processor, read_calibration
        from robot_rl_drivers.cameras.stream import StreamCamera
    except ImportError as error:
        raise MissingDependencyError(
            f"cameras need OpenCV ({error}); install robot_rl[cameras]"
        ) from None
    calibration = read_calibration(parsed.options.rectify) if parsed.options.rectify else None
    process = Processor(height, width, parsed.options.crop, calibration)
    camera = StreamCamera(name, source, _frame_source(parsed, clock), process, clock,
                          parsed.options)
    camera.start()
    return camera


def make_cameras(
    sources: Mapping[str, str],
    *,
    height: int | None,
    width: int | None,
    clock: Clock,
    **options: Any,
) -> dict[str, Camera]:
    """One camera for each source but ``none``, by the rig's names; all or none stay open.

    Raises:
        InvalidInputError, MissingDependencyError, StaleDataError: as :func:`make_camera`.
    """
    cameras: dict[str, Camera] = {}
    opened: list[StreamCamera] = []
    try:
        for name, source in sources.items():
            if source != "none":
                camera = make_camera(
                    name, source, height=height, width=width, clock=clock, **options)
                opened.append(camera)
                cameras[name] = camera
    except BaseException:
        for camera in opened:
            camera.close()
        raise
    return cameras


def find_sources() -> dict[str, list[dict[str, str]]]:
    """The sources on this machine, by kind; see :mod:`robot_rl_drivers.cameras.discover`."""
    from robot_rl_drivers.cameras.discover import find_sources

    return find_sources()


def _frame_source(parsed: SourceText, clock: Clock) -> FrameSource:
    target, options = parsed.target, parsed.options
    if parsed.scheme == "opencv":
        from robot_rl_drivers.cameras import opencv

        return opencv.make_source(target, options, clock)
    if parsed.scheme == "realsense":
        from robot_rl_drivers.cameras import realsense

        return realsense.make_source(target, options)
    if parsed.scheme in ("ros1", "ros2"):
        from robot_rl_drivers.cameras import ros_images

        return ros_images.make_source(parsed.scheme, target, options)
    from robot_rl_drivers.cameras import pattern

    return pattern.PatternSource(target, options, clock)
