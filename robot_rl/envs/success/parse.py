"""Detectors of success from one line of text, as a command line or a configuration gives them.

    sensor:contact>0.5              a sensor at or above a value; sensor:drawer<0.01 at or below it
    body:puck@0.10,0.05,0.02~0.03   a tracked body within 0.03 m of a point of the workspace
    tool@0.05,0.0,0.052~0.003       the tool within 0.003 m of a point
    image:FILE                      a calibrated goal image, of the camera in camera=NAME
    classifier:FILE                 a trained classifier

Settings follow after semicolons: ``sensor:contact>0.5;hold=0.3``. Several detectors are put
together with ``&`` (all) or ``|`` (any), not both in one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from robot_rl.envs.success.base import AllOf, AnyOf, Vote
from robot_rl.envs.success.classifier import Classifier, ClassifierSuccess
from robot_rl.envs.success.goal_image import GoalImage, GoalImageSuccess
from robot_rl.envs.success.pose import BodyPoseSuccess, ToolPoseSuccess
from robot_rl.envs.success.sensor import SensorSuccess
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Rig, SuccessDetector

KINDS = ("sensor:NAME>VALUE", "sensor:NAME<VALUE", "body:NAME@X,Y,Z~DISTANCE",
         "tool@X,Y,Z~DISTANCE", "image:FILE", "classifier:FILE")
_POINT = re.compile(r"(?P<name>[^@]*)@(?P<point>[^~]*)~(?P<far>.*)")


@dataclass
class _Settings:
    """``name=value`` after semicolons, each to be used once."""

    text: str
    values: dict[str, str]

    def take(self, name: str, default: float) -> float:
        return _number(self.values.pop(name), self.text) if name in self.values else default

    def name(self, name: str, default: str) -> str:
        return self.values.pop(name, default)

    def done(self, *valid: str) -> None:
        for left in self.values:
            raise unknown_name(f"setting of {self.text!r}", left, valid)


def make_success(text: str, rig: Rig) -> SuccessDetector:
    """The detector that ``text`` describes, looking at ``rig``.

    Raises:
        InvalidInputError: it cannot be read, or names what the rig has not.
    """
    both = [sign for sign in "&|" if sign in text]
    if len(both) == 2:
        raise InvalidInputError(f"success {text!r} has both & and |; put one kind in a line")
    if both:
        parts = [make_success(part.strip(), rig) for part in text.split(both[0])]
        return AllOf(parts) if both == ["&"] else AnyOf(parts)
    body, *pairs = text.strip().split(";")
    settings = _Settings(text, {})
    for pair in pairs:
        key, equals, value = pair.strip().partition("=")
        if not equals:
            raise InvalidInputError(f"success {text!r}: {pair!r} should be name=value")
        settings.values[key] = value
    kind, colon, rest = body.partition(":")
    if not colon and body.startswith("tool@"):
        kind, rest = "tool", body[len("tool"):]
    maker = _MAKERS.get(kind)
    if maker is None or not rest:
        raise unknown_name("success detector", text, KINDS)
    return maker(rest, rig, settings)


def _sensor(rest: str, rig: Rig, settings: _Settings) -> SuccessDetector:
    name, sign, value = next(
        ((*rest.partition(sign),) for sign in "><" if sign in rest), (rest, "", "")
    )
    if not sign:
        raise unknown_name("success detector", settings.text, KINDS)
    if name not in rig.sensors:
        raise unknown_name("sensor", name, rig.sensors)
    made = SensorSuccess(
        rig.sensors[name], _number(value, settings.text), above=sign == ">",
        hold_s=settings.take("hold", 0.0), hysteresis=settings.take("hysteresis", 0.0),
        max_age_s=settings.take("max_age", 0.5),
    )
    settings.done("hold", "hysteresis", "max_age")
    return made


def _body(rest: str, rig: Rig, settings: _Settings) -> SuccessDetector:
    name, point, far = _place(rest, settings)
    made = BodyPoseSuccess(rig.tracker, name, point, far, axes=settings.name("axes", "xyz"),
                           max_age_s=settings.take("max_age", 0.2))
    settings.done("axes", "max_age")
    return made


def _tool(rest: str, rig: Rig, settings: _Settings) -> SuccessDetector:
    _, point, far = _place(rest, settings)
    made = ToolPoseSuccess(rig.arm, point, far, axes=settings.name("axes", "xyz"),
                           max_age_s=settings.take("max_age", 0.2))
    settings.done("axes", "max_age")
    return made


def _image(rest: str, rig: Rig, settings: _Settings) -> SuccessDetector:
    goal = GoalImage.load(rest)
    name = settings.name("camera", next(iter(rig.cameras), ""))
    if name not in rig.cameras:
        raise unknown_name("camera", name, rig.cameras)
    votes, window = int(settings.take("votes", 1)), int(settings.take("window", 1))
    made = GoalImageSuccess(rig.cameras[name], goal, max_age_s=settings.take("max_age", 0.5))
    settings.done("camera", "votes", "window", "max_age")
    return Vote(made, votes, window) if window > 1 else made


def _classifier(rest: str, rig: Rig, settings: _Settings) -> SuccessDetector:
    classifier = Classifier.load(rest)
    info = classifier.info
    made = ClassifierSuccess(
        rig.cameras, classifier, votes=int(settings.take("votes", info.votes)),
        window=int(settings.take("window", info.window)), max_age_s=settings.take("max_age", 0.5),
    )
    settings.done("votes", "window", "max_age")
    return made


_MAKERS: dict[str, Callable[[str, Rig, _Settings], SuccessDetector]] = {
    "sensor": _sensor, "body": _body, "tool": _tool, "image": _image, "classifier": _classifier,
}


def _place(rest: str, settings: _Settings) -> tuple[str, list[float], float]:
    found = _POINT.fullmatch(rest)
    if found is None:
        raise unknown_name("success detector", settings.text, KINDS)
    point = [_number(value, settings.text) for value in found["point"].split(",")]
    return found["name"], point, _number(found["far"], settings.text)


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInputError(f"success {whole!r}: {text!r} is no number") from None
