"""The environment on rigs that cannot be placed anew: resets by the arm, watches, kept holds."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import numpy as np
import pytest

from robot_rl.envs import factory, make_env
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import Placement, Wrench
from robot_rl.safety import Latch

pytest.importorskip("mujoco")

START = Placement(np.array([0.0, 0.0, 0.15]))


class Carrier:
    """A resetter that brings the arm to its start with the filter's own commands."""

    def __init__(self, arrives: bool = True) -> None:
        self.arrives = arrives
        self.asked: list[Placement] = []
        self.env: Any = None

    def reset(self, placement: Placement) -> bool:
        self.asked.append(placement)
        safety, clock = self.env.safety, self.env.rig.clock
        for _ in range(40):
            way = placement.tool_m - safety.setpoint_tool_m
            safety.move(np.clip(way, -0.02, 0.02), 0.0, 0.1)
            clock.sleep_until(clock.now_s() + 0.1)
        return self.arrives


@pytest.fixture
def hardware(monkeypatch, tmp_path):
    """Makes environments on simulated rigs that look like hardware: no scene, an address."""
    monkeypatch.setenv("ROBOT_RL_STATE_DIR", str(tmp_path))
    made, requests = [], []
    make_rig = factory.make_rig

    def disguised(backend: str, request: Any) -> Any:
        requests.append(request)
        rig = make_rig(backend, dataclasses.replace(request, options={}, cameras={}))
        rig.scene, rig.address = None, "10.0.0.2"
        rig.watches["door"] = lambda: disguised.said
        return rig

    def make(**options: Any) -> Any:
        carrier = options.pop("resetter", None) or Carrier()
        env = make_env("Reach", "panda", resetter=carrier, **options)
        carrier.env = env
        made.append(env)
        return env

    disguised.said = None
    monkeypatch.setattr(factory, "make_rig", disguised)
    make.rig, make.requests, make.folder = disguised, requests, tmp_path
    yield make
    for env in made:
        env.close()


def held_within(env: Any, time_s: float) -> str | None:
    until = time.monotonic() + time_s
    while env.safety.held is None and time.monotonic() < until:
        time.sleep(0.005)
    return env.safety.held


def watchdogs() -> int:
    return sum(thread.name == "robot_rl-watchdog" for thread in threading.enumerate())


def test_in_simulation_a_resetter_can_do_what_the_simulator_would():
    carrier = Carrier()
    env = carrier.env = make_env("Reach", "panda", resetter=carrier, obs="image", image_size=16)
    target = Placement(np.array([0.1, -0.1, 0.2]))
    for start in (START, target):
        before = env.rig.arm.state(1.0).position_rad
        observation, info = env.reset(seed=0, options={"start": start})
        assert carrier.asked[-1] is start
        np.testing.assert_allclose(info["state"][:3], start.tool_m, atol=2e-3)
        assert observation["desired_goal"].std() > 0.0
        assert env.safety.counters.commands == 0, "counted from the start of the episode"
        env.step(np.zeros(3))
    assert not np.array_equal(before, env.rig.arm.state(1.0).position_rad)
    assert watchdogs() == 0
    env.close()


def test_a_reset_that_fails_holds_the_arm():
    carrier = Carrier(arrives=False)
    env = carrier.env = make_env("Reach", "panda", resetter=carrier)
    with pytest.raises(SafetyError, match="the world could not be brought to its start"):
        env.reset(seed=0)
    assert env.safety.held == "the world could not be brought to its start"
    with pytest.raises(InvalidInputError, match=r"step\(\) was called before reset\(\)"):
        env.step(np.zeros(3))
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resets": "hand"}, "unknown resets 'hand'; valid: auto, scene, arm"),
    ],
)
def test_ways_to_reset_are_checked(options, message):
    with pytest.raises(InvalidInputError, match=message):
        make_env("Reach", "panda", **options)


def test_hardware_has_no_scene_to_place(hardware):
    with pytest.raises(InvalidInputError, match="resets is 'scene', but this rig has no simulated"):
        make_env("Reach", "panda", resets="scene")
    assert watchdogs() == 0


@pytest.mark.parametrize("backend", ["mujoco", "pybullet"])
def test_a_simulated_rig_is_reached_by_nothing(backend):
    pytest.importorskip(backend)
    with pytest.raises(InvalidInputError, match=r"rig option 'robot_ip' .* rig takes none"):
        make_env("Reach", "panda", backend, rig_options={"robot_ip": "10.0.0.2"})
    with pytest.raises(InvalidInputError, match=r"'front' is given as 'opencv:0'.*: front, side"):
        make_env("Reach", "panda", backend, camera_sources={"front": "opencv:0"})


def test_how_hardware_is_reached_gets_to_the_backend(hardware):
    hardware(rig_options={"robot_ip": "10.0.0.2"}, camera_sources={"front": "opencv:0"},
             control_hz=12.8)
    request = hardware.requests[-1]
    assert request.options == {"robot_ip": "10.0.0.2"}
    assert request.cameras == {"front": "opencv:0"}
    rows = request.control_period_s / request.setpoint_period_s
    steps = request.setpoint_period_s / request.physics_step_s
    assert rows == pytest.approx(round(rows), abs=1e-9) and rows >= 4
    assert steps == pytest.approx(round(steps), abs=1e-9)
    assert request.physics_step_s <= 0.005 and request.setpoint_period_s <= 0.02
    hardware()
    assert hardware.requests[-1].options == {} and hardware.requests[-1].cameras == {}


def test_an_episode_on_hardware_is_watched_from_beside(hardware):
    env = hardware()
    assert watchdogs() == 1
    observation, _ = env.reset(seed=0, options={"start": START})
    np.testing.assert_allclose(observation["observation"][:3], START.tool_m, atol=2e-3)
    env.step([0.5, 0.0, 0.0])
    hardware.rig.said = "the door is open"
    assert held_within(env, 10.0) == "the door is open"
    with pytest.raises(SafetyError, match="the door is open"):
        env.step([0.5, 0.0, 0.0])
    env.close()
    assert watchdogs() == 0
    # The next program finds the arm held, until an operator removes what was kept.
    hardware.rig.said = None
    again = hardware()
    with pytest.raises(SafetyError, match="the door is open"):
        again.reset(seed=0)
    Latch("panda", "10.0.0.2").clear()
    until = time.monotonic() + 10.0
    while again.safety.held is not None and time.monotonic() < until:
        time.sleep(0.005)
    again.reset(seed=0, options={"start": START})


def test_the_end_of_an_episode_and_a_pause_are_no_silence(hardware):
    env = hardware(max_episode_steps=2)
    env.reset(seed=0, options={"start": START})
    assert env.rig.clock.now_s() > 0.0
    env.rig.clock.sleep_until(env.rig.clock.now_s() + 1.0)
    begun = env.rig.clock.now_s()
    env.step([0.5, 0.0, 0.0])
    # A pause before the first step is not made up for.
    assert env.rig.clock.now_s() == pytest.approx(begun + 0.1, abs=1e-9)
    assert env.step([0.5, 0.0, 0.0])[3]
    env.rig.clock.sleep_until(env.rig.clock.now_s() + 1.0)
    env.safety.watch()
    assert env.safety.held is None
    env.reset(seed=1, options={"start": START})


def test_a_step_looks_where_there_is_no_watchdog():
    env = make_env("Reach", "panda")
    env.reset(seed=0)
    env.safety.add_watch("door", lambda: "the door is open")
    env.step(np.zeros(3))
    assert env.safety.held == "the door is open"
    env.close()


@pytest.mark.parametrize("limit", [None, 20.0])
def test_a_simulated_push_holds_only_where_a_limit_is_asked_for(limit, monkeypatch):
    env = make_env("Reach", "panda", safety=None if limit is None else {"max_force_n": limit})
    env.reset(seed=0)
    monkeypatch.setattr(env.rig.force, "wrench",
                        lambda age: Wrench(np.array([0.0, 0.0, 25.0]), np.zeros(3), 0.0))
    env.step(np.zeros(3))
    assert (env.safety.held is None) == (limit is None)
    env.close()


def test_a_reading_that_is_too_old_holds_the_arm(monkeypatch):
    env = make_env("Push", "panda")
    env.reset(seed=0)

    def stale(name: str, max_age_s: float) -> Any:
        raise StaleDataError(f"the pose of {name} is 3 s old")

    monkeypatch.setattr(env.rig.tracker, "body", stale)
    with pytest.raises(StaleDataError, match="the pose of puck is 3 s old"):
        env.step(np.zeros(3))
    assert env.safety.held == "the pose of puck is 3 s old"
    env.close()


def test_without_images_hardware_needs_no_camera(hardware):
    make_rig = factory.make_rig

    def blind(backend: str, request: Any) -> Any:
        rig = make_rig(backend, request)
        rig.cameras = {}
        return rig

    factory.make_rig = blind
    try:
        env = hardware(camera_sources={"front": "none"})
        assert env.camera_names == ()
        # It was asked for all the same: the rig sees to its watch.
        assert hardware.requests[-1].cameras == {"front": "none"}
        for options in ({"obs": "image"}, {"render_mode": "rgb_array"}):
            with pytest.raises(InvalidInputError, match="front"):
                hardware(**options)
    finally:
        factory.make_rig = make_rig


def test_an_action_beyond_one_counts_as_limited():
    env = make_env("Reach", "panda")
    env.reset(seed=0, options={"start": START})
    _, _, _, _, info = env.step(np.array([0.0, 0.0, 0.5]))
    assert not info["action_limited"] and info["safety_limited"] == 0
    _, _, _, _, info = env.step(np.array([0.0, 0.0, 10.0]))
    assert info["action_limited"] and info["safety_limited"] == 1
    assert info["executed_action"].tolist() == [0.0, 0.0, 1.0]
    env.close()


def test_close_lets_a_real_arm_come_to_rest_before_its_stream_ends(hardware):
    env = hardware()
    env.reset(seed=0, options={"start": START})
    for _ in range(4):
        env.step(np.array([1.0, 0.0, 0.0]))
    arm, safety, closed = env.rig.arm, env.safety, []
    assert arm.sent() < safety._plan.end
    env.rig.close = lambda: closed.append((safety._plan.end - arm.sent(), env._watchdog))
    begun = watchdogs()
    env.close()
    env.close()
    assert closed == [(0, env._watchdog)]
    assert safety.held is None and watchdogs() == begun - 1


def test_a_rig_is_closed_whatever_happens_on_the_way(hardware):
    env = hardware()
    closed = []
    env.rig.close = lambda: closed.append(True)

    def broken() -> bool:
        raise RuntimeError("a fault in the filter")

    env.safety.settle = broken
    with pytest.raises(RuntimeError, match="a fault in the filter"):
        env.close()
    assert closed == [True]


def picture(level: int) -> Any:
    return np.full((48, 48, 3), level, np.uint8)


def test_goal_images_on_hardware_are_given_or_black(hardware, tmp_path):
    env = hardware(obs="image")
    start = {"start": START}
    observation, _ = env.reset(seed=0, options=start)
    assert not observation["desired_goal"].any() and env.beginning()["goal_image"] == "none"
    observation, _ = env.reset(options={**start, "goal_image": picture(7)})
    assert (observation["desired_goal"] == 7).all()
    assert env.beginning()["goal_image"] == "given"
    for bad in (picture(7)[:-1], picture(7).astype(np.float32), "front.png"):
        sent = env.rig.arm.sent()
        with pytest.raises(InvalidInputError, match="goal images: option goal_image has shape"):
            env.reset(options={**start, "goal_image": bad})
        assert env.rig.arm.sent() == sent
    observation, _ = env.reset(options=start)
    assert not observation["desired_goal"].any()


def test_goal_images_from_files(hardware, tmp_path):
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path / "goals"
    folder.mkdir()
    np.save(folder / "a.npy", picture(10))
    red = picture(0)
    red[..., 0] = 200
    cv2.imwrite(str(folder / "b.png"), red[..., ::-1])
    (folder / "notes.txt").write_text("not a picture")
    env = hardware(obs="image", goal_image=str(folder / "b.png"))
    observation, _ = env.reset(seed=0, options={"start": START})
    assert np.array_equal(observation["desired_goal"], red)
    env.close()
    env = hardware(obs="image", goal_image=str(folder))
    seen = {int(env.reset(options={"start": START})[0]["desired_goal"][0, 0, 0]) for _ in range(8)}
    assert seen == {10, 200}
    for bad, why in ((tmp_path / "none.png", "cannot be read"), (tmp_path, "holds no .png"),
                     (folder / "notes.txt", "is no .png")):
        with pytest.raises(InvalidInputError, match=f"goal images: .*{why}"):
            hardware(obs="image", goal_image=str(bad))
    np.save(folder / "c.npy", picture(1)[:20])
    with pytest.raises(InvalidInputError, match=r"c.npy has shape \(20, 48, 3\)"):
        hardware(obs="image", goal_image=str(folder))
    (folder / "d.png").write_bytes(b"no picture")
    with pytest.raises(InvalidInputError, match=r"d\.png is no picture"):
        hardware(obs="image", goal_image=str(folder / "d.png"))
    with pytest.raises(InvalidInputError, match="goes with obs='image'"):
        hardware(goal_image=str(folder))


def test_in_simulation_a_given_goal_image_stands_before_the_rendered_one():
    env = make_env("Reach", "panda", obs="image")
    rendered = env.reset(seed=0)[0]["desired_goal"]
    assert rendered.any() and "goal_image" not in env.beginning()
    given = env.reset(seed=0, options={"goal_image": picture(3)})[0]["desired_goal"]
    assert (given == 3).all()
    assert np.array_equal(env.reset(seed=0)[0]["desired_goal"], rendered)
    env.close()
    state = make_env("Reach", "panda")
    with pytest.raises(InvalidInputError, match="goes with obs='image'"):
        state.reset(seed=0, options={"goal_image": picture(3)})
    state.close()
