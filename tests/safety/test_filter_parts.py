"""The parts of the safety filter one by one: envelope, torques, the latch, the watchdog."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.storm.checker import MAKERS, Limits
from robot_rl.kinematics import Kinematics
from robot_rl.safety.dynamics import InverseDynamics
from robot_rl.safety.envelope import VelocityEnvelope
from robot_rl.safety.latch import Latch
from robot_rl.safety.watchdog import Watchdog
from robot_rl.specs import load_robot

ROBOTS = ("fr3", "panda", "sawyer")

# -- velocity envelope --------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_envelope_is_the_makers(robot):
    spec, rng = load_robot(robot), np.random.default_rng(1)
    envelope, limits = VelocityEnvelope(spec), Limits(MAKERS[robot], (0,) * 3, (1,) * 3)
    rows = rng.uniform(spec.limits("lower_rad"), spec.limits("upper_rad"), (200, 7))
    direction = rng.normal(0.0, 1.0, (200, 7))
    expected = limits.envelope(rows, direction)
    got = np.broadcast_to(envelope.limit(rows, direction), rows.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_array_equal(envelope.limit(rows[0], direction[0]), got[0])
    assert envelope.varies == (robot == "fr3")


def test_the_envelope_is_zero_past_the_limit_and_up_is_the_way_of_no_motion():
    spec = load_robot("fr3")
    envelope, still = VelocityEnvelope(spec), np.zeros(7)
    above, below = spec.limits("upper_rad") + 0.01, spec.limits("lower_rad") - 0.01
    assert envelope.limit(above, still + 1.0).tolist() == [0.0] * 7
    assert envelope.limit(below, still - 1.0).tolist() == [0.0] * 7
    near = spec.limits("upper_rad") - 0.2
    np.testing.assert_array_equal(envelope.limit(near, still), envelope.limit(near, still + 1.0))
    assert (envelope.limit(near, still) < envelope.limit(near, still - 1.0)).all()


def test_where_the_fr3_stands_still_it_could_still_go():
    spec = load_robot("fr3")
    envelope = VelocityEnvelope(spec)
    maker = MAKERS["fr3"]
    zero = np.square(maker.envelope_offset) / 2.0 / np.asarray(maker.envelope_deceleration)
    np.testing.assert_allclose(envelope.standstill_rad, zero + 0.01, rtol=1e-12)
    at = spec.limits("upper_rad") - envelope.standstill_rad
    assert (envelope.limit(at, np.ones(7)) > 0.03).all()
    assert VelocityEnvelope(load_robot("panda")).standstill_rad.tolist() == [0.0] * 7


# -- torques ------------------------------------------------------------------------------------


def motion(robot: str, count: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    spec, rng = load_robot(robot), np.random.default_rng(3)
    q = rng.uniform(spec.limits("lower_rad"), spec.limits("upper_rad"), (count, 7))
    return q, rng.normal(0.0, 1.0, (count, 7)), rng.normal(0.0, 5.0, (count, 7))


@pytest.mark.parametrize("robot", ROBOTS)
def test_torques_are_those_of_another_engine(robot):
    mujoco = pytest.importorskip("mujoco")
    from robot_rl_sim.urdf_writer import urdf_text

    spec = load_robot(robot)
    model = mujoco.MjModel.from_xml_string(urdf_text(spec))
    model.dof_armature[:] = model.dof_damping[:] = model.dof_frictionloss[:] = 0.0
    model.opt.disableflags |= (mujoco.mjtDisableBit.mjDSBL_CONTACT
                               | mujoco.mjtDisableBit.mjDSBL_LIMIT)
    data = mujoco.MjData(model)
    joints = [model.joint(name) for name in spec.joint_names]
    for name in spec.gripper.finger_joints:
        data.qpos[model.joint(name).qposadr] = 0.5 * spec.gripper.finger_stroke_m
    q, v, a = motion(robot)
    frames, _ = Kinematics(spec).frames(q)
    got = InverseDynamics(spec).torque(frames, v, a)
    assert got.shape == (12, 7)
    # Some of the Panda's published inertias no body could have; MuJoCo evens them out.
    tolerance = 0.05 if robot == "panda" else 1e-3
    for row in range(12):
        for column, joint in enumerate(joints):
            data.qpos[joint.qposadr], data.qvel[joint.dofadr] = q[row, column], v[row, column]
            data.qacc[joint.dofadr] = a[row, column]
        mujoco.mj_inverse(model, data)
        expected = [float(data.qfrc_inverse[joint.dofadr[0]]) for joint in joints]
        np.testing.assert_allclose(got[row], expected, atol=tolerance)


@pytest.mark.parametrize("robot", ROBOTS)
def test_torques_and_velocities_agree_with_the_energy(robot):
    """Power is the rate of the energy, whose parts are sums over the links of the description."""
    spec = load_robot(robot)
    kinematics, dynamics = Kinematics(spec), InverseDynamics(spec)
    q, v, a = (part[0] for part in motion(robot))
    step = 1e-5

    def torque_at(time_s: float) -> tuple[np.ndarray, np.ndarray]:
        here, speed = q + v * time_s + 0.5 * a * time_s**2, v + a * time_s
        frames, _ = kinematics.frames(here[None])
        return dynamics.torque(frames, speed[None], a[None])[0], speed

    def energy_at(time_s: float) -> float:
        here, speed = q + v * time_s + 0.5 * a * time_s**2, v + a * time_s
        frames, _ = kinematics.frames(here[None])
        none = np.zeros((1, 7))
        rest = dynamics.torque(frames, none, none)[0]
        # The kinetic energy is quadratic in the velocity: half the velocity times its momentum.
        momentum = dynamics.torque(frames, none, speed[None])[0] - rest
        return 0.5 * float(speed @ momentum)

    torque, speed = torque_at(0.0)
    frames, _ = kinematics.frames(q[None])
    none = np.zeros((1, 7))
    gravity = dynamics.torque(frames, none, none)[0]
    power = float((torque - gravity) @ speed)
    rate = (energy_at(step) - energy_at(-step)) / (2.0 * step)
    assert rate == pytest.approx(power, rel=1e-5, abs=1e-5)


# -- the latch (tests/unit/test_safety_latch.py has the rest) --------------------------------------


def test_a_latch_is_text_of_one_encoding_whatever_the_locale(monkeypatch, tmp_path):
    encodings: list[str | None] = []
    plain = Path.open

    def noting(self, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
        encodings.append(encoding)
        return plain(self, mode, buffering, encoding, errors, newline)

    monkeypatch.setattr(Path, "open", noting)
    latch = Latch("fr3", "Lab-A.Zz", folder=tmp_path)
    assert latch.path.name == "hold-Lab-A.Zz.json"
    assert latch.write("x") and latch.reason() == "x"
    assert {str(one).lower() for one in encodings} == {"utf-8"}


def test_a_latch_is_written_in_one_piece_and_safe_from_a_power_cut(monkeypatch, tmp_path):
    latch = Latch("fr3", "a", folder=tmp_path)
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(number: int) -> None:
        done.append("sync")
        sync(number)

    def note_replace(source: Path, target: Path) -> None:
        done.append("replace")
        assert Path(target) == latch.path
        assert list(json.loads(Path(source).read_text())["holds"].values()) == ["x"]
        assert str(os.getpid()) in Path(source).name
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    latch.write("x")
    assert done[:2] == ["sync", "replace"]


# -- the watchdog -------------------------------------------------------------------------------


class Watched:
    def __init__(self) -> None:
        self.seen: list[float] = []
        self.threads: set[str] = set()
        self.enough = threading.Event()

    def watch(self) -> None:
        self.seen.append(time.monotonic())
        self.threads.add(threading.current_thread().name)
        if len(self.seen) >= 5:
            self.enough.set()


def test_a_watchdog_looks_again_and_again_until_it_is_closed():
    watched = Watched()
    with Watchdog(watched, period_s=0.01) as dog:
        assert isinstance(dog, Watchdog)
        assert watched.enough.wait(3.0)
    count = len(watched.seen)
    assert watched.threads == {"robot_rl-watchdog"}
    assert watched.seen[4] - watched.seen[0] > 0.03, "it rests between two looks"
    time.sleep(0.05)
    assert len(watched.seen) == count, "closed is closed"


def test_a_watchdog_may_be_started_and_closed_by_hand_and_looks_often():
    watched = Watched()
    began = time.monotonic()
    dog = Watchdog(watched).start()
    assert watched.enough.wait(3.0)
    dog.close()
    assert watched.seen[0] - began >= 0.015, "the first look is after a period"
    assert not [one for one in threading.enumerate() if one.name == "robot_rl-watchdog"]


def test_a_watchdog_does_not_keep_the_program_alive():
    dog = Watchdog(Watched(), period_s=0.01)
    assert dog._thread.daemon
