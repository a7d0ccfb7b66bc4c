"""LeRobotDatasets that others recorded, v3.0 and v2.1, built here by their documented layout."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robot_rl.data.exporters.lerobot import export
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.lerobot import open_source
from robot_rl.data.importers.lerobot_layout import expand
from robot_rl.data.importers.video import VideoWriter, encode_png
from robot_rl.errors import InvalidInputError
from tests.unit.format_samples import MemoryLog, full_episode

LENGTHS = (4, 1, 6)
FPS = 5
STATE = {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]}


def one(dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1], "names": None}


def frames(number: int, count: int) -> np.ndarray:
    y, x = np.mgrid[0:32, 0:48]
    return np.stack([np.stack([3 * x, 5 * y, 20 * t + 60 * number + 0 * x], -1)
                     for t in range(count)]).clip(0, 255).astype(np.uint8)


class Recorded:
    """A dataset as lerobot records it: rows of all episodes, written by ``save``."""

    def __init__(self, camera: str = "image") -> None:
        self.camera, total = camera, sum(LENGTHS)
        rng = np.random.default_rng(0)
        self.numbers = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
        frame = np.concatenate([np.arange(n) for n in LENGTHS])
        self.columns: dict[str, np.ndarray] = {
            "observation.state": rng.normal(size=(total, 3)).astype(np.float32),
            "observation.force": rng.normal(size=(total, 2)),
            "action": rng.normal(size=(total, 2)).astype(np.float32),
            "next.success": (self.numbers == 0) & (frame == 3), "next.done": frame == np.repeat(
                np.array(LENGTHS) - 1, LENGTHS),
            "gripper": rng.normal(size=total).astype(np.float32),
            "timestamp": (frame / FPS).astype(np.float32), "frame_index": frame,
            "episode_index": self.numbers, "index": np.arange(total),
            "task_index": (self.numbers % 2).astype(np.int64)}
        self.features: dict[str, dict[str, Any]] = {
            "observation.state": STATE, "action": {**STATE, "shape": [2]},
            "observation.force": {"dtype": "float64", "shape": [2], "names": None},
            "next.success": one("bool"), "next.done": one("bool"), "gripper": one(),
            "timestamp": one(), **{name: one("int64") for name in (
                "frame_index", "episode_index", "index", "task_index")},
            "observation.images.top": {"dtype": camera, "shape": [32, 48, 3],
                                       "names": ["height", "width", "channel"]}}
        self.info: dict[str, Any] = {
            "robot_type": "so101", "total_episodes": len(LENGTHS), "total_frames": total,
            "fps": FPS, "features": self.features, "chunks_size": 1000}
        self.seen = np.concatenate([frames(i, n) for i, n in enumerate(LENGTHS)])

    def table(self, rows: slice) -> pa.Table:
        """The rows as lerobot stores them: lists of fixed size, PNG in a struct."""
        found = {}
        for name, array in self.columns.items():
            part = array[rows]
            found[name] = (pa.array(part) if part.ndim == 1 else pa.FixedSizeListArray.from_arrays(
                pa.array(part.reshape(-1)), part.shape[1]))
        if self.camera == "image":
            found["observation.images.top"] = pa.array(
                [{"bytes": encode_png(frame), "path": "frame.png"} for frame in self.seen[rows]],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        return pa.table(found)

    def video(self, path: Path, rows: slice) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = VideoWriter(path, (32, 48, 3), Fraction(FPS))
        for frame in self.seen[rows]:
            writer.add(frame)
        writer.close()

    def save_v3(self, root: Path) -> Path:
        """Two episodes in the first data file, one in the second; one video."""
        ends = np.cumsum(LENGTHS).tolist()
        rows = [{"episode_index": i, "tasks": [f"task {i % 2}"], "length": n,
                 "data/chunk_index": 0, "data/file_index": i // 2,
                 "dataset_from_index": end - n, "dataset_to_index": end,
                 "stats/action/mean": [0.0, 0.0]}
                for i, (n, end) in enumerate(zip(LENGTHS, ends, strict=True))]
        if self.camera == "video":
            for row in rows:
                name = "videos/observation.images.top"
                row |= {f"{name}/chunk_index": 0, f"{name}/file_index": 0,
                        f"{name}/from_timestamp": row["dataset_from_index"] / FPS}
            self.video(root / "videos/observation.images.top/chunk-000/file-000.mp4",
                       slice(None))
        for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
            (root / folder).mkdir(parents=True)
        for i, part in enumerate((slice(0, ends[1]), slice(ends[1], None))):
            pq.write_table(self.table(part), root / f"data/chunk-000/file-00{i}.parquet",
                           row_group_size=3)
        pq.write_table(pa.Table.from_pylist(rows),
                       root / "meta/episodes/chunk-000/file-000.parquet")
        pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": ["task 0", "task 1"]}),
                       root / "meta/tasks.parquet")
        self.write_info(root, codebase_version="v3.0",
                        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                        video_path="videos/{video_key}/chunk-{chunk_index:03d}/"
                                   "file-{file_index:03d}.mp4")
        return root

    def save_v2(self, root: Path) -> Path:
        """A file for each episode."""
        (root / "meta").mkdir(parents=True)
        (root / "data/chunk-000").mkdir(parents=True)
        end = 0
        lines = []
        for i, n in enumerate(LENGTHS):
            rows, end = slice(end, end + n), end + n
            pq.write_table(self.table(rows), root / f"data/chunk-000/episode_00000{i}.parquet")
            if self.camera == "video":
                self.video(root / "videos/chunk-000/observation.images.top"
                           / f"episode_00000{i}.mp4", rows)
            lines.append({"episode_index": i, "tasks": [f"task {i % 2}"], "length": n})
        for name, rows_ in (("episodes", lines), ("tasks", [
                {"task_index": i, "task": f"task {i}"} for i in range(2)])):
            (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows_))
        self.write_info(
            root, codebase_version="v2.1",
            data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            video_path="videos/chunk-{episode_chunk:03d}/{video_key}/"
                       "episode_{episode_index:06d}.mp4")
        return root

    def write_info(self, root: Path, **more: Any) -> None:
        self.info |= more
        (root / "meta/info.json").write_text(json.dumps(self.info))


def check_episodes(source: Any, recorded: Recorded, tolerance: float) -> None:
    assert (source.info.robot, source.info.rate_hz, source.count) == ("so101", 5.0, 3)
    # The first succeeded: its last step counts. The second had but one, which led nowhere. Of the
    # third the last is left out.
    first, third = source
    columns = recorded.columns
    for episode, begin, number in ((first, 0, 0), (third, 5, 2)):
        steps = len(episode)
        assert steps == (4 if number == 0 else 5)
        rows, states = slice(begin, begin + steps), slice(begin, begin + LENGTHS[number])
        count = LENGTHS[number]
        assert np.array_equal(episode.observation[:count], columns["observation.state"][states])
        assert np.array_equal(episode.action, columns["action"][rows])
        assert np.array_equal(episode.success, columns["next.success"][rows])
        assert np.array_equal(episode.reward, columns["next.success"][rows].astype(float) - 1)
        assert np.array_equal(episode.extra["observation.force"][:count],
                              columns["observation.force"][states])
        assert np.array_equal(episode.extra["gripper"][:count], columns["gripper"][states])
        assert set(episode.extra) == {"observation.force", "gripper"}
        assert np.allclose(episode.stamp_s[:count], np.arange(count) / FPS)
        seen = episode.images["top"].frames[:count].astype(float)
        assert np.abs(seen - recorded.seen[states]).mean() <= tolerance
        assert episode.metadata["instruction"] == "task 0"
        assert episode.metadata["episode_index"] == number
    assert source.skipped == 1
    assert first.terminated.tolist() == [False] * 3 + [True] and not first.truncated.any()
    assert np.array_equal(first.observation[-1], first.observation[-2])
    assert third.truncated.tolist() == [False] * 4 + [True] and not third.terminated.any()
    assert source.notes == [
        "there are no rewards: 0 on success, -1 otherwise",
        "the state after a last step that ended the task is not stored: repeated (episodes: 1)",
        "left out: no step with a next state (episodes: 1)",
        "last step left out: its next state is not stored (episodes: 1)"]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("camera", ["image", "video"])
def test_what_others_recorded_is_read(tmp_path, camera, version):
    recorded = Recorded(camera)
    root = (recorded.save_v3 if version == 3 else recorded.save_v2)(tmp_path / "d")
    source = open_source(root, ImportOptions())
    check_episodes(source, recorded, 0 if camera == "image" else 4)
    check_episodes(source, recorded, 0 if camera == "image" else 4)
    source.close()


def test_images_may_lie_in_files(tmp_path):
    recorded = Recorded()
    recorded.save_v3(tmp_path / "d")
    for i, rows in ((0, slice(0, 5)), (1, slice(5, None))):
        table = recorded.table(rows)
        paths = []
        for k, frame in enumerate(recorded.seen[rows]):
            paths.append(f"images/{i}-{k}.png")
            (tmp_path / "d/images").mkdir(exist_ok=True)
            (tmp_path / "d" / paths[-1]).write_bytes(encode_png(frame))
        column = pa.array([{"bytes": None, "path": path} for path in paths],
                          pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        at = table.column_names.index("observation.images.top")
        pq.write_table(table.set_column(at, "observation.images.top", column),
                       tmp_path / f"d/data/chunk-000/file-00{i}.parquet")
    check_episodes(open_source(tmp_path / "d", ImportOptions()), recorded, 0)


def test_a_mapping_makes_goals_rewards_and_names(tmp_path):
    recorded = Recorded()
    root = recorded.save_v3(tmp_path / "d")
    source = open_source(root, ImportOptions(task="Push", mapping={
        "observation.state": ["observation.force", "gripper"],
        "observation.achieved_goal": {"from": "observation.state", "columns": [0, 2]},
        "next.reward": "next.success", "observation.images.front": "observation.images.top"}))
    assert source.info.task == "Push"
    first, _ = source
    columns = recorded.columns
    expected = np.concatenate([columns["observation.force"], columns["gripper"][:, None]], 1)
    assert np.array_equal(first.observation[:4], expected[:4].astype(np.float32))
    assert np.array_equal(first.achieved[:4], columns["observation.state"][:4, :2])
    assert np.array_equal(first.desired, first.achieved[-1])
    assert first.reward.tolist() == [0, 0, 0, 1] and list(first.images) == ["front"]
    dropped = open_source(root, ImportOptions(mapping={"drop": ["observation.images.top"]}))
    assert next(iter(dropped)).images == {}


def test_without_a_state_all_observations_make_one(tmp_path):
    recorded = Recorded()
    for part in (recorded.columns, recorded.features):
        part["observation.arm"] = part.pop("observation.state")  # type: ignore[attr-defined]
        part.pop("next.success"), part.pop("next.done")  # type: ignore[attr-defined]
    recorded.features["language"] = {"dtype": "string", "shape": [1], "names": None}
    source = open_source(recorded.save_v3(tmp_path / "d"), ImportOptions())
    first, third = source
    assert [len(first), len(third)] == [3, 5]
    expected = np.concatenate([recorded.columns["observation.arm"],
                               recorded.columns["observation.force"]], 1)
    assert np.array_equal(first.observation, expected[:4].astype(np.float32))
    assert not first.reward.any() and not first.success.any() and first.truncated[-1]
    assert source.notes[:2] == ["left out: language, which holds no numbers",
                                "there are neither rewards nor success: rewards are 0"]


def test_what_was_exported_and_changed_is_read_as_any_other(tmp_path):
    log = MemoryLog([full_episode(3, n) for n in range(2)])
    export(log, tmp_path / "d", quiet=True)
    own = tmp_path / "d/meta/robot_rl/info.json"
    own.write_text(json.dumps({**json.loads(own.read_text()), "frames": 9}))
    source = open_source(tmp_path / "d", ImportOptions())
    one = next(iter(source))
    assert "changed since" in source.notes[0]
    assert np.array_equal(one.observation[:3], log.episodes[0].observation[:3])
    assert np.array_equal(one.requested, log.episodes[0].requested[:len(one)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version is 'v1.6', can be v3.0, v2.1 or v2.0"),
        ({"fps": 0}, "fps is '0'"),
        ({"fps": float("nan")}, "fps is 'nan'"),
        ({"features": None}, "features is missing"),
        ({"features": {"action": {"dtype": 5}}}, "feature 'action' has no dtype"),
        ({"features": {"action": {"dtype": "float32", "shape": [-1]}}}, r"has shape \[-1\]"),
        ({"total_episodes": 4}, "total_episodes is 4, 3 are listed"),
        ({"data_path": "data/{episode_index}.parquet"}, "may hold .*chunk_index"),
        ({"data_path": "data/other-{file_index}.parquet"}, "does not exist"),
    ],
)
def test_a_damaged_description_is_named(tmp_path, change, message):
    recorded = Recorded()
    root = recorded.save_v3(tmp_path / "d")
    recorded.write_info(root, **change)
    with pytest.raises(InvalidInputError, match=message):
        list(open_source(root, ImportOptions()))


def test_rows_that_are_off_are_named(tmp_path):
    for name, value, message in (
        ("action", None, "no column action"),
        ("episode_index", np.zeros(11, np.int64), "episode_index is not that of"),
        ("frame_index", np.arange(11), "frame_index is not that of"),
        ("action", np.zeros((11, 3), np.float32), "has 33 values|has 12 values"),
        ("observation.state", np.full((11, 3), np.nan, np.float32), "observation.state holds"),
    ):
        recorded = Recorded()
        if value is None:
            del recorded.columns[name]
        else:
            recorded.columns[name] = value
        root = recorded.save_v3(tmp_path / f"{name} {len(message)}")
        with pytest.raises(InvalidInputError, match=message):
            list(open_source(root, ImportOptions()))
    recorded = Recorded()
    root = recorded.save_v3(tmp_path / "short")
    pq.write_table(recorded.table(slice(0, 3)), root / "data/chunk-000/file-000.parquet")
    with pytest.raises(InvalidInputError, match="ends after 3 rows"):
        list(open_source(root, ImportOptions()))


def test_templates_hold_names_and_nothing_else():
    values: dict[str, int | str] = {"chunk_index": 7, "video_key": "a.b"}
    assert expand("x/{video_key}/c-{chunk_index:03d}", values, "here") == "x/a.b/c-007"
    assert expand("{chunk_index}", values, "here") == "7"
    for bad in ("{0.__class__}", "{chunk_index.__class__}", "{chunk_index:9999999d}", "{other}",
                "{chunk_index!r}", "{chunk_index:{video_key}}", "{video_key:03d}", "{", "}}", 5,
                "x" * 1000, "{chunk_index:099d}"):
        with pytest.raises(InvalidInputError, match="here: the path template"):
            expand(bad, values, "here")
