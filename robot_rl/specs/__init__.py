"""Descriptions of arms and scenes as plain data: no simulator, no hardware, no ROS."""

from robot_rl.specs.robot import (
    CartesianLimits,
    GripperSpec,
    JointSpec,
    LinkSpec,
    RobotSpec,
    list_robots,
    load_robot,
)
from robot_rl.specs.scene import (
    BodySpec,
    CameraSpec,
    Geom,
    HeldSpec,
    HingeJoint,
    JointSensor,
    RegionSensor,
    SceneSpec,
    SlideJoint,
)

__all__ = [
    "BodySpec",
    "CameraSpec",
    "CartesianLimits",
    "Geom",
    "GripperSpec",
    "HeldSpec",
    "HingeJoint",
    "JointSensor",
    "JointSpec",
    "LinkSpec",
    "RegionSensor",
    "RobotSpec",
    "SceneSpec",
    "SlideJoint",
    "list_robots",
    "load_robot",
]
