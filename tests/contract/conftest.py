"""Rigs for the contract tests: both engines in this process, the drivers against simulated robots
that speak the real robot's protocol, each a process of its own."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from robot_rl.envs.tasks import make_task
from robot_rl.errors import MissingDependencyError
from robot_rl.interfaces import Array, Rig, RigRequest
from robot_rl.specs import load_robot
from tests.contract.engine_rigs import ENGINES, ROBOTS, ROOM, make_rig

_MODULES = {"mujoco": "robot_rl_sim.mujoco_engine", "pybullet": "robot_rl_sim.bullet_engine"}
_TASK = "Drawer"


@dataclass
class Bench:
    """A rig to try, and what the protocol does not offer: a record of what the arm put out, and a
    robot that fails and is mended.

    ``rows`` are the joint angles (n,) of each row as it was sent, in order. ``fail`` brings the
    robot out of its mode, ``mend`` takes the cause away without clearing anything; None where a
    robot has no errors of its own.
    """

    name: str
    rig: Rig
    rows: list[Array] = field(default_factory=list)
    fail: Callable[[], None] | None = None
    mend: Callable[[], None] | None = None
    simulation: Any = None

    @property
    def hardware(self) -> bool:
        return self.simulation is None

    def wait(self, time_s: float) -> None:
        """Let time pass; of a simulation, one row after the other."""
        clock = self.rig.clock
        if self.simulation is None:
            clock.sleep_until(clock.now_s() + time_s)
            return
        arm = self.rig.arm
        for _ in range(max(1, round(time_s / arm.period_s))):
            before = arm.sent()
            clock.sleep_until(clock.now_s() + arm.period_s)
            if arm.sent() > before:
                self.rows.append(self.simulation.stream.start.copy())

    def until(self, done: Callable[[], Any], what: str, timeout_s: float = 15.0) -> None:
        """Wait for something to be true; fails after ``timeout_s``."""
        end = self.rig.clock.now_s() + timeout_s
        while not done():
            assert self.rig.clock.now_s() < end, f"waited {timeout_s:g} s for {what}"
            self.wait(self.rig.arm.period_s)


def _watch_rows(bench: Bench, streamer: Any) -> None:
    """Write down each row that a driver puts on the wire, but not repetitions of the last."""
    send = streamer._send

    def spy(row: Any) -> None:
        if not row.repeated:
            bench.rows.append(row.position_rad.copy())
        send(row)

    streamer._send = spy


def _simulated(name: str, robots: Robots) -> Iterator[Bench]:
    engine, robot = name.split("-")
    pytest.importorskip(engine)
    module = importlib.import_module(_MODULES[engine])
    rig = module.make_rig(RigRequest(load_robot(robot), make_task(_TASK).scene()))
    yield Bench(name, rig, simulation=rig.scene)
    rig.close()
    rig.close()


class Robots:
    """Simulated robots, started when they are first asked for and stopped at the end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._sawyer: Any = None
        self._franka: Any = None

    def sawyer(self) -> tuple[Any, str]:
        """A Sawyer on a ROS 1 master of its own: its process and the master's address."""
        from robot_rl.ros.ros1_master import RosMaster
        from tests.drivers.intera import SimProcess

        if self._sawyer is None:
            master = self._stack.enter_context(RosMaster())
            sim = SimProcess("intera", "--master-uri", master.uri, "--task", _TASK,
                             "--cameras", "front")
            self._stack.callback(sim.stop)
            self._sawyer = sim, master.uri
        return self._sawyer[0], self._sawyer[1]

    def franka(self) -> Any:
        """An FR3 behind franka_ros2's and CRISP's topics, in a DDS domain of its own."""
        from tests.drivers.conftest import SimulatedFranka

        if self._franka is None:
            self._franka = SimulatedFranka("--robot", "fr3", "--task", _TASK)
            self._stack.callback(self._franka.stop)
        return self._franka


def _ros1(name: str, robots: Robots) -> Iterator[Bench]:
    pytest.importorskip("mujoco")
    try:
        from robot_rl.ros.ros1_import import import_rospy

        import_rospy()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    from tests.drivers.intera import intera_rig

    sim, _ = robots.sawyer()
    sim.heal()
    camera = "ros1:/robot_rl/cameras/front/image_raw?still=1"
    with intera_rig(sim, _TASK, camera=camera) as rig:
        bench = Bench(name, rig)

        def mend() -> None:
            sim.control(estop="release")
            sim.control(reset=True)
            sim.control(enable=True)

        bench.fail, bench.mend = lambda: sim.control(estop="press"), mend
        _watch_rows(bench, rig.arm.streamer)  # type: ignore[attr-defined]
        yield bench
        rig.close()


def _ros2(name: str, robots: Robots) -> Iterator[Bench]:
    for library in ("mujoco", "cyclonedds", "rosbags"):
        pytest.importorskip(library)
    from robot_rl_drivers.franka.rig import make_rig

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBOT_RL_ROS_RUNTIME", "embedded")
        sim = robots.franka()
        sim.ask(fault="clear")
        rig = make_rig(RigRequest(
            load_robot("fr3"), make_task(_TASK).scene(),
            options={"domain_id": str(sim.domain_id), "max_gap_s": "1"},
        ))
        bench = Bench(name, rig, fail=lambda: sim.ask(fault="estop"),
                      mend=lambda: sim.ask(fault="clear"))
        _watch_rows(bench, rig.arm._streamer)  # type: ignore[attr-defined]
        yield bench
        rig.close()
        rig.close()


def _franky(name: str, robots: Robots) -> Iterator[Bench]:
    pytest.importorskip("franky")
    from robot_rl_drivers.clock import MonotonicClock
    from robot_rl_drivers.franka.direct import FrankyArm, FrankyGripper
    from tests.drivers.test_franka_direct import FakeGripper, FakeLibrary, FakeRobot

    spec, clock, library = load_robot("fr3"), MonotonicClock(), FakeLibrary()
    robot = FakeRobot("127.0.0.1")
    arm = FrankyArm(spec, robot, library, clock, max_gap_s=1.0)
    gripper = FrankyGripper(spec, FakeGripper("127.0.0.1"), library, clock)
    rig = Rig(arm, gripper, clock, tracker=None, cameras={})  # type: ignore[arg-type]
    bench = Bench(name, rig, fail=robot._reflex, mend=lambda: None)
    _watch_rows(bench, arm._streamer)
    yield bench
    rig.close()
    rig.close()


_MAKERS: dict[str, Callable[[str, Robots], Iterator[Bench]]] = {
    "ros1-sawyer": _ros1, "ros2-fr3": _ros2, "franky-fr3": _franky,
}


@pytest.fixture(scope="session")
def robots() -> Iterator[Robots]:
    with contextlib.ExitStack() as stack:
        yield Robots(stack)


# Of a module, since one process knows one ROS 1 master at a time, and other tests have theirs.
@pytest.fixture(scope="module")
def benches(robots: Robots) -> Iterator[Callable[[str], Bench]]:
    """Opens the bench of that name once for a module's tests; closing is tried twice at the end."""
    with contextlib.ExitStack() as stack:
        made: dict[str, Bench] = {}
        skipped: dict[str, str] = {}

        def open_bench(name: str) -> Bench:
            if name in skipped:
                pytest.skip(skipped[name])
            if name not in made:
                opened = contextlib.contextmanager(_MAKERS.get(name, _simulated))
                try:
                    made[name] = stack.enter_context(opened(name, robots))
                except pytest.skip.Exception as reason:
                    skipped[name] = str(reason)
                    raise
            return made[name]

        yield open_bench


@pytest.fixture
def bench(request: pytest.FixtureRequest, benches: Callable[[str], Bench]) -> Bench:
    """The bench of the test's parameter: at rest, ready, with an empty record.

    ``pytest.mark.parametrize("bench", NAMES, indirect=True)`` chooses.
    """
    found = benches(request.param)
    arm = found.rig.arm
    if found.simulation is not None:
        from robot_rl.interfaces import Placement

        home = np.array(arm.spec.home_rad)
        found.simulation.place(home, Placement(np.zeros(3)))
    elif not arm.status().ready:
        assert found.mend is not None
        found.mend()
        time.sleep(0.3)
        arm.recover()
    sent = -1
    while arm.sent() > sent:
        sent = arm.sent()
        found.wait(5 * arm.period_s)
    found.rows.clear()
    return found


# -- the engines alone --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(e, r) for e in ENGINES for r in ROBOTS], ids="-".join)
def push_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = make_rig(*request.param)
    yield rig
    rig.close()


@pytest.fixture(scope="module", params=ENGINES)
def room(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = make_rig(request.param, "panda", ROOM)
    yield rig
    rig.close()
