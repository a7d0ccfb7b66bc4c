"""Intera's message classes, built at run time by genpy from their definitions.

Debian compiles the standard ROS 1 messages but not ``intera_core_msgs``. A definition is all that
genpy needs; order, types and constants decide a message's md5 sum, and a publisher and a
subscriber whose sums differ refuse each other.
"""

from __future__ import annotations

import importlib
from typing import Any

from robot_rl.errors import MissingDependencyError, unknown_name
from robot_rl.ros.ros1_import import import_rospy

DEFINITIONS: dict[str, str] = {
    "intera_core_msgs/JointCommand": """\
Header header
int32 mode
string[] names
float64[] position
float64[] velocity
float64[] acceleration
float64[] effort
int32 POSITION_MODE=1
int32 VELOCITY_MODE=2
int32 TORQUE_MODE=3
int32 TRAJECTORY_MODE=4
""",
    "intera_core_msgs/EndpointState": """\
Header header
geometry_msgs/Pose pose
geometry_msgs/Twist twist
geometry_msgs/Wrench wrench
bool valid
""",
    "intera_core_msgs/RobotAssemblyState": """\
bool homed
bool ready
bool enabled
bool stopped
bool error
bool lowVoltage
uint8 estop_button
uint8 ESTOP_BUTTON_UNPRESSED=0
uint8 ESTOP_BUTTON_PRESSED=1
uint8 ESTOP_BUTTON_UNKNOWN=2
uint8 ESTOP_BUTTON_RELEASED=3
uint8 estop_source
uint8 ESTOP_SOURCE_NONE=0
uint8 ESTOP_SOURCE_USER=1
uint8 ESTOP_SOURCE_UNKNOWN=2
uint8 ESTOP_SOURCE_FAULT=3
uint8 ESTOP_SOURCE_ENGINE=4
""",
    "intera_core_msgs/JointLimits": """\
string[] joint_names
float64[] position_lower
float64[] position_upper
float64[] velocity
float64[] accel
float64[] effort
""",
    "intera_core_msgs/CollisionDetectionState": """\
Header header
bool collision_state
""",
    "intera_core_msgs/IOStatus": """\
string tag
string DOWN=down
string READY=ready
string BUSY=busy
string UNREADY=unready
string ERROR=error
string id
string detail
""",
    "intera_core_msgs/IOComponentStatus": """\
string name
IOStatus status
""",
    "intera_core_msgs/IODataStatus": """\
string name
string format
string data
IOStatus status
""",
    "intera_core_msgs/IODeviceStatus": """\
time time
IOComponentStatus device
IODataStatus[] ports
IODataStatus[] signals
time[] commands
string[] responses
""",
    "intera_core_msgs/IOComponentCommand": """\
time time
string op
string args
""",
    # The standard messages that those above contain.
    "std_msgs/Header": "uint32 seq\ntime stamp\nstring frame_id\n",
    "geometry_msgs/Point": "float64 x\nfloat64 y\nfloat64 z\n",
    "geometry_msgs/Quaternion": "float64 x\nfloat64 y\nfloat64 z\nfloat64 w\n",
    "geometry_msgs/Vector3": "float64 x\nfloat64 y\nfloat64 z\n",
    "geometry_msgs/Pose": "Point position\nQuaternion orientation\n",
    "geometry_msgs/Twist": "Vector3 linear\nVector3 angular\n",
    "geometry_msgs/Wrench": "Vector3 force\nVector3 torque\n",
}
"""Fields and constants of each message, in order; the order and the names decide the md5 sum."""

_SEPARATOR = "\n" + "=" * 80 + "\n"
_built: dict[str, Any] = {}


def message_class(name: str) -> Any:
    """The class of a ROS 1 message, e.g. ``sensor_msgs/JointState``: Debian's own where the
    package is installed, else built from :data:`DEFINITIONS`.

    Raises:
        MissingDependencyError: rospy, or the package of that message, is not installed.
        InvalidInputError: a message of a package in the table that is not in it.
    """
    if name in _built:
        return _built[name]
    import_rospy()
    package, _, short = name.partition("/")
    if package == "intera_core_msgs":
        _built[name] = build_class(name)
        return _built[name]
    try:
        module = importlib.import_module(f"{package}.msg")
    except ImportError:
        raise MissingDependencyError(
            f"the ROS 1 message {name} is missing: apt-get install "
            f"python3-{package.replace('_', '-')}"
        ) from None
    _built[name] = getattr(module, short)
    return _built[name]


def build_class(name: str) -> Any:
    """A class for the message ``name``, built from :data:`DEFINITIONS` alone.

    Raises:
        InvalidInputError: no definition of that name.
    """
    if name not in DEFINITIONS:
        raise unknown_name("message", name, DEFINITIONS)
    import_rospy()
    from genpy.dynamic import generate_dynamic

    parts = [DEFINITIONS[name]]
    parts += [f"MSG: {part}\n{DEFINITIONS[part]}" for part in _contained(name)]
    return generate_dynamic(name, _SEPARATOR.join(parts))[name]


def _contained(name: str) -> list[str]:
    """The messages that ``name`` contains, at any depth."""
    found: list[str] = []
    package = name.partition("/")[0]
    for line in DEFINITIONS[name].splitlines():
        kind = line.split()[0].removesuffix("[]")
        kind = "std_msgs/Header" if kind == "Header" else kind
        full = kind if "/" in kind else f"{package}/{kind}"
        if full in DEFINITIONS and full != name:
            found += [part for part in [full, *_contained(full)] if part not in found]
    return found
