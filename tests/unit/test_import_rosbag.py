"""ROS bags as episodes: checked against brute force and against what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError

pytest.importorskip("rosbags")
from tests.unit.rosbag_samples import ARM_MAP, SMALL, START, BagMaker, arm_bag, ns, read, small_bag


def newest(messages: list[Any], tick: int, clock: int) -> Any:
    """By brute force: the message of the latest stamp at or before the tick."""
    past = [m for m in messages if ns(m[clock]) <= tick]
    return max(past, key=lambda m: ns(m[clock])) if past else None


@pytest.mark.parametrize("clock", ["header", "received"])
@pytest.mark.parametrize("kind", ["mcap", "sqlite", "ros1"])
def test_what_each_tick_sees_agrees_with_brute_force(tmp_path, kind, clock):
    name = "arm.bag" if kind == "ros1" else "arm"
    path, said = arm_bag(tmp_path / name, kind)
    got = read(path, {**ARM_MAP, "clock": clock})
    episode, which = got.first, 0 if clock == "header" else 1
    first = max(ns(m[0][which]) for m in (said.joints, said.frames))
    assert ns(said.commands[0][1]) < first + 10**8, "the test should not need trimming"
    ticks = [first + k * 10**8 for k in range(len(episode) + 1)]
    np.testing.assert_array_equal(episode.stamp_s, np.array(ticks) / 1e9)
    assert len(episode) >= 28
    images = episode.images["front"]
    for k, tick in enumerate(ticks):
        joint, frame = newest(said.joints, tick, which), newest(said.frames, tick, which)
        np.testing.assert_array_equal(episode.observation[k], joint[2].astype(np.float32))
        np.testing.assert_array_equal(images.at(np.array(k)), frame[2])
        assert episode.stamps_s["observation.state"][k] == ns(joint[which]) / 1e9
        assert episode.stamps_s["observation.images.front"][k] == ns(frame[which]) / 1e9
        assert images.stamp_s[images.index[k]] == ns(frame[which]) / 1e9
        if k < len(episode):
            inside = [m for m in said.commands if tick <= ns(m[1]) < tick + 10**8]
            command = inside[0] if inside else newest(said.commands, tick, 1)
            np.testing.assert_array_equal(episode.action[k], command[2].astype(np.float32))
    assert len(images.frames) == len(np.unique(images.index)), "a frame is stored that no tick saw"
    assert episode.truncated[-1] and not episode.terminated.any()
    assert got.info.rate_hz == 10.0 and got.info.cameras == {"front": (6, 8, 3)}
    if kind != "ros1" and clock == "header":
        assert any("out of order" in note for note in got.notes)


def test_late_and_held_ticks_are_counted_by_brute_force(tmp_path):
    path, _ = arm_bag(tmp_path / "arm", seed=3)
    mapping = {**ARM_MAP, "images": {"front": {"topic": "/camera/image_raw", "max_age_s": 0.02}}}
    episode = read(path, mapping).first
    ages = episode.stamp_s - episode.stamps_s["observation.images.front"]
    late = int((np.round(ages, 6) > 0.02).sum())
    assert 0 < late < len(ages)
    assert episode.metadata["late_ticks"] == {"/camera/image_raw": late}


def gap_bag(path: Path) -> Path:
    """The camera falls silent between 1 s and 2 s of 3 s."""
    bag = BagMaker(path)
    for k in range(301):
        bag.joints(k * 0.01, [k, 0.0, 0.0])
    for k in range(31):
        bag.command(k * 0.1, [k, k])
        if not 10 < k < 20:
            bag.image(k * 0.1, np.full((4, 4, 3), k, np.uint8))
    return bag.done()


@pytest.mark.parametrize(
    ("policy", "lengths"),
    [("hold", [30]), ("drop_step", [12, 10]), ("skip_episode", []), ("error", None)],
)
def test_policies_for_what_is_missing(tmp_path, policy, lengths):
    path = gap_bag(tmp_path / "bag")
    camera = {"topic": "/camera/image_raw", "max_age_s": 0.25, "on_missing": policy}
    mapping = {**ARM_MAP, "images": {"front": camera}}
    if lengths in (None, []):
        with pytest.raises(InvalidInputError, match=r"late at|no episode"):
            read(path, mapping)
        return
    got = read(path, mapping)
    # A frame counts until it is 0.25 s old: ticks 13 to 19 have none.
    assert [len(e) for e in got.episodes] == lengths
    assert any(f"7 ticks late ({policy})" in note for note in got.notes)
    last = got.episodes[-1]
    assert last.observation[-1, 0] == 300 and last.truncated[-1]
    if policy == "drop_step":
        assert got.episodes[0].truncated[-1] and last.observation[0, 0] == 200


def test_a_lost_tick_in_the_middle_does_not_join_two_states(tmp_path):
    got = read(gap_bag(tmp_path / "bag"), {
        **ARM_MAP, "on_missing": "drop_step",
        "images": {"front": {"topic": "/camera/image_raw", "max_age_s": 0.25}}})
    for episode in got.episodes:
        assert (np.diff(episode.observation[:, 0]) == 10).all()


def marked_bag(path: Path, kind: str) -> Path:
    bag = BagMaker(path)
    for k in range(601):
        bag.joints(k * 0.01, [k])
    for k in range(61):
        bag.command(k * 0.1, [k])
    for number, (a, b) in enumerate([(0.5, 1.5), (3.0, 4.2)]):
        if kind == "bool":
            bag.flag(a, "/episode", True)
            bag.flag(a + 0.3, "/episode", True)  # said again: not another episode
            bag.flag(b, "/episode", False)
        elif kind == "number":
            bag.add(a, "/episode", "std_msgs/msg/Int32", data=number + 5)
            bag.add(a + 0.2, "/episode", "std_msgs/msg/Int32", data=number + 5)
        elif kind == "text":
            bag.add(a, "/episode", "std_msgs/msg/String", data="go")
            bag.add(b, "/episode", "std_msgs/msg/String", data="stop")
        else:
            bag.add(a, "/episode", "std_msgs/msg/Empty", structure_needs_at_least_one_member=0)
            bag.add(b, "/stop", "std_msgs/msg/Empty", structure_needs_at_least_one_member=0)
    return bag.done()


@pytest.mark.parametrize(
    ("kind", "episodes", "bounds"),
    [
        ("bool", {"start": "/episode", "stop": "/episode"}, [(50, 150), (300, 420)]),
        ("number", {"start": "/episode"}, [(50, 290), (300, 600)]),
        ("text", {"start": {"topic": "/episode", "equals": "go"},
                  "stop": {"topic": "/episode", "equals": "stop"}}, [(50, 150), (300, 420)]),
        ("empty", {"start": "/episode", "stop": "/stop"}, [(50, 150), (300, 420)]),
    ],
)
def test_markers_of_episodes(tmp_path, kind, episodes, bounds):
    path = marked_bag(tmp_path / "bag", kind)
    got = read(path, {"observation.state": {"topic": "/joint_states", "field": "position"},
                      "action": "/command", "episodes": episodes})
    assert [(e.observation[0, 0], e.observation[-1, 0]) for e in got.episodes] == bounds


def test_episodes_between_gaps(tmp_path):
    bag = BagMaker(tmp_path / "bag")
    for k in [*range(100), *range(300, 500)]:
        bag.joints(k * 0.01, [k])
    for k in range(50):
        bag.command(k * 0.1, [k])
    got = read(bag.done(), {"observation.state": {"topic": "/joint_states", "field": "position"},
                            "action": "/command", "episodes": {"gap_s": 1.0}})
    assert [(e.observation[0, 0], e.observation[-1, 0]) for e in got.episodes] == [
        (0, 90), (300, 490)]


def test_joints_are_picked_and_ordered_by_name(tmp_path):
    episode = read(small_bag(tmp_path / "bag"), SMALL).first
    np.testing.assert_array_equal(episode.observation[:3], [[0, 0], [-10, 10], [-20, 20]])


def test_entries_slices_scale_and_offset(tmp_path):
    state = [
        {"topic": "/joint_states", "field": "position", "entries": [2, 0], "scale": 0.5},
        {"topic": "/joint_states", "field": "position", "slice": [1, 2], "offset": 3,
         "scale": [0.1]},
        {"topic": "/joint_states", "field": "position[1]"},
        {"topic": "/joint_states", "field": "header.stamp.nanosec"},
    ]
    episode = read(small_bag(tmp_path / "bag"), {**SMALL, "observation.state": state}).first
    np.testing.assert_allclose(episode.observation[2], [-10, 10, 23, 200, 2e8])


def test_commands_first_or_last_and_limits(tmp_path):
    path = small_bag(tmp_path / "bag")
    first = read(path, SMALL).first
    np.testing.assert_array_equal(first.action[:3], [[0, 0], [1, -1], [2, -2]])
    last = read(path, {**SMALL, "action": {"topic": "/command", "choose": "last"}}).first
    np.testing.assert_array_equal(last.action[:3], [[0.5, 9], [1.5, 9], [2.5, 9]])
    got = read(path, {**SMALL, "action": {"topic": "/command", "low": [0, -10], "high": [10, 0]}})
    np.testing.assert_allclose(got.first.action[:3], [[-1, 1], [-0.8, 0.8], [-0.6, 0.6]],
                               atol=1e-6)
    assert got.first.action.max() == 1.0
    assert any("9 steps clipped" in note for note in got.notes)


def test_actions_from_the_state(tmp_path):
    path = small_bag(tmp_path / "bag")
    following = read(path, {**SMALL, "action": {"from": "next", "entries": [1]}}).first
    np.testing.assert_array_equal(following.action, following.observation[1:, 1:])
    moved = read(path, {**SMALL, "action": {"from": "difference"}}).first
    np.testing.assert_array_equal(moved.action, np.diff(moved.observation, axis=0))
    scaled = read(path, {**SMALL, "action": {"from": "difference", "low": -20, "high": 20}}).first
    np.testing.assert_allclose(scaled.action, np.diff(moved.observation, axis=0) / 20)


def test_rewards_and_flags_come_with_the_state_they_led_to(tmp_path):
    path = small_bag(tmp_path / "bag")
    base = {**SMALL, "reward": "/reward", "success": {"topic": "/hit", "reduce": "any"}}
    episode = read(path, base).first
    np.testing.assert_array_equal(episode.reward, np.arange(1.0, 21.0))
    # /hit was true at 0.71 s, in the step from 0.7 s to 0.8 s, and false again at 0.73 s.
    assert np.flatnonzero(episode.success).tolist() == [7]
    assert not read(path, {**base, "success": "/hit"}).first.success.any()
    summed = read(path, {**base, "reward": {"topic": "/reward", "reduce": "sum"}}).first
    np.testing.assert_array_equal(summed.reward, np.arange(1.0, 21.0))
    ended = read(path, {**base, "terminated": "success"}).first
    assert len(ended) == 8 and ended.terminated[-1] and not ended.truncated.any()
    bare = read(path, {**SMALL, "success": {"topic": "/hit", "reduce": "any"}}).first
    np.testing.assert_array_equal(bare.reward, bare.success - 1.0)
    none = read(path, SMALL)
    assert not none.first.reward.any()
    assert any("reward: 20 steps without any" in note for note in none.notes)


def test_goals(tmp_path):
    bag = BagMaker(tmp_path / "bag")
    for k in range(101):
        bag.joints(k * 0.01, [k / 100, 0.5, 7.0])
    for k in range(11):
        bag.command(k * 0.1, [k])
    bag.add(0.35, "/goal", "geometry_msgs/msg/Point", x=0.8, y=0.5, z=0.0)
    path = bag.done()
    mapping = {
        "observation.state": {"topic": "/joint_states", "field": "position"},
        "action": "/command",
        "goal": {"achieved": {"entries": [0, 1]},
                 "desired": {"topic": "/goal", "field": "x"}, "threshold_m": 0.15},
    }
    with pytest.raises(InvalidInputError, match="desired has 1 numbers, achieved has 2"):
        read(path, mapping)
    mapping["goal"]["desired"] = [{"topic": "/goal", "field": "x"}, {"topic": "/goal",
                                                                    "field": "y"}]
    got = read(path, mapping)
    np.testing.assert_allclose(got.first.desired, [0.8, 0.5], atol=1e-7)
    np.testing.assert_array_equal(got.first.reward, [-1.0] * 6 + [0.0] * 3 + [-1.0])
    np.testing.assert_array_equal(got.first.success, got.first.reward == 0)
    assert got.info.config["goal_threshold"] == 0.15 and got.info.goal_dim == 2
    final = read(path, {**mapping, "goal": {**mapping["goal"], "desired": "final"}}).first
    np.testing.assert_array_equal(final.desired, final.achieved[-1])


def test_interpolation_and_ticks_at_commands(tmp_path):
    path = small_bag(tmp_path / "bag")
    state = {"topic": "/joint_states", "field": "position", "entries": [0],
             "interpolate": "linear"}
    other = read(path, {**SMALL, "observation.state": state}, rate=30.0).first
    np.testing.assert_allclose(other.observation[:, 0], np.arange(len(other) + 1) * 100 / 30,
                               atol=1e-4)
    by_command = read(path, {**SMALL, "ticks": "/command"}, rate=0.0).first
    np.testing.assert_allclose(by_command.stamp_s[:4] - START / 1e9, [0.02, 0.07, 0.12, 0.17],
                               atol=1e-6)
    aligned = read(path, {**SMALL, "align": "/command"}).first
    np.testing.assert_allclose(aligned.stamp_s[:2] - START / 1e9, [0.02, 0.12], atol=1e-6)
    np.testing.assert_array_equal(aligned.action[:, 0], np.arange(len(aligned)))


def test_repeats_are_dropped_and_messages_sorted(tmp_path):
    bag = BagMaker(tmp_path / "bag")
    for k in range(101):
        bag.joints(k * 0.01, [k])
        if k % 10 == 0:
            bag.joints(k * 0.01, [k])
    bag.joints(0.9, [-1.0], measured=0.355)
    bag.joints(0.95, [np.nan])
    for k in range(11):
        bag.command(k * 0.1, [k])
    got = read(bag.done(), {"observation.state": {"topic": "/joint_states", "field": "position"},
                            "action": "/command"}, rate=100.0)
    assert got.first.observation[35:38, 0].tolist() == [35, 36, 37]
    notes = " ".join(got.notes)
    for text in ("11 messages came twice", "1 messages came out of order",
                 "1 messages with values that are not finite"):
        assert text in notes
