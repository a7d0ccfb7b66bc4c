"""ROS 1 for the driver: rospy found and kept quiet, messages as compiled ones, masters that go."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import xmlrpc.client
from pathlib import Path

import pytest

from robot_rl.errors import InvalidInputError, MissingDependencyError, RobotRLError
from robot_rl.ros import ros1_import

try:
    ros1_import.import_rospy()
except MissingDependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

from robot_rl.ros.ros1 import Ros1Session, master_answers
from robot_rl.ros.ros1_master import RosMaster, free_port
from robot_rl.ros.ros1_messages import DEFINITIONS, build_class, message_class
from tests.drivers.intera import wait_for

ROOT = Path(__file__).resolve().parents[2]

# As the maker's own package compiles them.
MD5 = {
    "JointCommand": "c8c85922d297da6209a089a906207e5d",
    "EndpointState": "ec04f0f9bc02b3e335181c07d68c2c98",
    "RobotAssemblyState": "df79ce5f75a6b23626e9fcdf1cc4d298",
    "JointLimits": "c4c445eb2c9324525a704c84ca1e7598",
    "CollisionDetectionState": "7bde38c182b4d08fdc0635b116f65d04",
    "IOComponentCommand": "ede95ba2953dc221dc82cac20f697530",
    "IODataStatus": "bb31283c6afc4ddea2f5f157264e5909",
    "IODeviceStatus": "0d0c97a2d700848e7ad46e09a77cf896",
}


@pytest.mark.parametrize("name", sorted(MD5))
def test_intera_messages_have_the_makers_md5_sums(name):
    assert message_class(f"intera_core_msgs/{name}")._md5sum == MD5[name]


@pytest.mark.parametrize("name", sorted(n for n in DEFINITIONS if not n.startswith("intera")))
def test_standard_messages_built_here_have_the_compiled_ones_md5_sums(name):
    assert build_class(name)._md5sum == message_class(name)._md5sum


def test_constants_count_and_survive_the_wire():
    import io

    kind = message_class("intera_core_msgs/JointCommand")
    assert (kind.POSITION_MODE, kind.TRAJECTORY_MODE) == (1, 4)
    sent = kind(mode=4, names=["right_j0", "right_j1"], position=[1.5, -0.25], velocity=[0.0, 1.0])
    buffer = io.BytesIO()
    sent.serialize(buffer)
    got = kind()
    got.deserialize(buffer.getvalue())
    assert got.names == sent.names and list(got.position) == [1.5, -0.25] and got.mode == 4


def test_unknown_messages_are_named():
    with pytest.raises(InvalidInputError, match="JointComand"):
        build_class("intera_core_msgs/JointComand")
    with pytest.raises(MissingDependencyError, match="python3-no-such-msgs"):
        message_class("no_such_msgs/Thing")


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True,
        timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_without_rospy_the_error_says_what_to_install():
    done = run("""
        import sys
        from pathlib import Path
        from robot_rl.ros import ros1_import
        from robot_rl.errors import MissingDependencyError
        sys.path = [p for p in sys.path if "dist-packages" not in p and "/opt/ros" not in p]
        ros1_import.DIST_PACKAGES = Path("/nonexistent")
        try:
            ros1_import.import_rospy()
        except MissingDependencyError as error:
            print(error)
    """)
    assert "apt-get install python3-rospy python3-rosmaster" in done.stdout, done.stderr


def test_a_node_leaves_home_logging_and_signals_alone(tmp_path):
    with RosMaster() as master:
        done = run(f"""
            import logging, signal, sys
            from robot_rl.ros.ros1 import Ros1Session
            kind, handlers = logging.getLoggerClass(), list(logging.getLogger().handlers)
            signals = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
            session = Ros1Session({master.uri!r})
            assert sys.path[-1].endswith("dist-packages") or "/opt/ros" in str(sys.path)
            assert logging.getLoggerClass() is kind
            assert logging.getLogger().handlers == handlers
            assert signals == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
            assert "rclpy" not in sys.modules
            session.close()
            session.close()
            print("fine")
        """, HOME=str(tmp_path), ROS_HOME="")
    assert done.stdout == "fine\n", done.stdout + done.stderr
    assert done.stderr == "" and list(tmp_path.iterdir()) == []


def test_an_address_without_a_master_is_an_error():
    uri = f"http://127.0.0.1:{free_port()}"
    assert not master_answers(uri)
    with pytest.raises(RobotRLError, match=f"no ROS master answers at {uri}"):
        Ros1Session(uri)
    with pytest.raises(InvalidInputError, match="master_uri is 'sawyer'"):
        Ros1Session("sawyer")


@pytest.mark.parametrize("uri", [
    "http://127.0.0.1:notaport", "http://[::1", "http://127.0.0.1:99999", "http://127.0.0.1:-1",
    "http://:11311", "https://127.0.0.1:11311", "http://127.0.0.1:11311/\nx", "",
])
def test_what_is_no_address_is_named(uri, monkeypatch):
    monkeypatch.setenv("ROS_MASTER_URI", uri or "http://")
    with pytest.raises(InvalidInputError, match="master_uri is"):
        Ros1Session(uri)


@pytest.mark.parametrize("answer", [
    b"", b"\xff\xfe\n", b"HTTP/1.0 200 OK\r\n\r\n<html>", b"HTTP/1.0 404 no\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\n\r\n<?xml version='1.0'?><methodResponse>"
    b"<params><param><value><int>1</int></value></param></params></methodResponse>",
])
def test_what_answers_otherwise_is_no_master(answer):
    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(4096)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(RobotRLError, match="no ROS master answers"):
            Ros1Session(f"http://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)


def test_others_on_a_topic_that_is_ours_are_a_fault_while_they_live():
    with RosMaster() as master:
        session = Ros1Session(master.uri)
        session.publisher("/mine", "std_msgs/Float64", alone=True)
        session.publisher("/shared", "std_msgs/Float64")
        assert session.others("/mine") is None and session.fault() is None
        other = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(f"""
                import time
                from robot_rl.ros.ros1 import Ros1Session
                session = Ros1Session({master.uri!r}, name="second")
                session.publisher("/mine", "std_msgs/Float64")
                session.publisher("/shared", "std_msgs/Float64")
                time.sleep(60)
            """)], env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            fault = wait_for(session.fault, "the fault")
            assert "another program publishes /mine" in fault and "second" in fault
            assert "/shared" not in fault
            assert "second" in (session.others("/mine") or "")
            other.kill()
            other.wait()
            # It stays in the master's list, but nobody is there any more.
            assert session.others("/mine") is None
            wait_for(lambda: session.fault() is None, "the end of the fault")
        finally:
            other.kill()
            other.wait()
            session.close()


def test_a_dead_publisher_whose_port_somebody_else_has_now_is_none():
    with RosMaster() as master:
        session = Ros1Session(master.uri)
        session.publisher("/mine", "std_msgs/Float64", alone=True)
        told = xmlrpc.client.ServerProxy(master.uri)
        own = ros1_import.import_rospy().get_node_uri()
        other = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(f"""
                import sys
                from robot_rl.ros.ros1 import Ros1Session
                from robot_rl.ros.ros1_import import import_rospy
                session = Ros1Session({master.uri!r}, name="third")
                session.publisher("/theirs", "std_msgs/Float64")
                print(import_rospy().get_node_uri(), flush=True)
                sys.stdin.read()
            """)], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        try:
            assert other.stdout is not None
            theirs = other.stdout.readline().strip()
            # Killed nodes stay in the master's list, under an address that is another's by now.
            told.registerPublisher("/dead_1", "/mine", "std_msgs/Float64", own)
            told.registerPublisher("/dead_2", "/mine", "std_msgs/Float64", theirs)
            assert session.others("/mine") is None
            time.sleep(1.2)
            assert session.fault() is None
            assert "publishes /theirs: " in (session.others("/theirs") or "")
        finally:
            other.communicate("", timeout=20)
            session.close()


def test_messages_pass_and_only_one_master_at_a_time():
    got: list[float] = []
    with RosMaster() as master, RosMaster() as other:
        session = Ros1Session(master.uri)
        session.subscribe("/there", "std_msgs/msg/Float64", lambda m: got.append(m.data))
        publisher = session.publisher("/there", "std_msgs/Float64")
        wait_for(publisher.peers, "a subscriber")
        publisher.publish(publisher.message(2.5))
        wait_for(lambda: got, "the message")
        assert session.published("/the") == {"/there": "std_msgs/Float64"}
        with pytest.raises(InvalidInputError, match=other.uri):
            Ros1Session(other.uri)
        session.close()
        second = Ros1Session(other.uri)
        second.subscribe("/here", "std_msgs/Float64", lambda m: got.append(m.data))
        publisher = second.publisher("/here", "std_msgs/Float64", latch=True)
        publisher.publish(publisher.message(7.0))
        wait_for(lambda: got[-1] == 7.0, "a message through the second master")
        second.close()


def test_a_master_that_restarts_is_noticed_and_told_everything_again():
    got: list[float] = []
    with RosMaster() as master:
        session = Ros1Session(master.uri)
        session.subscribe("/a", "std_msgs/Float64", lambda m: got.append(m.data))
        own = session.publisher("/a", "std_msgs/Float64")
        session.publisher("/b", "std_msgs/Float64")
        wait_for(own.peers, "a connection")
        assert session.fault() is None
        master.stop(hard=True)
        wait_for(session.fault, "the fault")
        assert f"{master.uri} has not answered for" in session.fault()
        # Connections that stand outlive the master.
        own.publish(own.message(1.0))
        wait_for(lambda: got, "a message without a master")
        master.start()
        wait_for(lambda: session.fault() is None and session.registered_again, "registration")
        assert session.published("/") == {"/a": "std_msgs/Float64", "/b": "std_msgs/Float64"}
        # Somebody who comes now finds the topic, both ways.
        newcomer = run(f"""
            import time
            from robot_rl.ros.ros1 import Ros1Session
            session = Ros1Session({master.uri!r})
            got = []
            session.subscribe("/b", "std_msgs/Float64", lambda m: got.append(m.data))
            publisher = session.publisher("/a", "std_msgs/Float64", latch=True)
            publisher.publish(publisher.message(42.0))
            end = time.monotonic() + 20
            while not publisher.peers() and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.3)
            session.close()
        """)
        assert newcomer.returncode == 0, newcomer.stderr
        assert 42.0 in got
        session.close()


def test_rosmaster_keeps_to_the_loopback_and_leaves_nothing(tmp_path):
    with RosMaster() as master:
        logs = Path(master._logs.name)
        assert logs.exists() and master.uri.startswith("http://127.0.0.1:")
        began = time.monotonic()
    assert time.monotonic() - began < 6.0
    assert not logs.exists() and not master_answers(master.uri)


def test_rospys_own_complaints_stay_quiet():
    assert logging.getLogger("rospy").level == logging.CRITICAL
