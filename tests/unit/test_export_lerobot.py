"""Export to LeRobotDataset v3.0: the documented layout, and every number back again.

That the lerobot package itself loads it is checked by scripts/check_lerobot.sh.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from robot_rl.data.episodes import Images
from robot_rl.data.exporters.lerobot import export
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.lerobot import open_source
from robot_rl.data.importers.video import decode_image
from robot_rl.errors import InvalidInputError, MissingDependencyError
from tests.unit.format_samples import MemoryLog, assert_equal, full_episode, plain_episode


def read_back(folder: Path) -> list:
    source = open_source(folder, ImportOptions())
    episodes = list(source)
    source.close()
    return episodes


@pytest.fixture(scope="module")
def full() -> MemoryLog:
    return MemoryLog([full_episode(5, 0), full_episode(1, 1), full_episode(7, 2)])


@pytest.fixture(scope="module")
def exported(full, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lerobot") / "out"
    done = export(full, folder, quiet=True)
    assert (done["episodes"], done["steps"], done["fps"]) == (3, 13, 10)
    assert set(done["beside"]) == {"none", "a/b", "u64", "only here", "index"}
    return folder


def test_every_number_comes_back(full, exported):
    source = open_source(exported, ImportOptions())
    assert source.info == full.info and source.count == 3
    for one, two in zip(full, source, strict=True):
        assert_equal(one, two)
    for one, two in zip(full, source, strict=True):  # And a second time.
        assert_equal(one, two)
    assert source.notes == []


@pytest.mark.parametrize(("o", "g", "cameras"), [(4, 0, False), (0, 0, True), (1, 1, True)])
def test_what_is_not_there_stays_away(tmp_path, o, g, cameras):
    log = MemoryLog([plain_episode(n + 1, n, o=o, g=g, cameras=cameras) for n in range(3)])
    export(log, tmp_path / "out", quiet=True)
    for one, two in zip(log, read_back(tmp_path / "out"), strict=True):
        assert_equal(one, two)


def test_the_layout_is_that_of_lerobot_3(full, exported):
    info = json.loads((exported / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 10
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert info["video_path"] is None and info["robot_type"] == "panda"
    counts = {"total_episodes": 3, "total_frames": 13, "total_tasks": 2, "chunks_size": 1000,
              "data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
    assert {key: info[key] for key in counts} == counts and info["splits"] == {"train": "0:3"}
    features = info["features"]
    assert features["observation.state"] == {"dtype": "float32", "shape": [4], "names": None}
    assert features["next.reward"] == {"dtype": "float32", "shape": [1], "names": None}
    assert features["observation.images.front"] == {
        "dtype": "image", "shape": [40, 36, 3], "names": ["height", "width", "channels"]}
    assert features["effort"]["dtype"] == "float64" and features["i8"]["shape"] == [2, 2, 2]
    # What begins with action would be predicted.
    assert [name for name in features if name.startswith("action")] == ["action"]
    table = pq.read_table(exported / "data/chunk-000/file-000.parquet")
    assert set(table.column_names) == set(features)
    columns = {name: table[name].to_pylist() for name in table.column_names
               if "images" not in name}
    assert columns["index"] == list(range(13))
    assert columns["episode_index"] == [0] * 5 + [1] + [2] * 7
    assert columns["frame_index"] == [*range(5), 0, *range(7)]
    assert columns["task_index"] == [0] * 5 + [1] + [0] * 7
    assert columns["timestamp"][:5] == [np.float32(i / 10) for i in range(5)]
    one = full.episodes[0]
    assert np.array_equal(np.array(columns["observation.state"][:5], np.float32),
                          one.observation[:5])
    assert np.array_equal(np.array(columns["i8"][:5]), one.extra["i8"][:5])
    assert columns["next.done"][:5] == (one.terminated | one.truncated).tolist()
    png = table["observation.images.front"][3].as_py()["bytes"]
    assert np.array_equal(decode_image(png, "frame"), one.images["front"].at(np.array(3)))


def test_the_episodes_and_tasks_are_those_of_lerobot_3(exported):
    rows = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["length"] for row in rows] == [5, 1, 7]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [
        (0, 5), (5, 6), (6, 13)]
    assert [row["tasks"] for row in rows] == [["push 0"], ["push 1"], ["push 0"]]
    for name in ("data/chunk_index", "data/file_index", "meta/episodes/chunk_index"):
        assert [row[name] for row in rows] == [0, 0, 0]
    tasks = pq.read_table(exported / "meta/tasks.parquet")
    assert tasks.to_pylist() == [{"task_index": 0, "__index_level_0__": "push 0"},
                                 {"task_index": 1, "__index_level_0__": "push 1"}]
    # pandas, and so lerobot, makes the text the index of its data frame of this.
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]


def test_statistics_are_of_all_frames(full, exported):
    stats = json.loads((exported / "meta/stats.json").read_text())
    states = np.concatenate([one.observation[:-1] for one in full]).astype(float)
    found = stats["observation.state"]
    assert np.allclose(found["mean"], states.mean(0), rtol=1e-12)
    assert np.allclose(found["std"], states.std(0), rtol=1e-12)
    assert found["min"] == states.min(0).tolist() and found["max"] == states.max(0).tolist()
    assert found["count"] == [13] and len(found["q99"]) == 4
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
    assert 0.4 < np.mean(stats["observation.images.front"]["mean"]) < 0.6
    assert stats["next.reward"]["mean"] == pytest.approx(
        [float(np.concatenate([one.reward for one in full]).astype(float).mean())])
    assert stats["odd"]["mean"] == [0.0, 0.0], "what is not finite is left out"


def test_long_logs_go_into_several_files(tmp_path, monkeypatch):
    from robot_rl.data.exporters import lerobot
    from robot_rl.data.importers import lerobot as importer

    monkeypatch.setattr(lerobot, "_DATA_MB", 0)
    monkeypatch.setattr(lerobot, "_EPISODES_AT_ONCE", 2)
    monkeypatch.setattr(lerobot, "_CHUNKS", 3)
    monkeypatch.setattr(lerobot, "OWN_PER_FILE", 2)
    monkeypatch.setattr(importer, "OWN_PER_FILE", 2)
    log = MemoryLog([plain_episode(n + 1, n, g=2) for n in range(5)])
    export(log, tmp_path / "out", quiet=True)
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.p*"))
    assert [name for name in names if name.startswith("data/")] == [
        "data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet",
        "data/chunk-000/file-002.parquet", "data/chunk-001/file-000.parquet",
        "data/chunk-001/file-001.parquet"]
    assert "meta/robot_rl/episodes-002.parquet" in names
    for one, two in zip(log, read_back(tmp_path / "out"), strict=True):
        assert_equal(one, two)


def test_a_video_keeps_all_but_the_frames_values(tmp_path):
    log = MemoryLog([full_episode(6, n) for n in range(2)])
    for one in log:
        rows, columns = np.mgrid[0:64, 0:48]
        frames = np.stack([np.stack([2 * rows, 3 * columns, 30 * t + 0 * rows], -1)
                           for t in range(7)]).clip(0, 255).astype(np.uint8)
        one.images = {"front": Images.each(frames), "grey": Images.each(frames[:, :31, :33, :1])}
    log.info.cameras = {"front": (64, 48, 3), "grey": (31, 33, 1)}
    export(log, tmp_path / "out", quiet=True, video=True)
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["features"]["observation.images.front"]["dtype"] == "video"
    assert info["features"]["observation.images.front"]["info"]["video.codec"] == "h264"
    row = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    assert row["videos/observation.images.front/from_timestamp"] == 0.6
    assert row["videos/observation.images.front/to_timestamp"] == 1.2
    source = open_source(tmp_path / "out", ImportOptions())
    for one, two in zip(log, source, strict=True):
        for name, images in one.images.items():
            found = two.images.pop(name).frames
            assert found.shape == images.frames.shape
            assert np.abs(found.astype(float) - images.frames).mean() < 4.0
        one.images = {}
        assert_equal(one, two)
    assert "video" in source.notes[0]


def test_the_rate_is_found_where_none_was_written_down(tmp_path):
    log = MemoryLog([plain_episode(4)])
    log.info.rate_hz = 0.0
    assert export(log, tmp_path / "a", quiet=True)["fps"] == 10
    log.episodes[0].stamp_s = np.arange(5) / 12.5
    assert export(log, tmp_path / "b", quiet=True)["fps"] == 12.5
    source = open_source(tmp_path / "b", ImportOptions())
    assert source.info.rate_hz == 0.0


def test_what_was_there_is_safe(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    log = MemoryLog([plain_episode(3, n) for n in range(3)])
    with pytest.raises(InvalidInputError, match=r"export: .*out is already there and not empty"):
        export(log, out, quiet=True)
    bad = MemoryLog([plain_episode(3), plain_episode(3)])
    bad.episodes[1].reward[0] = np.nan
    for overwrite in (False, True):
        with pytest.raises(InvalidInputError, match=r"episode 1: next.reward|already there"):
            export(bad, out, overwrite=overwrite, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "mine.txt").read_text() == "precious"
    export(log, out, overwrite=True, quiet=True)
    assert (tmp_path / "out.old/mine.txt").read_text() == "precious"
    with pytest.raises(InvalidInputError, match=r"episode 1: next.reward"):
        export(bad, tmp_path / "new", quiet=True)
    assert not (tmp_path / "new").exists()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("robot_rl.data.exporters.lerobot.write_json", full)
    with pytest.raises(InvalidInputError, match=r"cannot write .*new: No space left on device"):
        export(log, tmp_path / "new", quiet=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.old"]


def test_other_cameras_half_way_and_no_episodes_are_named(tmp_path):
    log = MemoryLog([plain_episode(3, cameras=True), plain_episode(3)])
    with pytest.raises(InvalidInputError, match="episode 1: cameras ; the first has front, wrist"):
        export(log, tmp_path / "out", quiet=True)
    log.episodes = []
    with pytest.raises(InvalidInputError, match="there are no episodes"):
        export(log, tmp_path / "out", quiet=True)


def test_a_missing_package_is_named_with_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r"needs pyarrow .*install robot_rl\[data\]"):
        export(MemoryLog([plain_episode(2)]), tmp_path / "out", quiet=True)
    assert list(tmp_path.iterdir()) == []
