"""The formats whose mutations are tried: the log, whole and running, and what is imported."""

from __future__ import annotations

import random
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data import DatasetWriter, Episode, RecordingOptions, open_log
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.log import episode_of, read_file
from robot_rl.data.verify import verify
from robot_rl.errors import InvalidInputError

from .mcap_surgery import MAGIC, mutate_signed
from .mutations import Format, mutate_bytes
from .samples import INFO, digest, is_beginning, make_episode, play

SEEDS = (1, 2, 3)


def build_log(path: Path) -> None:
    """Three episodes: raw and with png frames, in several chunks, and one without frames."""
    from robot_rl.data import recording

    before = recording._FLUSH_BYTES
    recording._FLUSH_BYTES = 300
    try:
        with DatasetWriter(path, INFO) as writer:
            writer.append(make_episode(SEEDS[0], 5))
            live = writer.begin()
            play(live, make_episode(SEEDS[1], 5, cameras=False))
            live.commit()
        with DatasetWriter.extend(path, options=RecordingOptions("png")) as writer:
            live = writer.begin({"seed": SEEDS[2]})
            play(live, make_episode(SEEDS[2], 5))
            live.commit()
    finally:
        recording._FLUSH_BYTES = before
    _WHOLE.clear()
    _WHOLE.update(zlib.crc32(file.path.read_bytes()) for file in open_log(path).files)


ORIGINALS = [make_episode(seed, 5, cameras=seed != SEEDS[1]) for seed in SEEDS]
_DIGESTS = [digest(episode) for episode in ORIGINALS]


# Checksums of the sample's files, which need not be read again where another was changed.
_WHOLE: set[int] = set()


def read_exactly(path: Path) -> None:
    """Read as checksums allow: what was recorded, or an error."""
    log = open_log(path)
    assert len(log) == len(SEEDS)
    errors: list[InvalidInputError] = []
    for number, file in enumerate(log.files):
        if _is_known(file.path):
            continue
        try:
            found = log.read(number)
            assert digest(found) == _DIGESTS[number], f"episode {number} is read as another"
            assert log.summary(number)["steps"] == len(found)
        except InvalidInputError as error:
            errors.append(error)
        _read_partly(log.files[number].path, ORIGINALS[number])
    if errors:
        assert not verify(path)["ok"], "verify finds nothing wrong"
        raise errors[0]


def _is_known(path: Path) -> bool:
    return zlib.crc32(path.read_bytes()) in _WHOLE


def _read_partly(path: Path, original: Episode) -> None:
    """What a reader of a running recording, and a repair, would take of the file."""
    for images in (True, False):
        try:
            contents = read_file(path, images=images, partial=True)
            found = episode_of(contents, str(path), partial=True)
        except InvalidInputError:
            continue
        if images:
            assert is_beginning(found, original), "what is read never happened"


def read_anyhow(path: Path) -> None:
    """Read a log whose checksums are right although its content may be anything."""
    log = open_log(path)
    errors = []
    for file in log.files:
        if _is_known(file.path):
            continue
        for work in (log.read, log.summary):
            try:
                work(file)
            except InvalidInputError as error:
                errors.append(error)
        for images in (True, False):
            try:
                episode_of(read_file(file.path, images=images, partial=True), "it", partial=True)
            except InvalidInputError as error:
                errors.append(error)
    verify(path)
    if errors:
        raise errors[0]


def _mutate_log(name: str, content: bytes, rng: random.Random) -> bytes:
    return mutate_bytes(content, rng)


def _mutate_behind_checksums(name: str, content: bytes, rng: random.Random) -> bytes:
    if not content.startswith(MAGIC):
        return mutate_bytes(content, rng)
    return mutate_signed(content, rng, mutate_bytes)


def log_formats() -> list[Format]:
    """The log, with and without checksums that match what was changed."""
    return [
        Format("log", build_log, read_exactly, _mutate_log),
        Format("log, checksums right", build_log, read_anyhow, _mutate_behind_checksums),
    ]




# -- what is imported ---------------------------------------------------------------------------

RATE_HZ = 10.0
BAG_MAP = {
    "observation.state": [{"topic": "/joint_states", "field": "position"}],
    "action": {"topic": "/command", "field": "vector"},
    "images": {"front": "/camera/image_raw"},
}
MAPPING = """\
task: Push
rate_hz: 10
align: /command
episodes: {gap_s: 2.0, min_steps: 2}
observation.state:
  - {topic: /joint_states, field: position, entries: [0, 1]}
  - {topic: /tool/velocity, field: vector, slice: [0, 2], scale: 0.5}
action: {topic: /command, field: vector, low: -0.025, high: 0.025, on_missing: hold}
goal:
  achieved: {topic: /puck, field: point, slice: [0, 2]}
  desired: {topic: /goal, field: point, slice: [0, 2]}
  threshold_m: 0.04
images: {front: {topic: /camera/image_raw, size: [48, 48], max_age_s: 0.2}}
extra: {joint_velocity: {topic: /joint_states, field: velocity}}
"""


def build_npz(path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(path, observations=rng.normal(size=(12, 3)), actions=rng.normal(size=(12, 2)),
             rewards=rng.normal(size=12), episode_lengths=np.array([5, 7]),
             terminals=np.arange(12) == 4)
    path.with_name(f"{path.name}.npz").rename(path)


def build_robomimic(path: Path) -> None:
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = '{"env_name": "Lift", "env_kwargs": {"control_freq": 20}}'
        for demo in range(2):
            group = data.create_group(f"demo_{demo}")
            group.attrs["num_samples"] = 6
            for name, shape in {"actions": (6, 2), "rewards": (6,), "obs/object": (6, 3),
                                "next_obs/object": (6, 3)}.items():
                group[name] = rng.normal(size=shape)
            group["dones"] = np.arange(6) == 5
            frames = rng.integers(0, 256, (6, 4, 6, 3)).astype(np.uint8)
            group.create_dataset("obs/front_image", data=frames, compression="gzip")
            group["next_obs/front_image"] = frames


def build_d4rl(path: Path) -> None:
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, shape in {"observations": (9, 3), "actions": (9, 2), "rewards": (9,),
                            "infos/goal": (9, 2)}.items():
            file[name] = rng.normal(size=shape).astype(np.float32)
        file["terminals"], file["timeouts"] = np.arange(9) == 4, np.arange(9) == 8


def exported(kind: str) -> Callable[[Path], None]:
    """A builder of what the exporter ``kind`` makes of the log."""

    def build(path: Path) -> None:
        from robot_rl.data.exporters import export_dataset

        log = path.parent / "log"
        with DatasetWriter(log, INFO) as writer:
            for seed in SEEDS:
                writer.append(make_episode(seed, 5))
        export_dataset(kind, log, path, quiet=True)
        shutil.rmtree(log)

    return build


def build_bag(kind: str) -> Callable[[Path], None]:
    """A builder of a bag with the public writer."""

    def build(path: Path) -> None:
        from rosbags import rosbag1, rosbag2
        from rosbags.typesys import Stores, get_typestore

        ros1 = kind == "ros1"
        store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
        made = path.with_name("made.bag" if ros1 else "made")
        if ros1:
            writer: Any = rosbag1.Writer(made)
        else:
            plugin = rosbag2.StoragePlugin["MCAP" if kind == "mcap" else "SQLITE3"]
            writer = rosbag2.Writer(made, version=8, storage_plugin=plugin)
        with writer:
            topics: dict[str, Any] = {}
            for at, topic, message in _messages(store, ros1):
                name = message.__msgtype__
                if topic not in topics:
                    topics[topic] = writer.add_connection(topic, name, typestore=store)
                data = (store.serialize_ros1(message, name) if ros1
                        else store.serialize_cdr(message, name))
                writer.write(topics[topic], at, data)
        made.rename(path)

    return build


def _messages(store: Any, ros1: bool) -> Iterator[tuple[int, str, Any]]:
    rng, types = np.random.default_rng(0), store.types

    def header(at: int) -> Any:
        stamp = types["builtin_interfaces/msg/Time"](sec=at // 10**9, nanosec=at % 10**9)
        more = {"seq": 0} if ros1 else {}
        return types["std_msgs/msg/Header"](stamp=stamp, frame_id="f", **more)

    for tick in range(40):
        at = 1_700_000_000 * 10**9 + tick * 25 * 10**6
        yield at, "/joint_states", types["sensor_msgs/msg/JointState"](
            header=header(at), name=["a", "b"], position=rng.normal(size=2),
            velocity=np.zeros(0), effort=np.zeros(0))
        if tick % 3 == 0:
            yield at, "/camera/image_raw", types["sensor_msgs/msg/Image"](
                header=header(at), height=4, width=6, encoding="rgb8", is_bigendian=0, step=18,
                data=rng.integers(0, 256, 72).astype(np.uint8))
        if tick % 4 == 0:
            vector = types["geometry_msgs/msg/Vector3"](x=float(rng.normal()), y=0.5, z=0.0)
            yield at, "/command", types["geometry_msgs/msg/Vector3Stamped"](
                header=header(at), vector=vector)


def imports(kind: str, mapping: dict[str, Any] | None = None, rate_hz: float = 0.0) -> (
    tuple[Callable[[Path], None], Callable[[Path], None]]
):
    """How a case is read here, and as the product does it, in a process of its own."""

    def read(path: Path) -> None:
        import importlib

        from robot_rl.data.importers.run import IMPORTERS

        module = importlib.import_module(IMPORTERS[kind])
        source = module.open_source(path, ImportOptions(rate_hz=rate_hz, mapping=mapping or {}))
        try:
            for number, episode in enumerate(source):
                episode.check(f"episode {number}")
        finally:
            source.close()

    def contained(path: Path) -> None:
        from robot_rl.data.importers.run import Limits, import_dataset

        import_dataset(kind, path, path.with_name("imported"), mapping=mapping, rate_hz=rate_hz,
                       quiet=True, limits=Limits(2 << 30, 10.0))

    return read, contained


def read_mapping(path: Path) -> None:
    from robot_rl.data.importers.mapping import parse_mapping, read_yaml

    parse_mapping(read_yaml(path, "mapping"))


def import_formats() -> list[Format]:
    """Everything that can be imported."""
    bags = [Format(f"rosbag, {kind}", build_bag(kind), *_in_order(
        imports("rosbag1" if kind == "ros1" else "rosbag2", BAG_MAP, RATE_HZ)))
        for kind in ("mcap", "sqlite", "ros1")]
    return [
        Format("npz", build_npz, *_in_order(imports("npz"))),
        Format("mapping", lambda path: _write(path, MAPPING), read_mapping, _mutate_text),
        *bags,
        Format("lerobot", exported("lerobot"), *_in_order(imports("lerobot"))),
        Format("minari", exported("minari"), *_in_order(imports("minari"))),
        Format("robomimic", build_robomimic, *_in_order(imports("robomimic"))),
        Format("d4rl", build_d4rl, *_in_order(imports("d4rl"))),
    ]


def _in_order(both: tuple[Callable[[Path], None], Callable[[Path], None]]) -> tuple[Any, Any, Any]:
    return both[0], _mutate_log, both[1]


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _mutate_text(name: str, content: bytes, rng: random.Random) -> bytes:
    """Words and lines moved, removed, doubled and made absurd, or bytes changed."""
    if rng.random() < 0.4:
        return mutate_bytes(content, rng)
    words = re.split(r"(\W)", content.decode())
    for _ in range(rng.choice([1, 1, 2, 5])):
        one, two = rng.randrange(len(words)), rng.randrange(len(words))
        words[one] = rng.choice([words[two], "", "-1", "1e400", "null", "[[[[", "{", "*a", "&a",
                                 "!!python/object:os.system", "9" * 40, "\t", "  ", "0x7fffffff",
                                 ".nan", "true", words[one] * 3])
    return "".join(words).encode()
