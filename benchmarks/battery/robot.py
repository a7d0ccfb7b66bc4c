"""A simulated robot that also writes down, with times, what it was told and how it moved.

    python benchmarks/battery/robot.py intera|franka KEY=VALUE ...

The robot is that of ``robot-rl sim``, with its own control port, on which this one takes besides:
``{"mark": true}`` forgets what was written down, ``{"log": PATH}`` saves it as an .npz file,
``{"shift_s": s}`` moves the wall clock that its stamps come from.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from robot_rl.cli.sim import FrankaOptions, InteraOptions
from robot_rl_sim import crisp, intera

_LIMB = "/robot/limb/right"


class Diary:
    """Lists of rows by name; every row begins with its time [s, the monotonic clock]."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, list[Any]] = {}
        self.shift_s = 0.0

    def add(self, name: str, *values: Any) -> None:
        row = np.concatenate([np.atleast_1d(np.asarray(v, dtype=np.float64))
                              for v in (time.monotonic(), *values)])
        with self._lock:
            self._rows.setdefault(name, []).append(row)

    def obey(self, order: dict[str, Any]) -> None:
        """What of an order on the control port is meant for the diary."""
        if "shift_s" in order:
            self.shift_s = float(order["shift_s"])
        with self._lock:
            rows = dict(self._rows)
            if order.get("mark"):
                self._rows = {}
        if "log" in order:
            arrays: dict[str, Any] = {name: np.array(list(some)) for name, some in rows.items()}
            np.savez(order["log"], **arrays)


class DiarySawyer(intera.SimulatedSawyer):
    """Rows of ``command``: positions, velocities, accelerations, the sender's count; of
    ``measured``: angles, velocities, the reference, the mode; of ``reset``, ``enable`` and ``stop``
    the times alone."""

    def __init__(self, options: Any, master_uri: str) -> None:
        self.diary = Diary()
        super().__init__(options, master_uri)
        told = self.session.stamp
        rospy_time = type(told())
        self.session.stamp = lambda: rospy_time.from_sec(  # type: ignore[method-assign]
            time.time() + self.diary.shift_s)

    def _listen(self) -> None:
        listen = self.session.subscribe
        for name, topic, kind in (
            ("enable", "/robot/set_super_enable", "std_msgs/Bool"),
            ("reset", "/robot/set_super_reset", "std_msgs/Empty"),
            ("stop", "/robot/set_super_stop", "std_msgs/Empty"),
        ):
            listen(topic, kind, partial(self._on_order, name), newest_only=False)
        super()._listen()

    def _on_order(self, name: str, message: Any) -> None:
        self.diary.add(name)

    def _on_command(self, message: Any) -> None:
        names = list(message.names)
        order = [names.index(name) for name in self.spec.joint_names]
        self.diary.add("command", *(
            np.array(values)[order] if len(values) == len(names) else np.full(len(order), np.nan)
            for values in (message.position, message.velocity, message.acceleration)
        ), message.header.seq)
        super()._on_command(message)

    def _send_endpoint(self, stamp: Any, position: Any, velocity: Any) -> None:
        self.diary.add("measured", position, velocity, self.controller._q, self.controller.mode)
        super()._send_endpoint(stamp, position, velocity)

    def control(self, order: dict[str, Any]) -> dict[str, Any]:
        self.diary.obey(order)
        return super().control(order)


class DiaryFranka(crisp.SimulatedFranka):
    """As :class:`DiarySawyer`, with the sender's time stamp [s] in place of its count; ``reset``
    are error recoveries, ``enable`` switches of controllers."""

    def __init__(self, *arguments: Any) -> None:
        self.diary = Diary()
        self._ticks = 0
        super().__init__(*arguments)

    def _on_joint(self, target: Any) -> None:
        places = {name: i for i, name in enumerate(target.name)}
        if set(self._names) <= set(places):
            order = [places[name] for name in self._names]
            velocity = np.array(target.velocity)[order]
            self.diary.add("command", np.array(target.position)[order], velocity,
                           np.full(len(order), np.nan),
                           target.header.stamp.sec + 1e-9 * target.header.stamp.nanosec)
        super()._on_joint(target)

    def _on_recovery(self, goal: Any) -> Any:
        self.diary.add("reset")
        return super()._on_recovery(goal)

    def _on_switch(self, request: Any, response: Any) -> Any:
        self.diary.add("enable")
        return super()._on_switch(request, response)

    def _step(self, step_s: float) -> None:
        super()._step(step_s)
        self._ticks += 1
        if self._ticks % 2 == 0:
            position, velocity, _ = self._measured
            self.diary.add("measured", position, velocity, self.controller.reference,
                           float(self.controller.mode == "move"))

    def _stamp(self) -> Any:
        stamp = super()._stamp()
        stamp.sec += round(self.diary.shift_s)
        return stamp

    def control(self, request: dict[str, Any]) -> dict[str, Any]:
        self.diary.obey(request)
        return super().control(request)


def main() -> int:
    kind, *words = sys.argv[1:]
    options_of: Any = {"intera": InteraOptions, "franka": FrankaOptions}[kind]
    types: dict[str, Any] = {each.name: type(each.default) for each in fields(options_of)}
    given = dict(word.split("=", 1) for word in words)
    options = options_of(**{
        key: value == "1" if types[key] is bool else types[key](value)
        for key, value in given.items()
    })

    def end_with_parent() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()

    def ready(values: Mapping[str, Any]) -> None:
        print(json.dumps({"ready": True, **values}), flush=True)

    if kind == "intera":
        intera.SimulatedSawyer = DiarySawyer  # type: ignore[misc]
        print(json.dumps(intera.run(options, ready)), flush=True)
    else:
        crisp.SimulatedFranka = DiaryFranka  # type: ignore[misc, assignment]
        print(json.dumps(crisp.run(options, ready)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
