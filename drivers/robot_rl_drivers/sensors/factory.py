"""The sensors that a scene declares, on hardware: each from a serial line or a topic."""

from __future__ import annotations

from collections.abc import Mapping

from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Arm, Clock, Sensor
from robot_rl.sensors import BiasedForceSensor, MountedWrench
from robot_rl.specs import SceneSpec, SlideJoint
from robot_rl.specs.scene import JointSensor
from robot_rl_drivers.sensors.serial_line import SerialSensor
from robot_rl_drivers.sensors.topics import Subscribe, TopicSensor, TopicWrench

_PREFIX = "sensor_"
_WRENCH_NUMBERS = ("x", "y", "z", "sign")
_SERIAL_NUMBERS = ("baud", "scale", "offset", "low", "high")


def sensor_options(scene: SceneSpec) -> tuple[str, ...]:
    """The keys of ``RigRequest.options`` that :func:`make_sensors` reads."""
    return tuple(_PREFIX + sensor.name for sensor in scene.sensors)


def make_sensors(
    scene: SceneSpec,
    options: Mapping[str, str],
    clock: Clock,
    subscribe: Subscribe | None = None,
) -> dict[str, Sensor]:
    """A sensor for each that the scene declares, by name.

    ``options["sensor_<name>"]`` says where it is:

    - ``topic`` (where there is ROS, the default) or ``topic:/some/topic``: std_msgs/Float64,
      by default on ``/robot_rl/sensors/<name>``;
    - ``serial:/dev/ttyUSB0``, with ``,baud=115200,scale=0.001,offset=0,low=0,high=0.2`` as wanted;
    - ``none``: there is none (without ROS, the default).

    Raises:
        InvalidInputError: a source cannot be read or opened; none is left open.
    """
    sensors: dict[str, Sensor] = {}
    try:
        for declared in scene.sensors:
            default = "topic" if subscribe is not None else "none"
            source = options.get(_PREFIX + declared.name, default)
            joint = declared.joint if isinstance(declared, JointSensor) else ""
            made = _make(declared.name, _unit(scene, joint), source, clock, subscribe)
            if made is not None:
                sensors[declared.name] = made
    except Exception:
        for sensor in sensors.values():
            sensor.close()  # type: ignore[attr-defined]
        raise
    return sensors


def make_force(
    source: str, arm: Arm, clock: Clock, subscribe: Subscribe | None
) -> BiasedForceSensor:
    """A force sensor at the wrist whose readings come on a topic (geometry_msgs/WrenchStamped).

    ``source`` is ``topic:/NAME``, with ``,axes=tool,x=0,y=0,z=0,sign=1`` as wanted: the axes that
    it reports in (``tool`` or ``base``), where it is from the tool centre point [m, tool's axes],
    and -1 for one that reports what the tool does to the world.

    Raises:
        InvalidInputError: the source cannot be read.
    """
    kind, _, rest = source.partition(":")
    topic, *pairs = rest.split(",")
    if kind != "topic" or not topic.startswith("/"):
        raise unknown_name("source of the force sensor", source, ("topic:/NAME",))
    if subscribe is None:
        raise InvalidInputError(f"force: this backend has no ROS for {source!r}")
    axes = "tool"
    given = dict(pair.partition("=")[::2] for pair in pairs)
    if "axes" in given:
        axes = given.pop("axes")
    numbers = _numbers("force", [f"{key}={value}" for key, value in given.items()], _WRENCH_NUMBERS)
    position = [numbers.get(axis, 0.0) for axis in "xyz"]
    raw = TopicWrench(clock, subscribe, topic)
    try:
        mounted = MountedWrench(raw, arm, axes=axes, position_m=position,
                                sign=numbers.get("sign", 1.0))
    except InvalidInputError:
        raw.close()
        raise
    return BiasedForceSensor(mounted, clock)


def _make(
    name: str, unit: str, source: str, clock: Clock, subscribe: Subscribe | None
) -> TopicSensor | SerialSensor | None:
    kind, _, rest = source.partition(":")
    if source == "none":
        return None
    if kind == "topic":
        if subscribe is None:
            raise InvalidInputError(
                f"sensor {name!r}: this backend has no ROS for {source!r}; valid: serial:PORT, none"
            )
        if rest and not rest.startswith("/"):
            raise InvalidInputError(f"sensor {name!r}: the topic {rest!r} should begin with /")
        return TopicSensor(name, unit, clock, subscribe, rest)
    if kind == "serial" and rest:
        port, *pairs = rest.split(",")
        numbers = _numbers(name, pairs)
        baud = numbers.pop("baud", 115200.0)
        if not (1.0 <= baud <= 4e6 and baud == int(baud)):
            raise InvalidInputError(
                f"sensor {name!r}: baud is {baud:g}, should be a whole number in [1, 4000000]"
            )
        return SerialSensor(name, unit, port, clock, baud=int(baud), **numbers)
    raise unknown_name(f"source of the sensor {name!r}", source,
                       ("topic", "topic:/NAME", "serial:PORT", "none"))


def _numbers(
    name: str, pairs: list[str], known: tuple[str, ...] = _SERIAL_NUMBERS
) -> dict[str, float]:
    found: dict[str, float] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in known:
            raise unknown_name(f"setting of the sensor {name!r}", key, known)
        if key in found:
            raise InvalidInputError(f"sensor {name!r}: {key} is given twice")
        try:
            found[key] = float(value)
        except ValueError:
            raise InvalidInputError(
                f"sensor {name!r}: {key} is {value!r}, should be a number"
            ) from None
    return found


def _unit(scene: SceneSpec, joint: str) -> str:
    for body in scene.bodies:
        if not isinstance(body.motion, str) and body.motion.name == joint:
            return "m" if isinstance(body.motion, SlideJoint) else "rad"
    return ""
