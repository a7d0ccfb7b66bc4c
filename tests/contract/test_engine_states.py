"""Both engines repeat, and agree: saved states, other processes, worlds that differ, views."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl.interfaces import Randomization, Rig
from robot_rl.specs import load_robot
from tests.contract.engine_rigs import (
    ENGINES,
    IDENTITY,
    PUCK,
    PUSH,
    ROBOTS,
    ROOM,
    Hand,
    act_at_random,
    everything,
    make_rig,
    send,
)

# Not imported here: some tests are about what importing them does.
for _engine in ("mujoco", "pybullet"):
    if importlib.util.find_spec(_engine) is None:
        pytest.skip(f"{_engine} is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[2]

# --- repeatability -------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_commands_give_the_same_bits(engine: str, robot: str):
    runs = []
    for _ in range(2):
        rig = make_rig(engine, robot, ROOM)
        hand = Hand(rig)
        hand.place((0.0, 0.0, 0.02))
        runs.append(act_at_random(hand, 0, 12))
        rig.close()
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.isfinite(runs[0]).all()
    # The fingers have met the puck, or the test would say little.
    puck = 2 * len(load_robot(robot).joints) + 1
    assert np.abs(runs[0][-1, puck : puck + 3] - PUCK.position_m).max() > 0.01


def test_place_forgets_the_past(room: Rig):
    hand = Hand(room)
    hand.place((0.0, 0.0, 0.02))
    first = act_at_random(hand, 1, 12)
    act_at_random(hand, 2, 5)
    hand.place((0.0, 0.0, 0.02))
    second = act_at_random(hand, 1, 12)
    np.testing.assert_array_equal(first, second)


def test_a_restored_state_continues_bit_for_bit(room: Rig):
    scene = room.scene
    assert scene is not None
    hand = Hand(room)
    hand.place((0.0, 0.0, 0.02))
    act_at_random(hand, 3, 8)
    # In the middle of a stream of set-points, with the fingers on their way.
    room.gripper.command(0.7)
    send(room, hand.q + np.linspace(0, 0.03, 6)[1:, None])
    hand.wait(0.06)
    sent = room.arm.sent()
    q, target, now = hand.q.copy(), hand.target.copy(), room.clock.now_s()
    saved = {name: np.array(array) for name, array in scene.save_state().items()}
    at_save = everything(room)
    hand.wait(0.05)
    first = act_at_random(hand, 4, 10)

    def again(disturb: bool) -> None:
        if disturb:
            hand.place((0.1, 0.1, 0.02))
            act_at_random(hand, 5, 3)
        scene.restore_state(saved)
        np.testing.assert_array_equal(everything(room), at_save)
        assert room.arm.sent() == sent
        assert room.clock.now_s() == now
        hand.q, hand.target = q.copy(), target.copy()
        hand.wait(0.05)
        np.testing.assert_array_equal(act_at_random(hand, 4, 10), first)

    again(disturb=False)
    again(disturb=True)


def test_saving_disturbs_nothing(room: Rig):
    assert room.scene is not None
    hand = Hand(room)
    runs = []
    for save in (False, True):
        hand.place((0.0, 0.0, 0.02))
        states = [act_at_random(hand, 6, 8)]
        if save:
            room.scene.save_state()
        states.append(act_at_random(hand, 7, 8))
        runs.append(np.concatenate(states))
    np.testing.assert_array_equal(runs[0], runs[1])


_CONTINUE = """
import sys
import numpy as np
from tests.contract.engine_rigs import Hand, ROOM, act_at_random, make_rig
rig = make_rig(sys.argv[1], "panda", ROOM)
with np.load(sys.argv[2]) as archive:
    state = {name: archive[name] for name in archive.files}
hand = Hand(rig)
hand.q, hand.target = state.pop("q"), state.pop("target")
rig.scene.restore_state(state)
np.save(sys.argv[3], act_at_random(hand, 9, 8))
rig.close()
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_survives_its_process(engine: str, tmp_path: Path):
    rig = make_rig(engine, "panda", ROOM)
    assert rig.scene is not None
    hand = Hand(rig)
    rig.scene.randomize(Randomization(mass_scale=1.3, friction_scale=0.8))
    hand.place((0.0, 0.0, 0.02))
    act_at_random(hand, 8, 8)
    state = rig.scene.save_state()
    np.savez(tmp_path / "state.npz", q=hand.q, target=hand.target, **state)
    here = act_at_random(hand, 9, 8)
    rig.close()
    path = os.pathsep.join(str(ROOT / part) for part in (".", "sim"))
    subprocess.run(
        [
            sys.executable, "-c", _CONTINUE, engine,
            str(tmp_path / "state.npz"), str(tmp_path / "there.npy"),
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), here)


def test_a_foreign_state_is_refused():
    states = {}
    for engine in ENGINES:
        rig = make_rig(engine, "panda", ROOM)
        assert rig.scene is not None
        states[engine] = rig.scene.save_state()
        rig.close()
    for engine, other in (("mujoco", "bullet"), ("bullet", "mujoco")):
        rig = make_rig(engine, "panda", PUSH)
        assert rig.scene is not None
        with pytest.raises(InvalidInputError):
            rig.scene.restore_state(states[other])
        with pytest.raises(InvalidInputError, match="scene"):
            rig.scene.restore_state(states[engine])
        rig.close()


# --- the engines against each other --------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_engines_agree_after_five_seconds_of_random_actions(robot: str):
    hands = [Hand(make_rig(engine, robot)) for engine in ENGINES]
    for hand in hands:
        hand.place((0.0, 0.0, 0.2))
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(50):
        velocity = rng.uniform(-0.25, 0.25, 3)
        # Back towards the middle at the edge of the workspace.
        away = hands[0].target[:3, 3] - hands[0].origin - (0.0, 0.0, 0.2)
        velocity = np.where(np.abs(away) > 0.12, -np.sign(away) * np.abs(velocity), velocity)
        for hand in hands:
            hand.step(velocity)
        worst = max(worst, float(np.linalg.norm(hands[0].tool() - hands[1].tool())))
    assert worst < 5e-3
    assert np.linalg.norm(hands[0].tool() - hands[1].tool()) < 1e-3
    for hand in hands:
        hand.rig.close()


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_engines_push_a_puck_alike(robot: str):
    ends = []
    for engine in ENGINES:
        rig = make_rig(engine, robot)
        hand = Hand(rig)
        hand.place((-0.05, 0.0, 0.02))
        hand.move((0.12, 0.0, 0.02))
        hand.wait(1.0)
        ends.append(rig.tracker.body("puck", 0.0).position_m)
        rig.close()
    assert np.linalg.norm(ends[0] - ends[1]) < 0.01


# --- images --------------------------------------------------------------------------------------


def blue(image: np.ndarray) -> np.ndarray:
    """Where the puck is in an image: a mask (H, W)."""
    red, green, far = (image[..., i].astype(int) for i in range(3))
    return (far > 60) & (far > red + 40) & (far > green + 40)


def green(image: np.ndarray) -> np.ndarray:
    """Where a marker is in an image: a mask (H, W)."""
    red, near, far = (image[..., i].astype(int) for i in range(3))
    return (near > 100) & (near > red + 60) & (near > far + 60)


def centroid(mask: np.ndarray) -> np.ndarray:
    assert mask.any()
    return np.argwhere(mask).mean(0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("quality", ["fast", "default"])
def test_images_have_the_size_asked_for(engine: str, quality: str):
    rig = make_rig(engine, "sawyer", image_height=32, image_width=40, render_quality=quality)
    frame = rig.cameras["front"].read(0.1)
    assert frame.image.shape == (32, 40, 3)
    assert frame.image.dtype == np.uint8
    assert frame.image.flags["C_CONTIGUOUS"]
    assert frame.stamp_s == rig.clock.now_s()
    assert frame.image.std() > 10.0
    assert rig.scene is not None
    if quality == "fast":
        for size in ((1, 1), (700, 900), (24, 64)):
            assert rig.scene.render("top", *size).shape == (*size, 3)
    rig.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_markers_are_drawn_only_when_asked_for(engine: str):
    rig = make_rig(engine, "sawyer")
    scene = rig.scene
    assert scene is not None
    Hand(rig).place((-0.2, 0.0, 0.2))
    plain = scene.render("top", 96, 96)
    assert not green(scene.render("top", 96, 96, markers=True)).any()
    scene.show_markers({"goal": np.array([0.15, 0.2, 0.02])})
    marked = scene.render("top", 96, 96, markers=True)
    row, column = centroid(green(marked))
    # The far side of the table is at the top of this image, the arm's left at its left.
    assert row < 48 and column < 48
    np.testing.assert_array_equal(scene.render("top", 96, 96), plain)
    np.testing.assert_array_equal(rig.cameras["top"].read(0.1).image, scene.render("top", 48, 48))
    scene.show_markers({"goal": np.array([-0.1, 0.2, 0.02]), "subgoal": np.array([0.15, 0.2, 0.0])})
    assert green(scene.render("top", 96, 96, markers=True)).sum() > 1.5 * green(marked).sum()
    scene.show_markers({})
    np.testing.assert_array_equal(scene.render("top", 96, 96, markers=True), plain)
    rig.close()


def test_the_engines_see_the_same_scene():
    images = {}
    for engine in ENGINES:
        rig = make_rig(engine, "panda")
        scene = rig.scene
        assert scene is not None
        Hand(rig).place(
            (-0.15, 0.0, 0.25), bodies={"puck": (np.array([0.1, 0.12, 0.02]), IDENTITY)}
        )
        scene.randomize(
            Randomization(
                camera_shift_m=np.array([0.02, -0.03, 0.01]),
                camera_turn_rad=np.array([0.03, 0.0, -0.05]),
            )
        )
        images[engine] = [scene.render(camera, 120, 160) for camera in ("front", "top")]
        rig.close()
    for first, second in zip(images["mujoco"], images["bullet"], strict=True):
        assert np.linalg.norm(centroid(blue(first)) - centroid(blue(second))) < 2.0
        sizes = blue(first).sum(), blue(second).sum()
        assert 0.7 < sizes[0] / sizes[1] < 1.4
        difference = np.abs(first.astype(float) - second.astype(float)).mean(axis=-1)
        assert np.median(difference) < 25.0


@pytest.mark.parametrize("engine", ENGINES)
def test_rendering_does_not_disturb_the_physics(engine: str):
    runs = []
    rig = make_rig(engine, "panda", ROOM)
    assert rig.scene is not None
    hand = Hand(rig)
    for draw in (False, True):
        hand.place((0.0, 0.0, 0.02))
        rng = np.random.default_rng(0)
        for i in range(8):
            hand.step((*rng.uniform(-0.1, 0.3, 2), 0.0))
            if draw:
                rig.scene.show_markers({"goal": np.array([0.01 * i, 0.0, 0.02])})
                rig.scene.render("front", 16, 16, markers=True)
        runs.append(everything(rig))
    np.testing.assert_array_equal(runs[0], runs[1])
    rig.close()


# --- domain randomisation ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_randomisation_changes_the_world_and_can_be_undone(engine: str):
    rig = make_rig(engine, "panda", ROOM)
    scene = rig.scene
    assert scene is not None
    hand = Hand(rig)

    def push() -> tuple[np.ndarray, np.ndarray]:
        hand.place((-0.05, 0.0, 0.02))
        for _ in range(6):
            hand.step((0.25, 0.02, 0.0))
        image = scene.render("top", 48, 48)
        hand.wait(0.6)
        return everything(rig), image

    nominal, plain = push()
    for values in (
        Randomization(mass_scale=3.0),
        Randomization(friction_scale=0.3),
    ):
        scene.randomize(values)
        changed, image = push()
        assert (changed != nominal).any()
    scene.randomize(Randomization(color_shift=np.array([0.3, 0.2, -0.3])))
    same, image = push()
    np.testing.assert_array_equal(same, nominal)
    assert (image != plain).any()
    scene.randomize(Randomization(camera_shift_m=np.array([0.05, 0.0, 0.0])))
    assert (scene.render("top", 48, 48) != plain).any()
    scene.randomize(Randomization())
    again, image = push()
    np.testing.assert_array_equal(again, nominal)
    np.testing.assert_array_equal(image, plain)
    rig.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_less_friction_lets_a_puck_slide_farther(engine: str):
    rig = make_rig(engine, "panda")
    assert rig.scene is not None
    hand = Hand(rig)
    distances = []
    for scale in (1.0, 0.25):
        rig.scene.randomize(Randomization(friction_scale=scale))
        hand.place((0.0, 0.0, 0.02))
        for speed in (0.125, *[0.25] * 7):
            hand.step((speed, 0.0, 0.0))
        before = rig.tracker.body("puck", 0.0).position_m[0]
        hand.step((-0.25, 0.0, 0.0))
        hand.wait(1.5)
        distances.append(rig.tracker.body("puck", 0.0).position_m[0] - before)
    # v^2 / (2 mu g) at 0.25 m/s: 8 mm at 0.4, 32 mm at 0.1.
    assert distances[0] == pytest.approx(0.008, abs=0.006)
    assert distances[1] == pytest.approx(0.032, abs=0.006)
    rig.close()


# --- surroundings --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_standard_output_stays_clean(engine: str):
    source = (
        f"from test_engines import make_rig\nrig = make_rig({engine!r}, 'panda')\n"
        "rig.scene.render('top', 8, 8)\nprint('{}')\nrig.close()\n"
    )
    path = os.pathsep.join(str(part) for part in (ROOT, ROOT / "sim", Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", source],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout == "{}\n"
    assert done.stderr == ""


def test_without_graphics_states_work_and_drawing_says_why():
    source = (
        "from test_engines import make_rig\nfrom robot_rl.errors import RobotRLError\n"
        "rig = make_rig('mujoco', 'panda')\nrig.clock.sleep_until(0.1)\n"
        "rig.tracker.body('puck', 1.0)\n"
        "try:\n    rig.scene.render('top', 8, 8)\n"
        "except RobotRLError as error:\n    print(error)\n"
    )
    path = os.pathsep.join(str(part) for part in (ROOT, ROOT / "sim", Path(__file__).parent))
    broken = (
        {"MUJOCO_GL": "disable"},
        {"MUJOCO_GL": "glfw", "DISPLAY": ""},
        {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"},
        {"MUJOCO_GL": "nonsense"},
    )
    for environment in broken:
        done = subprocess.run(
            [sys.executable, "-c", source],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **environment, "PYTHONPATH": path},
        )
        lines = done.stdout.splitlines()
        assert len(lines) == 1, (environment, done)
        assert "MUJOCO_GL=egl" in lines[0]


@pytest.mark.parametrize(("engine", "module"), [("mujoco", "mujoco"), ("bullet", "pybullet")])
def test_a_missing_engine_names_the_extra(
    engine: str, module: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"robot_rl\[sim\]"):
        make_rig(engine, "panda")
