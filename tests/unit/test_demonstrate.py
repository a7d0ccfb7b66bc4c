"""Recording demonstrations in simulation: what is kept, where, and what its steps say."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.data import open_log
from robot_rl.data.summary import summarize
from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError
from robot_rl.teleops import Operator
from robot_rl.training import demonstrate
from robot_rl.training.demonstrate import Control, RecordConfig, make_world, record
from robot_rl.training.driving import Drive
from robot_rl.training.offline import PretrainConfig, pretrain
from robot_rl.training.setup import EnvChoice

pytest.importorskip("mujoco")
REACH = EnvChoice(task="Reach")


class Person:
    """Acts by a plan: ``moves`` gives an action or None for each step of an episode, ``asks`` what
    is asked for after a step, by its number from 1; ``waits`` what is asked for while nothing
    moves, one after the other."""

    def __init__(
        self,
        moves: Callable[[int], Any] = lambda step: [0.2, 0.0, 0.0],
        asks: dict[int, str] | None = None,
        waits: tuple[str, ...] = (),
        interactive: bool = True,
    ) -> None:
        self.moves, self.asks, self.waits = moves, asks or {}, list(waits)
        self.interactive = interactive
        self.problem: str | None = None
        self.step = 0
        self.waiting = 0
        self.episodes = 0
        self._asked = 0

    def begin(self) -> None:
        self.step = self._asked = 0
        self.episodes += 1

    def read(self) -> Any:
        self.step += 1
        self.waiting = 0
        move = self.moves(self.step - 1)
        return None if move is None else np.array(move, dtype=float)

    def events(self) -> tuple[str, ...]:
        if self.step > self._asked:
            self._asked = self.step
            return (self.asks[self.step],) if self.step in self.asks else ()
        self.waiting += 1
        # The device is asked about each move and each event; only a pause asks again and again.
        if self.waiting > 6 and self.waits:
            self.waiting = 0
            return (self.waits.pop(0),)
        return ()


@pytest.fixture(autouse=True)
def at_once(monkeypatch, request):
    """A person in simulation is not kept to real time, but where that is what is tested."""
    if "real_time" not in request.node.name:
        monkeypatch.setattr(demonstrate.time, "sleep", lambda seconds: None)


def run(out: Path, person: Any, env: EnvChoice = REACH, **options: Any) -> dict[str, Any]:
    flags = {name: options.pop(name) for name in ("append", "overwrite") if name in options}
    config = RecordConfig(**{"teleop": "test", "episodes": 1, "out": str(out), **options})
    if isinstance(person, str):
        config = RecordConfig(**{**vars(config), "teleop": person})
        return record(config, env, quiet=True, **flags)
    return record(config, env, operator=lambda world: Operator(person), quiet=True, **flags)


# -- the scripted operator ----------------------------------------------------------------------


def test_a_scripted_operator_accepts_and_rejects_and_pretraining_sees_the_accepted(tmp_path):
    out = tmp_path / "demos"
    values = run(out, "scripted", EnvChoice(task="Push"), episodes=8, quality=0.2, seed=3,
                 label="push it")
    assert values["accepted"] == values["episodes"] == 8
    assert values["rejected"] > 0 and values["aborted"] == 0
    assert values["attempts"] == 8 + values["rejected"]
    assert values["success_rate"] == 1.0 and values["stopped"] is None
    accepted, rejected = open_log(out), open_log(values["rejected_path"])
    assert len(accepted) == 8 and len(rejected) == values["rejected"]
    for episode in accepted:
        assert episode.success[-1]
        assert episode.intervention is not None and episode.intervention.all()
        assert episode.metadata["demonstration"]["label"] == "push it"
    for episode in rejected:
        assert not episode.success[-1]
        assert episode.metadata["verdict"] == "rejected"
        assert episode.metadata["demonstration"]["label"] == "push it"
    assert sum(len(e) for log in (accepted, rejected) for e in log) == values["steps"]
    assert summarize(out)["apart"] == {"rejected": values["rejected"]}
    assert summarize(out)["episodes"] == 8 and summarize(out)["complete"]
    trained = pretrain(PretrainConfig(agent="bc", data=str(out), steps=5,
                                      out=str(tmp_path / "run")), quiet=True)
    assert trained["steps"] == 5


def test_the_same_seed_records_the_same(tmp_path):
    for name in "ab":
        run(tmp_path / name, "scripted", EnvChoice(task="Push"), episodes=2, seed=5)
    for first, second in zip(open_log(tmp_path / "a"), open_log(tmp_path / "b"), strict=True):
        assert np.array_equal(first.action, second.action)
        assert np.array_equal(first.observation, second.observation)


def test_images_are_recorded_with_the_states_that_agents_learn_from(tmp_path):
    values = run(tmp_path / "demos", "scripted", obs="image", episodes=2)
    assert values["accepted"] == 2
    episode = open_log(tmp_path / "demos").read(0)
    assert episode.images["front"].frames.shape[1:] == (48, 48, 3)
    assert episode.observation.shape[1] > 0


# -- a person -----------------------------------------------------------------------------------


def test_accepting_ends_the_episode_at_that_step(tmp_path):
    person = Person(asks={7: "accept"})
    values = run(tmp_path / "demos", person)
    assert (values["accepted"], values["attempts"], values["steps"]) == (1, 1, 7)
    episode = open_log(tmp_path / "demos").read(0)
    assert len(episode) == 7
    assert episode.truncated.tolist() == [False] * 6 + [True]
    assert not episode.terminated.any()
    assert episode.requested is not None
    assert episode.requested == pytest.approx(np.tile([0.2, 0.0, 0.0], (7, 1)))


def test_rejecting_keeps_the_episode_apart(tmp_path):
    person = Person()
    person.asks = {5: "reject"}
    moves = []

    def move(step: int) -> list[float]:
        if person.episodes == 2:
            person.asks = {4: "accept"}
        moves.append((person.episodes, step))
        return [0.0, 0.1, 0.0]

    person.moves = move
    values = run(tmp_path / "demos", person)
    assert (values["accepted"], values["rejected"], values["attempts"]) == (1, 1, 2)
    assert [len(e) for e in open_log(tmp_path / "demos")] == [4]
    (rejected,) = open_log(tmp_path / "demos" / "rejected")
    assert len(rejected) == 5
    assert (rejected.metadata["verdict"], rejected.metadata["reason"]) == ("rejected", "operator")
    # It says how it began, so that it can be played again.
    assert len(rejected.metadata["goal"]) == 3 and rejected.metadata["start"]["tool_m"]


def test_the_recording_begins_with_the_first_move(tmp_path):
    person = Person(lambda step: None if step < 6 else [0.0, 0.0, 0.5], {10: "accept"})
    values = run(tmp_path / "demos", person)
    assert values["steps"] == 4
    episode = open_log(tmp_path / "demos").read(0)
    assert episode.requested == pytest.approx(np.tile([0.0, 0.0, 0.5], (4, 1)))


def test_an_operator_who_touches_nothing_leaves_the_arm_where_it_is(tmp_path):
    person = Person(lambda step: [0.5, 0.0, 0.0] if step == 0 else None, {8: "accept"})
    run(tmp_path / "demos", person)
    episode = open_log(tmp_path / "demos").read(0)
    assert episode.requested is not None
    assert episode.requested[1:] == pytest.approx(np.zeros((7, 3)))
    assert episode.intervention is not None and episode.intervention.all()


def test_when_time_is_up_a_person_is_asked(tmp_path):
    person = Person(waits=("accept",))
    values = run(tmp_path / "demos", person, duration_s=1.0)
    assert (values["accepted"], values["steps"]) == (1, 10)
    person = Person(waits=("reject", "quit"))
    values = run(tmp_path / "more", person, duration_s=1.0)
    assert (values["accepted"], values["rejected"]) == (0, 1)


def test_success_can_judge_instead(tmp_path):
    values = run(tmp_path / "demos", Person(), judge="success", duration_s=0.5, attempts=3)
    assert (values["accepted"], values["rejected"], values["attempts"]) == (0, 3, 3)
    assert values["stopped"] == "3 attempts gave 0 of 1 demonstrations"
    assert {e.metadata["reason"] for e in open_log(values["rejected_path"])} == {"success"}


@pytest.mark.parametrize("interactive", [True, False])
def test_the_gripper_stays_as_it_was_told_while_nobody_touches(tmp_path, interactive):
    def move(step: int) -> list[float] | None:
        return [0.0, 0.0, 0.0, -1.0] if step == 0 else None

    person = Person(move, {6: "accept"}, interactive=interactive)
    run(tmp_path / "demos", person, EnvChoice(task="PickPlace"))
    episode = open_log(tmp_path / "demos").read(0)
    assert episode.action[:, 3] == pytest.approx(np.full(6, -1.0))


def test_a_person_in_simulation_is_kept_to_real_time(tmp_path):
    values = run(tmp_path / "demos", Person(asks={10: "accept"}),
                 EnvChoice(task="Reach", control_hz=20.0))
    assert values["steps"] == 10
    assert 0.45 <= values["seconds"] < 10.0


# -- taking over --------------------------------------------------------------------------------


def test_the_touch_of_the_operator_takes_over_and_each_step_says_so(tmp_path):
    def move(step: int) -> list[float] | None:
        return [0.0, 0.0, 0.3] if step in (5, 6, 7, 9, 20) else None

    person = Person(move, {30: "accept"})
    values = run(tmp_path / "demos", person, policy="scripted", policy_quality=0.8,
                 handback_s=0.3)
    episode = open_log(tmp_path / "demos").read(0)
    # From the touch until 0.3 s after the last one.
    theirs = [step in (5, 6, 7, 8, 9, 10, 11, 20, 21, 22) for step in range(30)]
    assert episode.intervention is not None and episode.requested is not None
    assert episode.intervention.tolist() == theirs
    assert values["interventions"] == 2 and values["intervention_steps"] == 10
    for step in range(30):
        if step in (5, 6, 7, 9, 20):
            assert episode.requested[step] == pytest.approx([0.0, 0.0, 0.3])
        elif theirs[step]:
            assert not episode.requested[step].any()
        else:
            assert episode.requested[step].any(), step
    info = summarize(tmp_path / "demos")
    assert info["intervention_share"] == pytest.approx(10 / 30)


def test_what_was_executed_is_recorded_beside_what_was_asked_for(tmp_path):
    # Down and down: the box ends at 12 mm.
    person = Person(lambda step: [0.0, 0.0, -1.0], {14: "accept"})
    run(tmp_path / "demos", person)
    episode = open_log(tmp_path / "demos").read(0)
    assert episode.requested is not None
    assert (episode.requested[:, 2] == -1.0).all()
    assert episode.action[-1, 2] == pytest.approx(0.0, abs=0.02)
    assert episode.action[:, 2].min() < -0.5


def test_a_scripted_operator_takes_over_where_it_is_told_to(tmp_path):
    config = RecordConfig(teleop="scripted", episodes=2, policy="scripted", policy_quality=0.3,
                          handback_s=0.0, out=str(tmp_path / "demos"), quality=1.0)
    values = record(config, EnvChoice(task="Push"), device={"after": "10", "dwell_steps": "2"},
                    quiet=True)
    assert values["interventions"] >= 2
    for episode in open_log(tmp_path / "demos"):
        marks = episode.intervention
        assert marks is not None and marks.tolist() == [step >= 10 for step in range(len(episode))]


# -- stops --------------------------------------------------------------------------------------


def test_a_stop_holds_the_arm_and_keeps_the_episode_apart_until_it_is_re_armed(tmp_path):
    held = []
    person = Person(asks={4: "stop"}, waits=("accept", "rearm"))
    original = person.moves

    def move(step: int) -> Any:
        if person.episodes == 2:
            person.asks = {3: "accept"}
        return original(step)

    person.moves = move

    def operator(world: RobotEnv) -> Operator:
        hold = world.safety.hold

        def noted(reason: str) -> None:
            held.append(reason)
            hold(reason)

        world.safety.hold = noted  # type: ignore[method-assign]
        return Operator(person)

    config = RecordConfig(teleop="test", episodes=1, out=str(tmp_path / "demos"))
    values = record(config, REACH, operator=operator, quiet=True)
    assert set(held) == {"the operator stopped the arm"}
    assert (values["accepted"], values["aborted"], values["rejected"]) == (1, 1, 0)
    (aborted,) = open_log(values["rejected_path"])
    assert len(aborted) in (3, 4)  # the filter may hear of it before the step is through
    assert aborted.metadata["verdict"] == "aborted"
    assert aborted.metadata["reason"] == "the operator stopped the arm"
    assert summarize(tmp_path / "demos")["apart"] == {"aborted": 1}


def test_an_arm_that_holds_by_itself_aborts_and_is_not_re_armed_by_a_script(tmp_path):
    person = Person(interactive=False)
    worlds: list[RobotEnv] = []
    calls: list[str] = []

    def move(step: int) -> list[float]:
        if step == 3:
            worlds[0].safety.hold("the force is 50 N, the limit is 30")
        return [0.1, 0.0, 0.0]

    def operator(world: RobotEnv) -> Operator:
        worlds.append(world)
        world.safety.rearm = lambda: calls.append("rearm")  # type: ignore[method-assign]
        return Operator(person)

    person.moves = move
    config = RecordConfig(teleop="test", episodes=2, out=str(tmp_path / "demos"))
    values = record(config, REACH, operator=operator, quiet=True)
    assert (values["accepted"], values["aborted"], values["attempts"]) == (0, 1, 1)
    assert "the force is 50 N" in values["stopped"] and "nobody to re-arm" in values["stopped"]
    assert calls == []
    (aborted,) = open_log(values["rejected_path"])
    assert len(aborted) == 3 and "50 N" in aborted.metadata["reason"]


def test_a_device_that_is_lost_aborts_and_the_operator_quits(tmp_path):
    person = Person(waits=("rearm", "quit"))

    def move(step: int) -> list[float] | None:
        if step == 4:
            person.problem = "the gamepad is gone (it was unplugged)"
            person.asks = {5: "stop"}
            return None
        return [0.1, 0.0, 0.0]

    person.moves = move
    values = run(tmp_path / "demos", person, episodes=3)
    assert (values["accepted"], values["aborted"]) == (0, 1)
    assert "gamepad is gone" in values["stopped"]
    (aborted,) = open_log(values["rejected_path"])
    assert aborted.requested is not None and len(aborted) >= 4
    assert not aborted.requested[4:].any()


def test_actions_that_are_not_numbers_are_refused_and_end_in_time(tmp_path):
    person = Person(lambda step: [np.nan, 0.0, 0.0] if step == 3 else [0.1, 0.0, 0.0],
                    interactive=False)
    values = run(tmp_path / "demos", person, attempts=2, duration_s=1.0)
    assert values["aborted"] == 2 and "2 attempts gave 0 of 1" in values["stopped"]
    for episode in open_log(values["rejected_path"]):
        assert len(episode) == 3 and "not finite" in episode.metadata["reason"]


def test_quitting_keeps_what_was_accepted(tmp_path):
    person = Person(asks={4: "accept"})

    def move(step: int) -> list[float]:
        if person.episodes == 2:
            person.asks = {3: "quit"}
        return [0.1, 0.0, 0.0]

    person.moves = move
    values = run(tmp_path / "demos", person, episodes=5)
    assert (values["accepted"], values["aborted"]) == (1, 1)
    assert values["stopped"] == "the operator quit"
    assert len(open_log(tmp_path / "demos")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_was_accepted_and_the_running_one_apart(tmp_path, number):
    person = Person(asks={4: "accept"})

    def move(step: int) -> list[float]:
        if person.episodes == 2:
            person.asks = {}
            if step == 2:
                os.kill(os.getpid(), number)
        return [0.1, 0.0, 0.0]

    person.moves = move
    values = run(tmp_path / "demos", person, episodes=5)
    assert values["interrupted"]
    assert (values["accepted"], values["aborted"]) == (1, 1)
    log = open_log(tmp_path / "demos")
    assert len(log) == 1 and not log.leftovers
    (aborted,) = open_log(values["rejected_path"])
    assert aborted.metadata["reason"] == "stopped by the user"


def test_an_interrupt_breaks_off_a_reset_by_the_arm_and_leaves_no_empty_folder(
    tmp_path, monkeypatch
):
    from robot_rl.envs.motion import Motion

    make = demonstrate.make_env
    monkeypatch.setattr(demonstrate, "make_env",
                        lambda *names, **more: make(*names, **{**more, "resets": "arm"}))
    wait, waits = Motion._wait, []

    def waited(self) -> None:
        waits.append(self)
        if len(waits) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        wait(self)

    monkeypatch.setattr(Motion, "_wait", waited)
    values = run(tmp_path / "demos", Person(), episodes=5)
    assert values["interrupted"] and values["accepted"] == values["aborted"] == 0
    assert len(waits) == 4, "not one period more"
    assert not (tmp_path / "demos").exists()


# -- going on -----------------------------------------------------------------------------------


def test_a_recording_is_gone_on_with_and_its_goals_are_new(tmp_path):
    out = tmp_path / "demos"
    push = EnvChoice(task="Push")
    run(out, "scripted", push, episodes=3, quality=0.5)
    apart = summarize(out)["apart"].get("rejected", 0)
    values = run(out, "scripted", push, episodes=3, quality=0.5, append=True)
    assert values["rejected_path"] == str(out / "rejected")
    assert values["accepted"] == 3 and values["episodes"] == 6
    log = open_log(out)
    goals = [tuple(e.desired) for e in log] + [
        tuple(e.desired) for e in open_log(values["rejected_path"])]
    assert len(set(goals)) == len(goals) == 6 + apart + values["rejected"]


def test_another_task_or_rate_is_not_appended(tmp_path):
    out = tmp_path / "demos"
    run(out, "scripted", REACH)
    for env, what in ((EnvChoice(task="Push"), "task 'Reach'"),
                      (EnvChoice(task="Reach", robot="panda"), "robot 'sawyer'"),
                      (EnvChoice(task="Reach", control_hz=20.0), "rate_hz 10.0")):
        with pytest.raises(InvalidInputError, match=what):
            run(out, "scripted", env, append=True)
    with pytest.raises(InvalidInputError, match="does not exist"):
        run(tmp_path / "none", "scripted", REACH, append=True)
    with pytest.raises(InvalidInputError, match="not empty"):
        run(out, "scripted", REACH)
    assert len(open_log(out)) == 1


def test_what_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    def refuse(self: RobotEnv, **options: Any) -> Any:
        raise InvalidInputError("no graphics here")

    monkeypatch.setattr(RobotEnv, "reset", refuse)
    there = tmp_path / "there"
    there.mkdir()
    for out in (tmp_path / "new", there):
        with pytest.raises(InvalidInputError, match="no graphics here"):
            run(out, Person())
    assert not (tmp_path / "new").exists() and list(there.iterdir()) == []


# -- control alone ------------------------------------------------------------------------------


def test_control_goes_back_to_the_policy_by_the_rigs_clock():
    world = make_world(REACH, demonstrate.Hardware())
    try:
        world.reset(seed=0)
        asked = []

        class Policy:
            def reset(self) -> None:
                return None

            def act(self, observation: Any) -> Any:
                asked.append(world.rig.clock.now_s())
                return np.ones(3)

        touches = iter([None, [0.1, 0, 0], None, None, None, None])
        control = Control(Operator(Person(lambda step: next(touches))), Policy(), 0.2, world)
        control.begin()
        marks = []
        for _ in range(6):
            action, by_operator = control.act({})
            marks.append(by_operator)
            world.step(action)
            time.sleep(0.03)  # time of the wall does not count
        assert marks == [False, True, True, False, False, False]
        assert control.takeovers == 1 and len(asked) == 4
    finally:
        world.close()


def test_the_most_urgent_of_several_requests_counts(tmp_path):
    class Hasty(Person):
        def events(self) -> tuple[str, ...]:
            asked = super().events()
            return ("accept", "reject", "stop") if asked == ("accept",) else asked

    values = run(tmp_path / "demos", Hasty(asks={4: "accept"}, interactive=False))
    assert (values["accepted"], values["rejected"], values["aborted"]) == (0, 0, 1)
    assert "the operator stopped the arm" in values["stopped"]


# -- driving without recording ------------------------------------------------------------------


def test_driving_moves_stops_and_re_arms():
    person = Person(lambda step: [0.0, 0.0, 1.0] if step < 5 else None,
                    {8: "stop", 10: "rearm", 30: "rearm", 33: "quit"})
    world = make_world(REACH, demonstrate.Hardware())
    try:
        drive = Drive(world, Operator(person))
        held = []
        drive.run(0.0, lambda: False, lambda: held.append(world.safety.held))
        values = drive.values()
    finally:
        world.close()
    assert (values["touched"], values["holds"], values["held"]) == (5, 1, None)
    assert {reason for reason in held if reason} == {"the operator stopped the arm"}
    assert held[-1] is None and held.count(None) < len(held)
    assert values["gripper"] is None and values["violations"] == 0


def test_driving_says_which_faces_of_the_box_the_tool_touches():
    person = Person(lambda step: [0.0, 0.0, -1.0])
    world = make_world(REACH, demonstrate.Hardware())
    try:
        drive = Drive(world, Operator(person))
        drive.run(3.0, lambda: False, lambda: None)
        assert drive.faces() == ["bottom"]
        assert "box bottom" in drive.describe()
        assert drive.values()["limited"] > 0
        assert drive.values()["tool_m"][2] == pytest.approx(0.012, abs=0.005)
    finally:
        world.close()
