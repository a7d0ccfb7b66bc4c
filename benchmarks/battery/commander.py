"""The commander of an arm as a process of its own: the environment, and a policy that wanders.

    python benchmarks/battery/commander.py sawyer master_uri=... --state DIR
    python benchmarks/battery/commander.py fr3 domain_id=7 --state DIR --broken clears

Lines of JSON on stdin are orders (:meth:`Commander.do`), lines on stdout are events with their time
``t`` [s, the monotonic clock]. What is told to go on keeps stepping until an error or an order.
``--broken`` spoils the stack on purpose, so that the battery can be seen to find it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import sys
import threading
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from robot_rl.envs.factory import make_env
from robot_rl.envs.motion import Motion
from robot_rl.envs.resets.base import ArmResetter, Bench, ObjectReset, ResetOptions
from robot_rl.envs.tasks import make_task
from robot_rl.errors import RobotRLError
from robot_rl.interfaces import Placement
from robot_rl.safety.checks import HISTORY
from robot_rl_drivers.streaming import SetpointStreamer

CAMERAS = ("front", "side")
# The policy wanders about this point, no further than that from it [m].
MIDDLE_M, ROOM_M = np.array([0.0, 0.0, 0.17]), np.array([0.07, 0.09, 0.06])
BROKEN = ("clears", "bursts", "blind", "careless")


class Stay:
    """A resetter that leaves everything where it is."""

    def reset(self, placement: Placement) -> bool:
        return True


class NeverThere(ObjectReset):
    """A reset whose thing is never found where it should be."""

    task = "Reach"

    def restore(self, placement: Placement) -> None:
        return None

    def problem(self, placement: Placement) -> str | None:
        return "the part is not in its slot"


class Policy:
    """Straight lines at a steady speed, in random directions, within reach of the middle."""

    def __init__(self, seed: int, speed: float) -> None:
        self._rng, self._speed = np.random.default_rng(seed), speed
        self._way, self._left = np.zeros(3), 0

    def act(self, tool_m: Any, hz: float) -> Any:
        outside = np.abs(tool_m - MIDDLE_M) > ROOM_M
        inwards = np.sign(MIDDLE_M - tool_m) == np.sign(self._way)
        if self._left <= 0 or bool((outside & ~inwards).any()):
            way = self._rng.normal(size=3)
            way = np.where(outside, np.abs(way) * np.sign(MIDDLE_M - tool_m), way)
            self._way = way / np.linalg.norm(way)
            self._left = int(hz * self._rng.uniform(0.8, 1.6))
        self._left -= 1
        return (self._speed * self._way).astype(np.float32)


class Commander:
    """Keeps one environment, and does what it is told to."""

    def __init__(self, robot: str, options: dict[str, str], sources: dict[str, str],
                 broken: str) -> None:
        self.robot, self.options, self.sources, self.broken = robot, options, sources, broken
        self.env: Any = None
        self.policy = Policy(0, 0.5)
        self.running = False
        self.next_action: str | None = None
        self.hang_s = 0.0
        self._rng = np.random.default_rng(0)
        self._orders: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._out = threading.Lock()
        self._beat_late_s = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    # -- events -----------------------------------------------------------------------------

    def say(self, event: str, **values: Any) -> None:
        with self._out:
            sys.stdout.write(json.dumps({"event": event, "t": time.monotonic(), **values}) + "\n")
            sys.stdout.flush()

    def _watch(self) -> None:
        """Tells of a hold as soon as there is one; measures how late a bare timer is."""
        told: str | None = None
        watched: Any = None
        while True:
            before_s = time.monotonic()
            time.sleep(0.002)
            self._beat_late_s = max(self._beat_late_s, time.monotonic() - before_s - 0.002)
            env = self.env
            if env is not watched:
                watched, told = env, None if env is None else env.safety.held
            if env is None or env.safety.held == told:
                continue
            told = env.safety.held
            if told is None:
                continue
            seen_s = time.monotonic()
            with env.safety._lock:  # the brake is planned by then
                plan = env.safety._plan
            row = None if plan is None else plan.rows[HISTORY, 0].tolist()
            self.say("held", reason=told, brake=row, seen=seen_s)

    # -- orders -----------------------------------------------------------------------------

    def listen(self) -> None:
        for line in sys.stdin:
            self._orders.put(json.loads(line))
        self._orders.put(None)

    def run(self) -> None:
        threading.Thread(target=self.listen, daemon=True).start()
        self.say("ready", pid=os.getpid())
        while True:
            try:
                order = self._orders.get(block=not self.running)
            except queue.Empty:
                self._step()
                continue
            if order is None:
                break
            try:
                self.do(order)
            except RobotRLError as error:
                self.say("error", order=order, error=str(error), kind=type(error).__name__)
        self.close()

    def do(self, order: dict[str, Any]) -> None:
        """``{"do": "open" | "go" | "rest" | "rearm" | "probe" | "action" | "hang" | "clock" |
        "fail_reset" | "close"}``, each answered by at least one event."""
        getattr(self, f"_do_{order.pop('do')}")(**order)

    def _do_open(self, hz: float) -> None:
        self.close()
        self.env = make_env(
            "Reach", self.robot, "ros1" if self.robot == "sawyer" else "ros2", control_hz=hz,
            cameras=CAMERAS, duration_s=3600.0, resetter=Stay(),
            rig_options=self.options, camera_sources=self.sources,
        )
        _break(self.env, self.broken)
        self.say("open", held=self.env.safety.held)

    def close(self) -> None:
        self.running = False
        env, self.env = self.env, None
        if env is not None:
            env.close()

    def _do_close(self) -> None:
        self.close()
        self.say("closed")

    def _do_go(self, seed: int, speed: float) -> None:
        self.policy, self.next_action = Policy(seed, speed), None
        self._beat_late_s = 0.0
        self.env.reset(seed=seed)
        self.running = True
        self._step()
        self.say("going")

    def _do_rest(self) -> None:
        """Come to rest on purpose; say where that is, and how late the timer was."""
        self.running = False
        if self.env is not None and self.env.safety.held is None:
            self.env.safety.rest()
        self.say("resting", held=None if self.env is None else self.env.safety.held,
                 timer_late_s=round(self._beat_late_s, 4))

    def _do_rearm(self) -> None:
        """What an operator does; an arm that still comes to rest is tried again for 3 s."""
        end_s = time.monotonic() + 3.0
        while True:
            try:
                self.env.safety.rearm()
            except RobotRLError as error:
                waits = any(word in str(error) for word in ("at rest", "coming to rest"))
                if waits and time.monotonic() < end_s:
                    time.sleep(0.05)
                    continue
                raise
            self.say("rearmed")
            return

    def _do_probe(self) -> None:
        """Everything that moves an arm, tried; what each said, None where it was taken."""
        env, here = self.env, self.env.safety.setpoint_rad
        said: dict[str, str | None] = {}
        for name, attempt in (
            ("step", lambda: env.step(np.array([0.5, 0.0, 0.0], np.float32))),
            ("reset", lambda: env.reset(seed=1)),
            ("move", lambda: env.safety.move(np.array([0.01, 0.0, 0.0]), 0.0, 0.1)),
            ("move_joints", lambda: env.safety.move_joints(here + 0.05, 0.1)),
            ("grip", lambda: env.safety.grip(0.5)),
        ):
            try:
                attempt()
            except RobotRLError as error:
                said[name] = f"{type(error).__name__}: {error}"
            else:
                said[name] = None
        self.say("probed", said=said)

    def _do_action(self, kind: str) -> None:
        """The policy's next action is spoilt."""
        self.next_action = kind

    def _do_hang(self, seconds: float) -> None:
        self.hang_s = seconds

    def _do_clock(self, shift_s: float) -> None:
        """Set the wall clock of this process."""
        real = getattr(time, "_real_time", None) or time.time
        time._real_time = real  # type: ignore[attr-defined]
        time.time = lambda: real() + shift_s
        self.say("clock")

    def _do_fail_reset(self) -> None:
        env = self.env
        helped: list[str] = []
        motion = Motion(env.rig, env.safety, env.control_hz)
        bench = Bench(make_task("Reach"), env.rig, motion, ResetOptions())
        resetter = ArmResetter(NeverThere(bench), on_help=helped.append)
        env.resetter = resetter
        try:
            env.reset(seed=2)
            error = None
        except RobotRLError as raised:
            error = f"{type(raised).__name__}: {raised}"
        env.resetter = Stay()
        self.say("reset", error=error, attempts=resetter.attempts_made, helped=helped)

    # -- stepping ---------------------------------------------------------------------------

    def _step(self) -> None:
        env = self.env
        tool, _ = env.safety.measure()
        if self.hang_s:
            self.say("hanging")
            hang_s, self.hang_s = self.hang_s, 0.0
            time.sleep(hang_s)
        action = self.policy.act(tool, env.control_hz)
        kind = self.next_action
        if kind is None or not kind.endswith("_forever"):
            self.next_action = None
        try:
            if kind is None:
                env.step(action)
            else:
                self._spoilt(kind, action)
        except RobotRLError as error:
            name = type(error).__name__
            if kind is not None and env.safety.held is None:
                self.say("refused", error=str(error), kind=name,
                         refused=env.safety.counters.refused)
                if kind.endswith("_forever"):
                    time.sleep(env.period_s)
                return
            self.running, self.next_action = False, None
            self.say("stopped", error=str(error), kind=name)

    def _spoilt(self, kind: str, action: Any) -> None:
        env = self.env
        began_s = time.monotonic()
        if kind.startswith("nan"):
            action = action.copy()
            action[int(self._rng.integers(3))] = self._rng.choice([np.nan, np.inf, -np.inf])
        elif kind == "shape":
            action = [np.zeros(4), np.zeros((1, 3)), np.zeros(0), "up"][int(self._rng.integers(4))]
        elif kind == "tenfold":
            action = 10.0 * action / max(self.policy._speed, 0.2)
        elif kind == "tenfold_move":
            delta = 10.0 * env.step_m * action
            done = env.safety.move(delta, 0.0, env.period_s)
            self.say("moved", began=began_s, asked=delta.tolist(), sent=done.delta_m.tolist(),
                     limited=bool(done.limited))
            env.rig.clock.sleep_until(env.rig.clock.now_s() + env.period_s)
            return
        _, _, _, _, info = env.step(action)
        self.say("stepped", began=began_s, asked=np.asarray(action).tolist(),
                 sent=info["executed_action"].tolist(), limited=bool(info["action_limited"]))


def _break(env: Any, how: str) -> None:
    """Spoil the stack as ``--broken`` says."""
    safety, arm = env.safety, env.rig.arm
    if how == "clears":
        threading.Thread(target=_clear_for_ever, args=(env,), daemon=True).start()
    elif how == "bursts":
        streamer: Any = next(v for v in vars(arm).values() if isinstance(v, SetpointStreamer))
        beat = streamer._beat

        def all_at_once(late_s: float) -> None:
            while late_s > 3.0 * streamer.period_s and streamer.pending():
                late_s -= streamer.period_s
                beat(0.0)
            beat(0.0)

        streamer._beat = all_at_once
        safety._watches.clear()
    elif how == "blind":
        safety._watches.clear()
    elif how == "careless":
        # A command goes to the arm as it is, past every check.
        def move(delta_m: Any, yaw_rad: float, duration_s: float) -> Any:
            done = type(safety).move(safety, delta_m, yaw_rad, duration_s)
            rows = arm._streamer._queue
            rows[3:, 0] += 0.2
            return done

        safety.move = move


def _clear_for_ever(env: Any) -> None:
    while True:
        time.sleep(0.05)
        if env.safety.held is not None:
            # Refused while the fault lasts; a commander as bad as this one tries again.
            with contextlib.suppress(RobotRLError):
                env.safety.rearm()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("robot", choices=("sawyer", "fr3", "panda"))
    parser.add_argument("options", nargs="*", help="rig options, KEY=VALUE")
    parser.add_argument("--camera", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--broken", choices=("", *BROKEN), default="")
    args = parser.parse_args()
    pairs = [dict(word.split("=", 1) for word in words) for words in (args.options, args.camera)]
    Commander(args.robot, pairs[0], pairs[1], args.broken).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
