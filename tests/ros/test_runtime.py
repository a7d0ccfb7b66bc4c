"""The embedded ROS 2 runtime: names, bytes and hashes on the wire, and two nodes that talk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds")
pytest.importorskip("rosbags")

from rosbags.typesys import Stores, get_typestore

from robot_rl.errors import InvalidInputError, StaleDataError
from robot_rl.ros import runtime
from robot_rl.ros.runtime import dds, services, types
from robot_rl.ros.runtime.node import expand
from robot_rl.ros.runtime.qos import QoS
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]


JOINTS = "sensor_msgs/msg/JointState"


def joints() -> Any:
    state = runtime.message(JOINTS)
    return state(name=["a", "bc"], position=[0.5, -1.5], velocity=np.array([1, 2], np.int64))


def test_the_bytes_are_those_of_rosbags() -> None:
    plain = get_typestore(Stores.ROS2_JAZZY)
    header = plain.types["std_msgs/msg/Header"](
        plain.types["builtin_interfaces/msg/Time"](7, 8), "base"
    )
    theirs = plain.types[JOINTS](
        header, ["a", "bc"], np.array([0.5, -1.5]), np.array([1.0, 2.0]), np.array([])
    )
    ours = joints()
    ours.header.stamp.sec, ours.header.stamp.nanosec = 7, 8
    ours.header.frame_id = "base"
    expected = bytes(plain.serialize_cdr(theirs, JOINTS))
    assert types.serialize(ours, JOINTS) == expected
    back = types.deserialize(expected, JOINTS)
    assert back.name == ["a", "bc"] and back.position.tolist() == [0.5, -1.5]


def test_what_travels_is_those_bytes(domain: int) -> None:
    participant = dds.Participant.of(domain)
    try:
        writer = participant.writer("rt/w", JOINTS, runtime.DEFAULT)
        reader = participant.reader("rt/w", JOINTS, runtime.SENSOR_DATA)
        data = types.serialize(joints(), JOINTS)
        dds.write(writer, data)
        got: list[Any] = []
        assert until(lambda: bool(got.extend(dds.taken(reader)) or got))
        sent = got[0].data
        # DDS fills up to a multiple of four.
        assert sent[: len(data)] == data and len(sent) - len(data) < 4
        dds.close(writer)
        dds.close(reader)
    finally:
        participant.release()


def test_type_hashes_are_those_that_ros_publishes() -> None:
    # As `ros2 topic info --verbose` shows them in Jazzy.
    assert types.type_hash(JOINTS) == (
        "RIHS01_a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e"
    )
    assert types.type_hash("std_msgs/msg/String") == (
        "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
    )


def test_the_hash_of_a_service_covers_request_response_and_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As rosidl of Jazzy generates it for this service.
    monkeypatch.setitem(
        types.SERVICES, "rosapi_msgs/srv/GetROSVersion", ("", "uint8 version\nstring distro")
    )
    types.store.cache_clear()
    try:
        known = types.store()
        assert known.hash_rihs01("service_msgs/msg/ServiceEventInfo") == (
            "RIHS01_41bcbbe07a75c9b52bc96bfd5c24d7f0fc0a08c0cb7921b3373c5732345a6f45"
        )
        assert known.hash_rihs01("rosapi_msgs/srv/GetROSVersion") == (
            "RIHS01_526058384b92d9d5a46cadafdcdfadddc28aa53c593a1ce174bdc36e714cb097"
        )
    finally:
        types.store.cache_clear()
        for function in (types._message, types._service, types._action, types.type_hash,
                         types._arrays):
            function.cache_clear()


def test_layouts_follow_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    # As rosidl of Jazzy generates it.
    assert types.type_hash("controller_manager_msgs/srv/ListControllers") == (
        "RIHS01_4f8e36bb1fa5afdeba45c2d56ae6a2097b1493a253f961dd6290c085033bd189"
    )
    monkeypatch.setenv("ROS_DISTRO", "humble")
    types.store.cache_clear()
    try:
        humble = types.store()
        name = "controller_manager_msgs/srv/SwitchController_Request"
        fields = [field for field, _ in humble.get_msgdef(name).fields]
        assert fields[2:4] == ["start_controllers", "stop_controllers"]
    finally:
        types.store.cache_clear()


def test_fields_that_a_later_release_appended_are_passed_over() -> None:
    switch = "controller_manager_msgs/srv/SwitchController"
    name = f"{switch}_Response"
    answer = types.serialize(runtime.service(switch).Response(ok=True), name)
    assert types.deserialize(answer + b"\0\0\0\x05\0\0\0fine\0", name).ok
    with pytest.raises(InvalidInputError, match="received bytes are no"):
        types.deserialize(b"\0\1\0\0", name)
    with pytest.raises(InvalidInputError, match="received bytes are no"):
        types.deserialize(types.serialize(joints(), JOINTS) + bytes(8), JOINTS)


def test_names_on_the_wire(node: Callable[..., Any]) -> None:
    one = node("arm", namespace="left")
    one.create_publisher(runtime.message(JOINTS), "joint_states", runtime.DEFAULT)
    one.create_service(runtime.service("std_srvs/srv/Trigger"), "~/stop", lambda q, a: a)
    runtime.action_server(
        one, runtime.action("franka_msgs/action/Grasp"), "/hand/grasp", lambda goal: None
    )
    expected = {
        ("rt/left/joint_states", "writers"): "sensor_msgs::msg::dds_::JointState_",
        ("rq/left/arm/stopRequest", "readers"): "std_srvs::srv::dds_::Trigger_Request_",
        ("rr/left/arm/stopReply", "writers"): "std_srvs::srv::dds_::Trigger_Response_",
        ("rq/hand/grasp/_action/send_goalRequest", "readers"):
            "franka_msgs::action::dds_::Grasp_SendGoal_Request_",
        ("rr/hand/grasp/_action/get_resultReply", "writers"):
            "franka_msgs::action::dds_::Grasp_GetResult_Response_",
        ("rq/hand/grasp/_action/cancel_goalRequest", "readers"):
            "action_msgs::srv::dds_::CancelGoal_Request_",
        ("rt/hand/grasp/_action/feedback", "writers"):
            "franka_msgs::action::dds_::Grasp_FeedbackMessage_",
        ("rt/hand/grasp/_action/status", "writers"): "action_msgs::msg::dds_::GoalStatusArray_",
    }
    for (name, kind), type_name in expected.items():
        found = one.participant.endpoints(name, kind)
        assert [each.type_name for each in found] == [type_name], name


def test_the_endpoint_says_hash_representation_and_reliability(node: Callable[..., Any]) -> None:
    from cyclonedds.qos import Policy

    one = node("a")
    one.create_publisher(runtime.message(JOINTS), "/x", runtime.SENSOR_DATA)
    (found,) = one.participant.endpoints("rt/x", "writers")
    assert found.qos[Policy.Userdata].data == f"typehash={types.type_hash(JOINTS)};".encode()
    representation = found.qos[Policy.DataRepresentation]
    assert representation.use_cdrv0_representation
    assert not representation.use_xcdrv2_representation
    assert found.qos[Policy.Reliability] == Policy.Reliability.BestEffort


def test_a_request_is_led_by_sixteen_bytes() -> None:
    response = runtime.service("std_srvs/srv/SetBool").Response(success=True, message="yes")
    name = "std_srvs/srv/SetBool_Response"
    plain, packed = types.serialize(response, name), services.pack(2**64 - 2, 5, response, name)
    assert packed[:4] == plain[:4] == b"\x00\x01\x00\x00"
    assert packed[4:20] == (2**64 - 2).to_bytes(8, "little") + (5).to_bytes(8, "little")
    assert packed[20:] == plain[4:]
    assert services.caller(packed) == (2**64 - 2, 5)
    assert services.unpack(packed, name).message == "yes"
    with pytest.raises(InvalidInputError, match="too few"):
        services.caller(packed[:15])


@pytest.mark.parametrize(("name", "full"), [
    ("x", "/ns/x"), ("/x/y", "/x/y"), ("~/x", "/ns/arm/x"),
])
def test_relative_names(name: str, full: str) -> None:
    assert expand(name, "/ns", "arm") == full


def test_bad_names_and_values_are_refused(node: Callable[..., Any]) -> None:
    with pytest.raises(InvalidInputError, match="2bad"):
        runtime.make_node("2bad")
    with pytest.raises(InvalidInputError, match=r"\[0, 232\]"):
        runtime.make_node("a", domain_id=999)
    with pytest.raises(InvalidInputError, match="did you mean sensor_msgs/msg/JointState"):
        runtime.message("sensor_msg/msg/JointState")
    with pytest.raises(AttributeError, match="valid: header, name"):
        runtime.message(JOINTS)(positions=[1.0])
    publisher = node("a").create_publisher(runtime.message(JOINTS), "x", runtime.DEFAULT)
    with pytest.raises(InvalidInputError, match="carries sensor_msgs/msg/JointState"):
        publisher.publish(runtime.message("std_msgs/msg/String")(data="no"))
    with pytest.raises(InvalidInputError, match="does not fit"):
        publisher.publish(runtime.message(JOINTS)(name=[3]))


def test_topics_carry_and_quality_of_service_counts(node: Callable[..., Any]) -> None:
    one, two = node("one"), node("two")
    kind = runtime.message(JOINTS)
    got: dict[str, list[Any]] = {"fits": [], "strict": []}
    two.create_subscription(kind, "/weak", got["fits"].append, runtime.SENSOR_DATA)
    two.create_subscription(kind, "/weak", got["strict"].append, runtime.DEFAULT)
    publisher = one.create_publisher(kind, "/weak", runtime.SENSOR_DATA)
    assert until(lambda: publisher.get_subscription_count() == 1)
    publisher.publish(joints())
    assert until(lambda: len(got["fits"]) == 1)
    assert got["fits"][0].position.tolist() == [0.5, -1.5]
    # A reliable subscriber of a best-effort topic receives nothing.
    assert got["strict"] == []
    assert two.count_publishers("/weak") == 1 and one.count_subscribers("/weak") == 2
    one.destroy_publisher(publisher)
    assert until(lambda: two.count_publishers("/weak") == 0)


def test_a_latched_topic_reaches_who_comes_late(node: Callable[..., Any]) -> None:
    one, two = node("one"), node("two")
    kind = runtime.message("std_msgs/msg/String")
    publisher = one.create_publisher(kind, "/late", runtime.LATCHED)
    for text in ("first", "last"):
        publisher.publish(kind(data=text))
    got: list[str] = []
    two.create_subscription(kind, "/late", lambda m: got.append(m.data), QoS(1, True, True))
    assert until(lambda: got == ["last"])


def test_services_answer_and_say_when_they_are_missing(node: Callable[..., Any]) -> None:
    one, two = node("one"), node("two")
    kind = runtime.service("std_srvs/srv/SetBool")

    def answer(request: Any, response: Any) -> Any:
        response.success, response.message = not request.data, "turned"
        return response

    client = two.create_client(kind, "/set")
    assert not client.wait_for_service(timeout_sec=0.05)
    one.create_service(kind, "/set", answer)
    assert client.wait_for_service(timeout_sec=10.0)
    futures = [client.call_async(kind.Request(data=bool(i % 2))) for i in range(6)]
    answers = [runtime.wait_for(future, 10.0, "/set").success for future in futures]
    assert answers == [True, False] * 3
    silent = two.create_client(kind, "/nobody")
    with pytest.raises(StaleDataError, match=r"/nobody did not answer within 0\.05 s"):
        runtime.wait_for(silent.call_async(kind.Request()), 0.05, "/nobody")


def test_actions_give_feedback_a_result_and_can_be_cancelled(node: Callable[..., Any]) -> None:
    one, two = node("one"), node("two")
    kind = runtime.action("control_msgs/action/GripperCommand")
    go_on = threading.Event()

    def execute(goal: Any) -> Any:
        goal.publish_feedback(kind.Feedback(position=0.5 * goal.request.command.position))
        while not go_on.is_set():
            if goal.is_cancel_requested:
                goal.canceled()
                return kind.Result(stalled=True)
            time.sleep(0.002)
        goal.succeed()
        return kind.Result(position=goal.request.command.position, reached_goal=True)

    runtime.action_server(one, kind, "/grip", execute)
    client = runtime.action_client(two, kind, "/grip")
    assert client.wait_for_server(timeout_sec=10.0)
    seen: list[float] = []
    goal = kind.Goal()
    goal.command.position = 0.04

    def send() -> Any:
        future = client.send_goal_async(goal, lambda m: seen.append(m.feedback.position))
        return runtime.wait_for(future, 10.0, "/grip")

    first = send()
    assert first.accepted
    ended = first.get_result_async()
    assert until(lambda: seen == [0.02]) and not ended.done()
    go_on.set()
    answer = runtime.wait_for(ended, 10.0, "/grip")
    assert answer.status == 4 and answer.result.reached_goal and answer.result.position == 0.04

    go_on.clear()
    second = send()
    ended = second.get_result_async()
    cancelled = runtime.wait_for(second.cancel_goal_async(), 10.0, "/grip")
    assert cancelled.return_code == 0 and len(cancelled.goals_canceling) == 1
    answer = runtime.wait_for(ended, 10.0, "/grip")
    assert answer.status == 5 and answer.result.stalled
    again = runtime.wait_for(second.cancel_goal_async(), 10.0, "/grip")
    assert again.return_code == again.ERROR_GOAL_TERMINATED


def test_a_callback_that_raises_does_not_stop_the_others(
    node: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    one = node("one")
    ticks: list[float] = []

    def fail() -> None:
        raise RuntimeError("on purpose")

    one.create_timer(0.01, fail)
    timer = one.create_timer(0.01, lambda: ticks.append(time.monotonic()))
    assert until(lambda: len(ticks) >= 5)
    timer.cancel()
    assert "on purpose" in caplog.text
    # None early, and none made up for.
    assert min(np.diff(ticks)) > 0.002


ECHO = """
import sys, threading
from robot_rl.ros import runtime
node = runtime.make_node("echo", domain_id=int(sys.argv[1]))
kind = runtime.message("sensor_msgs/msg/Image")
back = node.create_publisher(kind, "/back", runtime.DEFAULT)
node.create_subscription(kind, "/there", back.publish, runtime.DEFAULT)
with runtime.Spinner(node):
    print("ready", flush=True)
    sys.stdin.read()
runtime.destroy(node)
"""


def test_an_image_goes_to_another_process_and_back(
    node: Callable[..., Any], domain: int, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    child = subprocess.Popen(
        [sys.executable, "-c", ECHO, str(domain)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environment,
    )
    try:
        one = node("one")
        kind = runtime.message("sensor_msgs/msg/Image")
        got: list[tuple[float, Any]] = []
        one.create_subscription(
            kind, "/back", lambda m: got.append((time.monotonic(), m)), runtime.DEFAULT
        )
        publisher = one.create_publisher(kind, "/there", runtime.DEFAULT)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        assert until(lambda: publisher.get_subscription_count() == 1
                     and one.count_publishers("/back") == 1)
        pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
        image = kind(height=480, width=640, encoding="rgb8", step=1920, data=pixels.reshape(-1))
        trips = []
        for i in range(10):
            image.header.stamp.sec = i
            begin = time.monotonic()
            publisher.publish(image)
            assert until(lambda count=i: len(got) == count + 1)  # type: ignore[misc]
            trips.append(got[-1][0] - begin)
            assert got[-1][1].header.stamp.sec == i
        assert np.array_equal(got[-1][1].data, pixels.reshape(-1))
        with capsys.disabled():
            print(f" [640x480 RGB there and back: median {1e3 * np.median(trips):.1f} ms]", end="")
        # Two trips of 0.9 MB; element by element one alone takes longer.
        assert min(trips) < 0.06
    finally:
        child.communicate("", timeout=20)
    assert child.returncode == 0


def discovery_groups() -> str:
    """The lines of the kernel's table that are of DDS's discovery group, 239.255.0.1."""
    table = Path("/proc/net/igmp").read_text().splitlines()
    return "\n".join(line for line in table if "0100FFEF" in line)


def test_the_network_stays_out_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CYCLONEDDS_URI", raising=False)
    before = discovery_groups()
    node = runtime.make_node("a", domain_id=97)
    try:
        assert discovery_groups() == before
        assert "address='127.0.0.1'" in dds.network_config(node.participant.network)
        with pytest.raises(InvalidInputError, match="cannot be on 'any' as well"):
            runtime.make_node("b", domain_id=97, network="any")
    finally:
        runtime.destroy(node)
    with pytest.raises(InvalidInputError, match="is there such an interface"):
        runtime.make_node("a", domain_id=97, network="nonesuch0")
    with pytest.raises(InvalidInputError, match="should be loopback, any"):
        runtime.make_node("a", domain_id=97, network="'/><evil")
    capfd.readouterr()
