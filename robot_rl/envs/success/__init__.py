"""Detectors of success: by a sensor, a pose, a goal image, a trained classifier, or several."""

from robot_rl.envs.success.base import AllOf, AnyOf, Detector, Vote
from robot_rl.envs.success.goal_image import GoalImage, GoalImageSuccess, calibrate
from robot_rl.envs.success.pose import BodyPoseSuccess, ToolPoseSuccess, ValueSuccess
from robot_rl.envs.success.sensor import SensorSuccess

__all__ = [
    "AllOf",
    "AnyOf",
    "BodyPoseSuccess",
    "Detector",
    "GoalImage",
    "GoalImageSuccess",
    "SensorSuccess",
    "ToolPoseSuccess",
    "ValueSuccess",
    "Vote",
    "calibrate",
]
