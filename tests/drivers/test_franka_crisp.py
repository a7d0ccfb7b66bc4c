"""The ROS 2 driver of a Franka against the simulated one: a process with the real topics."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds")
pytest.importorskip("rosbags")
pytest.importorskip("mujoco")

from robot_rl.backends import make_rig
from robot_rl.cli.main import main
from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError, LateCommandError, SafetyError, StaleDataError
from robot_rl.interfaces import Arm, Gripper, JointSetpoints, Rig, RigRequest
from robot_rl.kinematics import Kinematics
from robot_rl.ros import runtime
from robot_rl.safety import SafetyFilter
from robot_rl.specs import load_robot
from robot_rl_drivers.clock import MonotonicClock
from robot_rl_drivers.franka.crisp import FrankaArm
from robot_rl_drivers.franka.description import compare
from robot_rl_drivers.franka.gripper import FrankaGripper
from robot_rl_drivers.franka.rig import make_rig as make_franka_rig
from robot_rl_drivers.franka.robot_state import fault_of
from robot_rl_drivers.franka.topics import ToolPose

Until = Callable[..., bool]


@pytest.fixture(autouse=True)
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_RL_ROS_RUNTIME", "embedded")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("franka") / "targets.npz"


@pytest.fixture(scope="module")
def robot(simulated_franka: Callable[..., Any], record: Path) -> Any:
    """An FR3 in a namespace, with a joint prefix, on the Push scene."""
    return simulated_franka(
        "--robot", "fr3", "--namespace", "lab", "--arm-prefix", "left", "--cameras", "front",
        "--record", str(record),
    )


@pytest.fixture
def rig(robot: Any) -> Iterator[Callable[..., Rig]]:
    """Connects; the robot is whole and in control when the test begins."""
    robot.ask(fault="clear")
    made: list[Rig] = []

    def connect(**options: str) -> Rig:
        # Through make_rig of the module: the entry point may be another checkout's.
        one = make_franka_rig(RigRequest(
            load_robot("fr3"), make_task("Push").scene(),
            options={"domain_id": str(robot.domain_id), "namespace": "lab", "arm_prefix": "left",
                     "max_gap_s": "1", **options},
        ))
        made.append(one)
        if one.arm.status().fault is not None:
            one.arm.recover()
        return one

    yield connect
    for one in made:
        one.close()


def swing(arm: Arm, by_rad: float = 0.15, seconds: float = 0.6) -> JointSetpoints:
    """A minimum-jerk motion of every joint, from rest to rest."""
    count = round(seconds / arm.period_s)
    t = np.arange(1, count + 1) / count
    way = 10 * t**3 - 15 * t**4 + 6 * t**5
    speed = (30 * t**2 - 60 * t**3 + 30 * t**4) / seconds
    turn = by_rad * np.array([1.0, 0.5, -1.0, 0.5, 1.0, 0.5, -1.0])
    start = arm.state(1.0).position_rad
    return JointSetpoints(start + way[:, None] * turn, arm.period_s, speed[:, None] * turn,
                          at=arm.sent() + arm.lead_rows)


@pytest.mark.parametrize("mode", ["joint", "cartesian"])
def test_the_arm_follows_rows(robot: Any, rig: Callable[..., Rig], until: Until, mode: str) -> None:
    arm = rig(mode=mode).arm
    assert isinstance(arm, Arm) and arm.status().ready
    assert robot.ask()["active"] == f"{'joint' if mode == 'joint' else mode}_impedance_controller"
    before = robot.ask()["reflexes"]
    for way in (0.2, -0.2):
        motion = swing(arm, way)
        arm.command(motion)
        end = motion.position_rad[-1]
        there = until(lambda end=end: np.abs(arm.state(1.0).position_rad - end).max() < 2e-3)
        assert there, (arm.status(), arm.sent(), robot.ask())
    assert robot.ask()["reflexes"] == before
    assert until(lambda: np.abs(arm.state(0.5).velocity_rad_s).max() < 0.02)


def test_each_row_goes_out_once_in_order_at_its_beat(rig: Callable[..., Rig], until: Until) -> None:
    arm = rig().arm
    node = arm._node  # type: ignore[attr-defined]
    heard: list[tuple[Any, Any]] = []
    node.create_subscription(
        runtime.message("sensor_msgs/msg/JointState"), "target_joint",
        lambda m: heard.append((m.header.stamp, np.array(m.position))), runtime.QoS(1000),
    )
    motion = swing(arm)
    sent = arm.sent()
    arm.command(motion)
    wanted = motion.position_rad
    count = arm.lead_rows + len(wanted)
    complete = until(lambda: arm.sent() - sent >= count and len(heard) >= count)
    assert complete, (arm.status(), arm.sent() - sent, len(heard), count)
    rows = np.array([row for _, row in heard])[-len(wanted):]
    assert np.allclose(rows, wanted, atol=1e-12)
    gaps = np.diff([stamp.sec + 1e-9 * stamp.nanosec for stamp, _ in heard])
    # No burst: what comes late moves the rest back. (A busy machine delays a stamp now and then.)
    assert np.mean(gaps < 0.25 * arm.period_s) < 0.1
    assert 0.8 * arm.period_s < np.median(gaps) < 3.0 * arm.period_s
    with pytest.raises(LateCommandError):
        arm.command(JointSetpoints(wanted, arm.period_s, at=arm.sent() - 1))


def test_a_reflex_stays_until_a_person_recovers(
    robot: Any, rig: Callable[..., Rig], until: Until
) -> None:
    arm = rig().arm
    arm.command(swing(arm, 0.3, 1.5))
    assert until(lambda: arm.sent() > 40)
    robot.ask(fault="push", force_n=200.0)
    assert until(lambda: not arm.status().ready)
    assert "reflex" in (arm.status().fault or "")
    stopped = arm.sent()
    robot.ask(fault="clear")
    # Nothing brings it back but recover(): not time, and no new command.
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert not arm.status().ready and robot.ask()["mode"] == "reflex"
        with pytest.raises(SafetyError, match="reflex"):
            arm.command(swing(arm))
    assert arm.sent() == stopped and robot.ask()["recoveries"] == robot.ask()["recoveries"]
    here = arm.state(0.5).position_rad
    recoveries = robot.ask()["recoveries"]
    arm.recover()
    assert arm.status().ready and robot.ask()["recoveries"] == recoveries + 1
    assert robot.ask()["active"] == "joint_impedance_controller"
    time.sleep(0.2)
    assert np.abs(arm.state(0.5).position_rad - here).max() < 1e-3
    motion = swing(arm)
    arm.command(motion)
    assert until(lambda: np.abs(arm.state(0.5).position_rad - motion.position_rad[-1]).max() < 2e-3)


def test_the_safety_filter_drives_it_and_only_its_rearm_ends_a_reflex(
    robot: Any, rig: Callable[..., Rig], until: Until
) -> None:
    one = rig()
    safety = SafetyFilter(one.arm, one.gripper, one.clock)
    safety.sync()
    kinematics = Kinematics(one.arm.spec)

    def lift(steps: int) -> float:
        begin = kinematics.forward(one.arm.state(1.0).position_rad)[2, 3]
        # Each command lasts longer than the pause after it: a busy machine is no silent commander.
        for _ in range(steps):
            safety.move(np.array([0.0, 0.0, 0.03]), 0.0, 0.4)
            one.clock.sleep_until(one.clock.now_s() + 0.2)
        safety.rest()
        still = until(lambda: np.abs(one.arm.state(1.0).velocity_rad_s).max() < 1e-2)
        assert still, (one.arm.status(), safety.held, robot.ask())
        return float(kinematics.forward(one.arm.state(1.0).position_rad)[2, 3] - begin)

    before = robot.ask()["reflexes"]
    home = safety.posture(np.array([0.0, 0.0, 0.12]))
    for _ in range(100):
        if np.abs(one.arm.state(1.0).position_rad - home).max() < 1e-3:
            break
        safety.move_joints(home, 0.4, speed=0.5)
        one.clock.sleep_until(one.clock.now_s() + 0.1)
    assert 0.02 < lift(3) < 0.1
    assert robot.ask()["reflexes"] == before and safety.held is None
    robot.ask(fault="reflex")


    def held() -> str:
        safety.watch()
        return safety.held or ""

    assert until(lambda: "reflex" in held())
    with pytest.raises(SafetyError):
        safety.move(np.array([0.0, 0.0, 0.01]), 0.0, 0.1)
    assert robot.ask()["mode"] == "reflex"
    safety.rearm()
    assert safety.held is None and robot.ask()["mode"] == "move"
    assert 0.02 < lift(3) < 0.1


def test_a_jump_of_the_target_is_a_reflex(robot: Any, rig: Callable[..., Rig],
                                           until: Until) -> None:
    arm = rig().arm
    there = arm.state(1.0).position_rad + 0.4
    arm.command(JointSetpoints(there[None], arm.period_s, np.zeros((1, 7)), at=arm.sent() + 4))
    assert until(lambda: robot.ask()["mode"] == "reflex")
    assert until(lambda: "velocity discontinuity" in (arm.status().fault or ""))
    assert "joint_motion_generator_velocity_discontinuity" in robot.ask()["errors"]


def test_the_stop_button_cannot_be_recovered_from_while_pressed(
    robot: Any, rig: Callable[..., Rig], until: Until
) -> None:
    arm = rig().arm
    robot.ask(fault="estop")
    assert until(lambda: "stop is pressed" in (arm.status().fault or ""))
    with pytest.raises(SafetyError, match="release it first"):
        arm.recover()
    robot.ask(fault="clear")
    assert until(lambda: robot.ask()["mode"] == "idle")
    time.sleep(0.1)
    assert not arm.status().ready
    arm.recover()
    assert arm.status().ready


@pytest.mark.parametrize(("fault", "words"), [
    ("stuck", "stamps stand still"), ("silent", "old"), ("nan", "not finite"),
])
def test_states_that_are_no_states(
    robot: Any, rig: Callable[..., Rig], until: Until, fault: str, words: str
) -> None:
    arm = rig().arm
    arm.state(0.5)
    robot.ask(fault=fault)

    def refused() -> str:
        try:
            arm.state(0.1)
        except StaleDataError as error:
            return str(error)
        return ""

    assert until(lambda: words in refused())
    assert until(lambda: words in (arm.status().fault or ""))
    robot.ask(fault="clear")
    assert until(lambda: arm.status().ready)


def test_a_second_publisher_is_refused_and_noticed(
    robot: Any, rig: Callable[..., Rig], until: Until
) -> None:
    arm = rig().arm
    with pytest.raises(InvalidInputError, match=r"publish /lab/target_joint; one owns a target"):
        rig()
    arm.command(swing(arm, 0.2, 1.5))
    intruder = runtime.make_node("intruder", namespace="lab", domain_id=robot.domain_id)
    try:
        intruder.create_publisher(
            runtime.message("sensor_msgs/msg/JointState"), "target_joint", runtime.DEFAULT
        )
        assert until(lambda: "2 programs publish /lab/target_joint" in (arm.status().fault or ""))
        assert until(lambda: arm._streamer.pending() == 0)  # type: ignore[attr-defined]
        with pytest.raises(SafetyError, match="2 programs"):
            arm.recover()
    finally:
        runtime.destroy(intruder)
    assert until(lambda: arm._crowd() is None)  # type: ignore[attr-defined]
    assert not arm.status().ready
    arm.recover()
    assert arm.status().ready


def test_another_controller_is_noticed_and_manual_switching_is_respected(
    robot: Any, rig: Callable[..., Rig], until: Until
) -> None:
    rig(mode="cartesian").close()
    with pytest.raises(SafetyError, match="switch_controllers --activate joint_impedance"):
        rig(controllers="manual")
    arm = rig().arm
    assert robot.ask()["active"] == "joint_impedance_controller"
    switch = runtime.service("controller_manager_msgs/srv/SwitchController")
    client = arm._node.create_client(  # type: ignore[attr-defined]
        switch, "controller_manager/switch_controller")
    assert client.wait_for_service(timeout_sec=5.0)
    request = switch.Request(activate_controllers=["gravity_compensation"],
                             deactivate_controllers=["joint_impedance_controller"], strictness=2)
    assert runtime.wait_for(client.call_async(request), 5.0, "switch").ok
    assert until(lambda: "gravity_compensation is active" in (arm.status().fault or ""))
    arm.recover()
    assert arm.status().ready and robot.ask()["active"] == "joint_impedance_controller"


@pytest.mark.parametrize("kind", ["action", "franka"])
def test_the_gripper(robot: Any, rig: Callable[..., Rig], until: Until, kind: str) -> None:
    one = rig(gripper=kind)
    gripper = one.gripper
    assert isinstance(gripper, Gripper) and isinstance(gripper, FrankaGripper)
    assert until(lambda: one.watches["gripper"]() is None)
    for opening in (1.0, 0.0, 0.5):
        assert gripper.command(opening) == opening
        assert until(lambda opening=opening: abs(gripper.opening(0.5) - opening) < 0.05)
    # The newest command wins over one under way.
    gripper.command(0.0)
    gripper.command(1.0)
    assert until(lambda: gripper.opening(0.5) > 0.95)
    gripper.command(0.0)
    time.sleep(0.1)
    gripper.stop()
    time.sleep(0.2)
    held = gripper.opening(0.5)
    time.sleep(0.3)
    assert held > 0.2 and gripper.opening(0.5) == pytest.approx(held, abs=0.02)
    assert one.watches["gripper"]() is None
    with pytest.raises(InvalidInputError, match="nan"):
        gripper.command(float("nan"))


def test_what_surrounds_the_arm(robot: Any, rig: Callable[..., Rig], until: Until) -> None:
    one = rig()
    assert one.scene is None and one.address == f"ros2:{robot.domain_id}/lab:fr3"
    assert one.force is not None
    puck: dict[str, Any] = {}

    def tracked() -> bool:
        try:
            puck["state"] = one.tracker.body("puck", 0.5)
        except StaleDataError:
            return False
        return True

    assert until(tracked)
    # On the table, at rest.
    assert abs(puck["state"].position_m[2]) < 0.1 and np.abs(puck["state"].velocity_m_s).max() < 0.1
    free = one.force.wrench(0.5)
    assert np.linalg.norm(free.force_n) < 5.0
    one.force.zero()
    names = [name for name, ok, detail in one.arm.checks()]  # type: ignore[attr-defined]
    bad = [each for each in one.arm.checks() if not each[1]]  # type: ignore[attr-defined]
    assert not bad and "joint limits" in names
    heard: list[Any] = []
    one.arm._node.create_subscription(  # type: ignore[attr-defined]
        runtime.message("sensor_msgs/msg/Image"), "/robot_rl/cameras/front/image_raw",
        heard.append, runtime.SENSOR_DATA,
    )
    assert until(lambda: bool(heard))
    assert heard[0].encoding == "rgb8" and len(heard[0].data) == 64 * 64 * 3
    assert len(np.unique(heard[0].data)) > 10


def test_options_that_cannot_be_used(robot: Any, rig: Callable[..., Rig]) -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'namespace'"):
        rig(namespce="x")
    with pytest.raises(InvalidInputError, match="valid: joint, cartesian"):
        rig(mode="torque")
    with pytest.raises(InvalidInputError, match=r"\[20, 500\]"):
        rig(rate_hz="5000")
    with pytest.raises(InvalidInputError, match=r"is no Franka; .* drive fr3 and panda, ros1"):
        make_franka_rig(RigRequest(load_robot("sawyer"), make_task("Push").scene()))
    with pytest.raises(StaleDataError, match=r"left_fr3_joint1.*does franka_ros2 run"):
        rig(namespace="elsewhere", timeout_s="0.3")


def test_the_limits_of_the_description_are_compared() -> None:
    spec = load_robot("panda")
    names = list(spec.joint_names)

    def urdf(**changed: float) -> str:
        rows = []
        for joint in spec.joints:
            limits = {"lower": joint.lower_rad, "upper": joint.upper_rad,
                      "velocity": joint.velocity_rad_s, "effort": joint.torque_nm}
            if joint.name == "panda_joint4":
                limits.update(changed)
            words = " ".join(f'{key}="{value}"' for key, value in limits.items())
            rows.append(f'<joint name="{joint.name}"><limit {words}/></joint>')
        return f"<robot>{''.join(rows)}</robot>"

    assert compare(urdf(), spec, names) is None
    assert compare(urdf(lower=-3.2, velocity=9.0), spec, names) is None
    assert compare(urdf(lower=-2.0), spec, names) == "panda_joint4: lower -2, ours is -3.0718"
    assert "velocity 1, ours is" in (compare(urdf(velocity=1.0), spec, names) or "")
    assert "no limits" in (compare(urdf(), spec, ["other", *names[1:]]) or "")


def test_the_controllers_tool_is_compared_with_ours() -> None:
    class Node:
        def resolve_topic_name(self, topic: str) -> str:
            return f"/{topic}"

        def create_subscription(self, *given: Any) -> None:
            return None

    pose = runtime.message("geometry_msgs/msg/PoseStamped")()
    pose.pose.position.x, pose.pose.orientation.w = 0.5, 1.0
    tool = ToolPose(Node(), MonotonicClock())
    with pytest.raises(StaleDataError, match="no pose came on /current_pose"):
        tool.compare(np.eye(4))
    tool._receive(pose)
    ours = np.eye(4)
    ours[0, 3] = 0.505
    assert tool.compare(ours) is None
    ours[2, 3] = 0.1034
    assert "103.5 mm" in (tool.compare(ours) or "")


def test_modes_in_words() -> None:
    assert fault_of(1, []) is None and fault_of(2, []) is None
    assert fault_of(4, ["cartesian_reflex"]) == (
        "the robot stopped itself (reflex): cartesian reflex"
    )
    assert fault_of(1, ["power_limit_violation"]) == (
        "the robot reports an error: power limit violation"
    )
    for mode in (0, 3, 5, 6, 17):
        assert fault_of(mode, []) is not None


def test_a_robot_that_dies(simulated_franka: Callable[..., Any], until: Until) -> None:
    backend = "pybullet" if importlib.util.find_spec("pybullet") else "mujoco"
    robot = simulated_franka("--robot", "panda", "--backend", backend, "--inactive", "true")
    node = runtime.make_node("alone", domain_id=robot.domain_id)
    with runtime.Spinner(node):
        arm = FrankaArm(load_robot("panda"), node, MonotonicClock(), max_gap_s=1.0)
        # It was started without a controller.
        assert robot.ask()["active"] == "joint_impedance_controller" and arm.status().ready
        motion = swing(arm)
        arm.command(motion)
        assert until(
            lambda: np.abs(arm.state(0.5).position_rad - motion.position_rad[-1]).max() < 2e-3)
        tool = Kinematics(arm.spec).forward(arm.state(0.5).position_rad)
        assert np.isfinite(tool).all()
        robot.ask(fault="die")
        assert robot.process.wait(timeout=10) == 9
        assert until(lambda: "old" in (arm.status().fault or ""))
        with pytest.raises(SafetyError):
            arm.command(swing_from(motion, arm))
        with pytest.raises(SafetyError):
            arm.recover()
        arm.close()
    runtime.destroy(node)


def swing_from(motion: JointSetpoints, arm: Arm) -> JointSetpoints:
    return JointSetpoints(motion.position_rad, arm.period_s, at=arm.sent() + arm.lead_rows)


def test_a_controller_that_ignores_the_targets_is_found(
    robot: Any, rig: Callable[..., Rig], until: Until
) -> None:
    arm = rig().arm
    arm.command(swing(arm, 0.2, 1.5))
    assert until(lambda: np.abs(arm.state(0.5).velocity_rad_s).max() > 0.05)
    assert until(lambda: np.abs(arm.state(0.5).velocity_rad_s).max() < 0.02)
    assert arm.status().ready, arm.status()
    robot.ask(fault="deaf")
    arm.command(swing(arm, -0.2, 1.5))
    assert until(lambda: not arm.status().ready)
    assert "does not follow its targets" in str(arm.status().fault)
    sent = arm.sent()
    assert not until(lambda: arm.sent() > sent, 0.3)
    robot.ask(fault="clear")
    arm.recover()
    assert arm.status().ready


def test_a_stop_replaces_rows_that_go_out_though_the_state_is_at_fault(
    robot: Any, rig: Callable[..., Rig], until: Until
) -> None:
    arm = rig().arm
    motion = swing(arm, 0.2, 3.0)
    arm.command(motion)
    assert until(lambda: arm.sent() >= motion.at + 50)
    robot.ask(fault="nan")
    assert until(lambda: not arm.status().ready)
    at = arm.sent() + arm.lead_rows
    rows = motion.position_rad[at - motion.at:][:2]
    still = JointSetpoints(rows, arm.period_s, at=at)
    with pytest.raises(SafetyError, match="not finite"):
        arm.command(still)
    arm.command(replace(still, at=arm.sent() + arm.lead_rows, stop=True))
    end = arm.sent() + arm.lead_rows + 2
    assert until(lambda: not arm._stream().pending())  # type: ignore[attr-defined]
    assert arm.sent() <= end + 1
    # Nothing goes out any more: there is nothing to stop either.
    with pytest.raises(SafetyError, match="not finite"):
        arm.command(replace(still, at=arm.sent() + arm.lead_rows, stop=True))


def test_the_entry_point_is_declared() -> None:
    with pytest.raises(InvalidInputError, match="no Franka"):
        make_rig("ros2", RigRequest(load_robot("sawyer"), make_task("Push").scene()))


def test_it_stops_cleanly_and_leaves_its_record(robot: Any, record: Path) -> None:
    """The last test of this file: it ends the robot that the others share."""
    targets = robot.ask()["targets"]
    report = robot.stop()
    assert robot.process.returncode == 0
    assert report["real_time_factor"] > 0.5 and report["targets"] == targets
    with np.load(record) as rows:
        assert rows["position_rad"].shape == (report["recorded"], 7)
        assert (np.diff(rows["time_s"]) >= 0.0).all()
        assert np.isfinite(rows["velocity_rad_s"]).all()


@pytest.mark.parametrize(("words", "message"), [
    (("--robot", "sawyer"), "unknown Franka 'sawyer'"),
    (("--domain-id", "400"), "should be a whole number in [0, 232]"),
    (("--task", "Juggle"), "Juggle"),
    (("--cameras", "back"), "camera 'back' is not in the scene"),
])
def test_options_of_the_simulated_robot(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "franka", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
