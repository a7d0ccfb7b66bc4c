"""Detectors of success: by sensor, pose, goal image, classifier, put together, and from text."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.envs.success import (
    AllOf,
    AnyOf,
    BodyPoseSuccess,
    GoalImage,
    GoalImageSuccess,
    SensorSuccess,
    ToolPoseSuccess,
    ValueSuccess,
    Vote,
    calibrate,
)
from robot_rl.envs.success.base import begin_episode
from robot_rl.envs.success.parse import make_success
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import BodyState, Frame, JointState, Reading, SuccessDetector
from robot_rl.kinematics import Kinematics, quat_from_rotation, rotation_from_rpy
from robot_rl.specs import load_robot

GOAL = np.zeros(2)


class Said:
    """A detector that says what it is told to."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.begun: list[Any] = []
        self.asked = 0

    def success(self) -> bool:
        self.asked += 1
        return self.answers.pop(0)

    def begin(self, goal: Any) -> None:
        self.begun.append(goal)


class Meter:
    """A sensor whose readings are written into it."""

    def __init__(self) -> None:
        self.name, self.unit = "drawer", "m"
        self.value, self.stamp_s, self.max_age_s = 0.0, 0.0, math.nan

    def read(self, max_age_s: float) -> Reading:
        self.max_age_s = max_age_s
        return Reading(self.value, self.stamp_s)


def fed(detector: SensorSuccess, meter: Meter, *readings: tuple[float, float]) -> list[bool]:
    out = []
    for stamp_s, value in readings:
        meter.stamp_s, meter.value = stamp_s, value
        out.append(detector.success())
    return out


# -- sensors ------------------------------------------------------------------------------------


def test_a_sensor_beyond_its_threshold_is_success():
    meter = Meter()
    above = SensorSuccess(meter, 0.1)
    assert isinstance(above, SuccessDetector)
    assert fed(above, meter, (0, 0.09), (1, 0.1), (2, 0.2), (3, 0.0)) == [False, True, True, False]
    below = SensorSuccess(meter, 0.1, above=False, max_age_s=0.3)
    assert fed(below, meter, (0, 0.11), (1, 0.1), (2, 0.0)) == [False, True, True]
    assert meter.max_age_s == 0.3


def test_a_contact_that_bounces_is_not_success_until_it_holds():
    meter = Meter()
    detector = SensorSuccess(meter, 0.5, hold_s=0.2)
    assert fed(detector, meter, (0.0, 1), (0.1, 0), (0.2, 1), (0.3, 1), (0.39, 1)) == [False] * 5
    later = fed(detector, meter, (0.4, 1), (0.5, 1), (0.6, 0), (0.7, 1))
    assert later == [True, True, False, False]
    # The hold is counted in the readings' own time: the same reading again holds nothing longer.
    meter2 = Meter()
    again = SensorSuccess(meter2, 0.5, hold_s=0.2)
    assert fed(again, meter2, *[(1.0, 1)] * 20) == [False] * 20


def test_a_new_episode_forgets_the_hold():
    meter = Meter()
    detector = SensorSuccess(meter, 0.5, hold_s=0.2)
    assert fed(detector, meter, (0.0, 1), (0.2, 1)) == [False, True]
    begin_episode(detector, GOAL)
    assert fed(detector, meter, (0.3, 1), (0.4, 1), (0.5, 1)) == [False, False, True]


def test_hysteresis_bridges_a_tremble_but_does_not_begin_a_hold():
    meter = Meter()
    detector = SensorSuccess(meter, 0.10, hysteresis=0.02, hold_s=0.2)
    assert fed(detector, meter, (0.0, 0.09)) == [False]
    readings = [(0.1, 0.101), (0.2, 0.085), (0.3, 0.1), (0.4, 0.079), (0.5, 0.09)]
    assert fed(detector, meter, *readings) == [False, False, True, False, False]


def test_a_sensor_that_fails_is_never_success():
    meter = Meter()
    meter.value = math.nan
    with pytest.raises(SafetyError, match="'drawer' reports nan"):
        SensorSuccess(meter, 0.1).success()

    class Stale(Meter):
        def read(self, max_age_s: float) -> Reading:
            raise StaleDataError("old")

    with pytest.raises(StaleDataError):
        SensorSuccess(Stale(), 0.1).success()


@pytest.mark.parametrize("options", [{"threshold": math.nan}, {"threshold": 1, "hold_s": -1},
                                     {"threshold": 1, "hysteresis": math.inf},
                                     {"threshold": 1, "max_age_s": 0.0}])
def test_a_sensor_detector_refuses_what_makes_no_sense(options):
    with pytest.raises(InvalidInputError):
        SensorSuccess(Meter(), **options)


# -- poses --------------------------------------------------------------------------------------


class Tracker:
    def __init__(self) -> None:
        self.position = np.zeros(3)
        self.rotation = np.eye(3)

    def body(self, name: str, max_age_s: float) -> BodyState:
        assert name == "puck" and max_age_s == 0.2
        quat = quat_from_rotation(self.rotation)
        return BodyState(self.position, quat, np.zeros(3), np.zeros(3))

    def joint(self, name: str, max_age_s: float) -> tuple[float, float]:
        return 0.0, 0.0


def test_a_body_at_a_point_is_success():
    tracker = Tracker()
    detector = BodyPoseSuccess(tracker, "puck", [0.1, 0.2, 0.3], 0.05)
    tracker.position = np.array([0.1, 0.2, 0.349])
    assert detector.success()
    tracker.position = np.array([0.14, 0.24, 0.3])
    assert not detector.success()
    flat = BodyPoseSuccess(tracker, "puck", [0.1, 0.2, 0.3], 0.05, axes="xy")
    tracker.position = np.array([0.1, 0.24, 99.0])
    assert flat.success() and not detector.success()
    tracker.position = np.array([np.nan, 0.0, 0.0])
    with pytest.raises(SafetyError, match="not finite"):
        detector.success()


@given(st.floats(-10.0, 10.0), st.floats(-10.0, 10.0), st.floats(-1.5, 1.5), st.floats(-3.0, 3.0))
@settings(max_examples=200, deadline=None)
def test_turns_are_compared_all_round(yaw, other, pitch, roll):
    tracker = Tracker()
    wanted = rotation_from_rpy((roll, pitch, yaw))
    tracker.rotation = rotation_from_rpy((0.0, 0.0, other)) @ wanted
    # A turn about the world's z by `other`: its size is the angle wrapped.
    turn = abs(math.remainder(other, 2.0 * math.pi))
    quat = quat_from_rotation(wanted)
    if turn < math.pi - 1e-3:
        assert BodyPoseSuccess(tracker, "puck", np.zeros(3), 1.0, quat, turn + 1e-3).success()
    if turn > 2e-3:
        assert not BodyPoseSuccess(tracker, "puck", np.zeros(3), 1.0, quat, turn - 1e-3).success()
        # A quaternion and its negative are the same orientation.
        assert not BodyPoseSuccess(tracker, "puck", np.zeros(3), 1.0, -quat, turn - 1e-3).success()


def test_a_symmetric_body_may_be_turned():
    tracker = Tracker()
    upright = [0.0, 0.0, 0.0, 1.0]
    cube = BodyPoseSuccess(tracker, "puck", np.zeros(3), 1.0, upright, 0.1, symmetry=4)
    plain = BodyPoseSuccess(tracker, "puck", np.zeros(3), 1.0, upright, 0.1)
    for degrees, fits in ((0, True), (95, True), (-90, True), (180, True), (45, False),
                          (82, False)):
        tracker.rotation = rotation_from_rpy((0.0, 0.0, math.radians(degrees)))
        assert cube.success() is fits
        assert plain.success() is (abs(degrees) < 6)
    # Lying on its side is another matter.
    tracker.rotation = rotation_from_rpy((math.pi / 2, 0.0, 0.0))
    assert not cube.success()


def test_the_tool_at_a_point_is_success():
    spec = load_robot("sawyer")
    q = np.array(spec.home_rad)
    arm = SimpleNamespace(spec=spec, state=lambda age: JointState(q, np.zeros(7), 0.0))
    tool = Kinematics(spec).forward(q)[:3, 3] - np.array(spec.workspace_origin_m)
    assert ToolPoseSuccess(arm, tool + [0.0, 0.0, 0.0029], 0.003).success()
    assert not ToolPoseSuccess(arm, tool + [0.0, 0.0, 0.0031], 0.003).success()


def test_a_value_on_a_circle_is_compared_round_it():
    angle = [0.0]
    detector = ValueSuccess(lambda: angle[0], 3.1, 0.1, period=2.0 * math.pi)
    for value, fits in ((3.1, True), (-3.12, True), (3.25, False), (-3.0, False),
                        (3.1 + 40 * math.pi, True)):
        angle[0] = value
        assert detector.success() is fits
    assert not ValueSuccess(lambda: -3.12, 3.1, 0.1).success()
    with pytest.raises(SafetyError):
        ValueSuccess(lambda: math.inf, 0.0, 1.0).success()


@pytest.mark.parametrize("arguments", [
    ([0, 0], 0.1), ([0, 0, np.nan], 0.1), ([0, 0, 0], 0.0), ([0, 0, 0], 0.1, [0, 0, 0, 0]),
    ([0, 0, 0], 0.1, [0, 0, 1]), ([0, 0, 0], 0.1, [0, 0, 0, 1], 4.0), ("abc", 0.1),
])
def test_a_pose_detector_refuses_what_makes_no_sense(arguments):
    with pytest.raises(InvalidInputError):
        BodyPoseSuccess(Tracker(), "puck", *arguments)
    for more in ({"axes": "xw"}, {"axes": ""}, {"symmetry": 0}):
        with pytest.raises(InvalidInputError):
            BodyPoseSuccess(Tracker(), "puck", np.zeros(3), 0.1, **more)


# -- goal images --------------------------------------------------------------------------------


def picture(rng: np.random.Generator, at: int, noise: float = 4.0) -> np.ndarray:
    """A dark square, ``at`` pixels to the right, on a noisy bright table."""
    image = np.full((24, 32, 3), 180.0)
    image[8:14, at:at + 6] = (30.0, 40.0, 90.0)
    return np.clip(image + rng.normal(0.0, noise, image.shape), 0, 255).astype(np.uint8)


def test_the_distance_of_images_is_the_mean_absolute_difference():
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 256, (6, 8, 3)).astype(np.uint8) for _ in range(2))
    brute = np.mean([abs(int(a) - int(b)) for a, b in zip(one.flat, two.flat, strict=True)]) / 255
    assert GoalImage(one, 0.5).distance(two) == pytest.approx(brute)
    part = GoalImage(one, 0.5, (1, 2, 4, 7))
    cut = [abs(int(one[r, c, k]) - int(two[r, c, k]))
           for r in range(1, 4) for c in range(2, 7) for k in range(3)]
    assert part.distance(two) == pytest.approx(np.mean(cut) / 255)
    grey = GoalImage(np.zeros((4, 4, 3), np.uint8), 0.5, grey=True)
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert grey.distance(red) == pytest.approx(0.299)
    assert GoalImage(one, 0.5).distance(one) == 0.0


def test_a_threshold_from_examples_lets_no_failure_through():
    rng = np.random.default_rng(1)
    goal = picture(rng, 12)
    found = calibrate(goal, [picture(rng, 12) for _ in range(10)],
                      [picture(rng, at) for at in (4, 8, 16, 20)])
    assert found.recall == 1.0 and found.positives.max() < found.goal.threshold
    assert found.goal.threshold < found.negatives.min()
    camera = SimpleNamespace(name="front", read=lambda age: Frame(shown[0], 0.0))
    detector = GoalImageSuccess(camera, found.goal)
    shown = [picture(rng, 12)]
    assert detector.success()
    shown[0] = picture(rng, 15)
    assert not detector.success()


def test_an_outlier_among_the_successes_is_given_up_but_half_of_them_is_too_many():
    rng = np.random.default_rng(2)
    goal = picture(rng, 12)
    good, bad = [picture(rng, 12) for _ in range(4)], [picture(rng, 8)]
    found = calibrate(goal, [*good, picture(rng, 2)], bad)
    assert found.recall == 0.8 and found.goal.threshold < found.negatives.min()
    with pytest.raises(InvalidInputError, match="does not tell success from failure: 1 of 4"):
        calibrate(goal, [good[0], *(picture(rng, at) for at in (0, 2, 4))], bad)
    with pytest.raises(InvalidInputError, match="needs images of success and of failure"):
        calibrate(goal, good, [])


def test_a_goal_image_is_kept_in_a_file(tmp_path):
    rng = np.random.default_rng(3)
    kept = GoalImage(picture(rng, 3), 0.125, (1, 2, 20, 30), grey=True)
    kept.save(tmp_path / "goal.npz")
    back = GoalImage.load(tmp_path / "goal.npz")
    np.testing.assert_array_equal(back.image, kept.image)
    assert (back.threshold, back.region, back.grey) == (0.125, (1, 2, 20, 30), True)
    whole = GoalImage(picture(rng, 3), 0.5)
    whole.save(tmp_path / "whole.npz")
    assert GoalImage.load(tmp_path / "whole.npz").region is None


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"\x93NUMPY"])
def test_a_damaged_goal_image_is_one_line(tmp_path, content):
    path = tmp_path / "goal.npz"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"goal image: .* is not one"):
        GoalImage.load(path)
    with pytest.raises(InvalidInputError, match="does not exist"):
        GoalImage.load(tmp_path / "none.npz")
    rng = np.random.default_rng(0)
    GoalImage(picture(rng, 3), 0.5).save(path)
    np.savez(tmp_path / "pickled.npz", image=np.array([object()], dtype=object),
             about=np.array("{}"))
    with pytest.raises(InvalidInputError, match="is not one"):
        GoalImage.load(tmp_path / "pickled.npz")


def test_a_goal_image_refuses_what_does_not_fit():
    image = np.zeros((8, 8, 3), np.uint8)
    for options in ({"threshold": 0.0}, {"threshold": 2.0}, {"threshold": math.nan},
                    {"threshold": 0.1, "region": (0, 0, 9, 8)},
                    {"threshold": 0.1, "region": (4, 0, 4, 8)}):
        with pytest.raises(InvalidInputError):
            GoalImage(image, **options)
    with pytest.raises(InvalidInputError, match="uint8"):
        GoalImage(image.astype(np.float32), 0.1)
    with pytest.raises(InvalidInputError, match="has shape"):
        GoalImage(image, 0.1).distance(np.zeros((9, 8, 3), np.uint8))


# -- put together -------------------------------------------------------------------------------


def test_all_and_any_ask_every_part_every_time():
    parts = [Said(False, True, True), Said(True, False, True)]
    both = AllOf(parts)
    assert [both.success() for _ in range(3)] == [False, False, True]
    assert [part.asked for part in parts] == [3, 3]
    parts = [Said(True, False, False), Said(True, True, False)]
    either = AnyOf(parts)
    assert [either.success() for _ in range(3)] == [True, True, False]
    assert [part.asked for part in parts] == [3, 3]
    either.begin(GOAL)
    assert [part.begun for part in parts] == [[GOAL], [GOAL]]
    with pytest.raises(InvalidInputError):
        AllOf([])


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_a_vote_counts_the_last_answers(answers, votes, more):
    window = votes + more
    vote = Vote(Said(*answers), votes, window)
    for k in range(len(answers)):
        assert vote.success() == (sum(answers[max(0, k + 1 - window):k + 1]) >= votes)


def test_a_vote_starts_anew_with_an_episode():
    vote = Vote(Said(True, True, True, False, True), 2, 3)
    assert [vote.success(), vote.success()] == [False, True]
    vote.begin(GOAL)
    assert [vote.success() for _ in range(3)] == [False, False, True]
    for votes, window in ((0, 3), (4, 3)):
        with pytest.raises(InvalidInputError):
            Vote(Said(), votes, window)


# -- from text ----------------------------------------------------------------------------------


def make_rig(tmp_path: Any) -> Any:
    rng = np.random.default_rng(0)
    goal = picture(rng, 12)
    GoalImage(goal, 0.01).save(tmp_path / "goal.npz")
    spec = load_robot("panda")
    home = np.array(spec.home_rad)
    tool = Kinematics(spec).forward(home)[:3, 3] - np.array(spec.workspace_origin_m)
    rig = SimpleNamespace(
        arm=SimpleNamespace(spec=spec, state=lambda age: JointState(home, np.zeros(7), 0.0)),
        sensors={"drawer": Meter()}, tracker=Tracker(),
        cameras={"front": SimpleNamespace(name="front", read=lambda age: Frame(goal, 0.0))},
    )
    return rig, tool


def test_detectors_are_made_from_text(tmp_path):
    rig, tool = make_rig(tmp_path)
    rig.sensors["drawer"].value = 0.2
    place = ",".join(f"{x:.4f}" for x in tool)
    for text, expected in (
        ("sensor:drawer>0.1", True), ("sensor:drawer<0.1", False),
        ("sensor:drawer>0.1;hold=0.5", False), ("body:puck@0,0,0.01~0.02", True),
        ("body:puck@0,0,0.05~0.02", False), ("body:puck@0,0,0.05~0.02;axes=xy", True),
        (f"tool@{place}~0.003", True), ("tool@1,1,1~0.003", False),
        (f"image:{tmp_path}/goal.npz", True), (f"image:{tmp_path}/goal.npz;camera=front", True),
        (f"image:{tmp_path}/goal.npz;votes=2;window=3", False),
        ("sensor:drawer>0.1 & sensor:drawer<0.1", False),
        ("sensor:drawer>0.1 | sensor:drawer<0.1", True),
    ):
        assert make_success(text, rig).success() is expected, text


@pytest.mark.parametrize("text", [
    "", "sensor", "sensor:drawer", "sensor:none>1", "sensor:drawer>x", "sensor:drawer>1;hold",
    "sensor:drawer>1;often=2", "body:puck@0,0~1", "body:puck@0,0,0", "body:puck@0,0,0~0",
    "tool:x", "image:none.npz", "classifier:none.safetensors", "a & b | c",
    "sensor:drawer>1&", "sensor:drawer>nan",
])
def test_text_that_says_nothing_is_refused_in_one_line(tmp_path, text):
    rig, _ = make_rig(tmp_path)
    with pytest.raises(InvalidInputError) as caught:
        make_success(text, rig)
    assert "\n" not in str(caught.value)
