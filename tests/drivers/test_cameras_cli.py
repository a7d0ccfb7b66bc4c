"""``robot-rl camera``: exit codes, JSON, and what it writes."""

from __future__ import annotations

import json

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from robot_rl.cli.main import main  # noqa: E402


def run(capsys, *argv):
    code = main(["camera", *argv])
    out = capsys.readouterr()
    return code, out.out.strip().splitlines(), out.err


def check(capsys, source, seconds="0.6"):
    code, lines, _ = run(capsys, "check", "--source", source, "--seconds", seconds, "--json")
    return code, json.loads(lines[-1])


def write_file(path, frames):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 30, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return f"opencv:{path}"


def test_a_good_camera_is_ok(capsys):
    for _ in range(3):  # this machine may be too busy for a camera at its full rate
        code, found = check(capsys, "test:pattern?size=64x48")
        if code == 0:
            break
    assert list(found)[:5] == ["ok", "rate_hz", "frozen", "width", "height"]
    assert code == 0 and found["ok"] is True and found["frozen"] is False
    assert found["rate_hz"] == pytest.approx(30.0, rel=0.3)
    assert (found["width"], found["height"]) == (64, 48)
    assert found["problems"] == [] and found["sharpness"] > 0.0


@pytest.mark.parametrize("engine", ["mujoco", "pybullet"])
def test_a_simulated_camera_is_ok(capsys, engine):
    pytest.importorskip(engine)
    code, found = check(capsys, f"sim:{engine}/Push/front?size=64x48", "0.4")
    assert code == 0 and found["ok"] and not found["frozen"], found
    assert found["rate_hz"] == pytest.approx(30.0, rel=0.1)
    assert (found["width"], found["height"]) == (64, 48)


def test_a_short_file_is_looked_at_to_its_end(capsys, tmp_path):
    noise = np.random.default_rng(0).integers(50, 200, (20, 48, 64, 3), np.uint8)
    source = write_file(tmp_path / "short.avi", noise)
    for _ in range(3):
        code, found = check(capsys, source, "3")
        if code == 0:
            break
    assert code == 0 and found["ok"] and found["frames"] >= 5


def test_a_frozen_camera_is_not_ok(capsys, tmp_path):
    frames = np.random.default_rng(0).integers(50, 200, (60, 48, 64, 3), np.uint8)
    frames[3:] = frames[3]
    code, found = check(capsys, write_file(tmp_path / "frozen.avi", frames))
    assert code == 1 and found["ok"] is False and found["frozen"] is True
    assert any("frozen" in problem for problem in found["problems"])


def test_a_black_camera_is_not_ok(capsys, tmp_path):
    frames = np.zeros((60, 48, 64, 3), np.uint8)
    frames[:, 0, 0, 0] = np.arange(60)
    code, found = check(capsys, write_file(tmp_path / "black.avi", frames))
    assert code == 1 and not found["frozen"]
    assert any("black" in problem for problem in found["problems"])
    assert found["brightness"] < 1.0


def test_the_text_says_the_same(capsys):
    code, lines, _ = run(capsys, "check", "--source", "test:pattern", "--seconds", "0.4")
    assert lines[0] == f"test:pattern: {'NOT OK' if code else 'ok'}" and "640 x 480" in lines[1]


@pytest.mark.parametrize("source, said", [
    ("opencv:973", "no /dev/video973"), ("opencv:/no/such.mp4", "no such file"),
    ("webcam:0", "opencv:"), ("sim:mujoco/Push", "sim:BACKEND/TASK/CAMERA"),
    ("sim:gazebo/Push/front", "mujoco"), ("sim:mujoco/Push/fron", "did you mean 'front'"),
    ("sim:mujoco/Push/front?fps=x", "a number in"), ("sim:mujoco/Push/front?rate=3", "robot, size"),
    ("realsense:nope", "valid"),
])
def test_what_cannot_be_opened_is_exit_code_2(capsys, source, said):
    if source.startswith("realsense"):
        pytest.importorskip("pyrealsense2")
        said = "serial numbers here"
    code, lines, err = run(capsys, "check", "--source", source, "--json")
    assert code == 2 and lines == [] and said in err and err.count("\n") == 1


def test_a_view_becomes_a_video_or_pictures(capsys, tmp_path):
    pytest.importorskip("av")
    video, folder = tmp_path / "view.mp4", tmp_path / "pictures"
    source = "test:pattern?size=64x48"
    code, lines, _ = run(capsys, "view", "--source", source, "--out", str(video), "--seconds",
                         "0.5", "--json")
    found = json.loads(lines[-1])
    assert code == 0 and found["frames"] >= 5 and found["rate_hz"] > 10.0
    capture = cv2.VideoCapture(str(video))
    assert capture.read()[0]
    capture.release()
    code, lines, _ = run(capsys, "view", "--source", source, "--out", str(folder), "--seconds",
                         "0.3")
    pictures = sorted(folder.glob("*.png"))
    assert code == 0 and len(pictures) >= 2 and "a second" in lines[-1]
    assert cv2.imread(str(pictures[0]))[40, 44].tolist() == [0, 0, 255]  # the red bar, in BGR
    code, _, err = run(capsys, "view", "--source", source, "--out", str(folder))
    assert code == 2 and "in use" in err


def test_without_a_display_view_asks_for_a_file(capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    code, _, err = run(capsys, "view", "--source", "test:pattern")
    assert code == 2 and "--out" in err


def test_a_view_opens_a_window(capsys, monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    code, lines, _ = run(capsys, "view", "--source", "test:pattern?size=64x48", "--seconds", "0.3")
    assert code == 0 and "frames" in lines[-1]


def test_sources_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("ROS_MASTER_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("robot_rl_drivers.cameras.discover._DISCOVERY_S", 0.05)
    code, lines, _ = run(capsys, "list", "--json")
    found = json.loads(lines[-1])
    assert code == 0 and "test:pattern" in found["sources"]
    assert {"opencv", "realsense", "ros1", "ros2", "test", "sim"} == set(found["found"])
    code, lines, _ = run(capsys, "list")
    assert code == 0 and any("test:pattern" in line for line in lines)
