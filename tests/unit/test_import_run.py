"""Importing as a whole: a folder or nothing, in a process that may crash without harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.data import load_dataset
from robot_rl.data.importers import detect, import_dataset, run
from robot_rl.errors import InvalidInputError, MissingDependencyError, RobotRLError

pytest.importorskip("rosbags")
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

ROOT = Path(__file__).resolve().parents[2]
POINT = "geometry_msgs/msg/Point"
SMALL: dict[str, Any] = {"observation.state": {"topic": "/s", "field": "x"},
                         "action": {"topic": "/s", "field": "y"}}


def small_bag(path: Path, kind: str = "mcap") -> Path:
    """Points at 20 Hz for 2 s."""
    ros1 = kind == "ros1"
    store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
    if ros1:
        writer = rosbag1.Writer(path)
    else:
        plugin = rosbag2.StoragePlugin[{"mcap": "MCAP", "sqlite": "SQLITE3"}[kind]]
        writer = rosbag2.Writer(path, version=8, storage_plugin=plugin)
    write = store.serialize_ros1 if ros1 else store.serialize_cdr
    with writer:
        connection = writer.add_connection("/s", POINT, typestore=store)
        for k in range(41):
            point = store.types[POINT](x=float(k), y=-float(k), z=0.0)
            writer.write(connection, 10**18 + k * 50_000_000, write(point, POINT))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "alias"),
        ("!!python/object/apply:os.system ['true']\n", "not plain YAML"),
        ("[" * 200 + "]" * 200, "nested"),
        ("a: {b: [", "not plain YAML"),
        ("x" * 300_000, "over"),
        ("\x00\x01", "not plain YAML"),
        ("- 1\n", "keys with values"),
    ],
)
def test_mapping_files_that_are_none(tmp_path, text, message):
    file = tmp_path / "map.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        import_dataset("rosbag2", small_bag(tmp_path / "bag"), tmp_path / "out", mapping=file,
                       rate_hz=10)
    assert not (tmp_path / "out").exists()


# -- the import as a whole --------------------------------------------------------------------


def test_an_import_is_whole_or_not_there(tmp_path):
    path = small_bag(tmp_path / "bag")
    out = tmp_path / "deep" / "out"
    result = import_dataset("rosbag2", path, out, mapping=SMALL, rate_hz=10, task="Push",
                            quiet=True)
    assert json.loads(json.dumps(result)) == result
    assert (result["episodes"], result["steps"], result["path"]) == (1, 20, str(out))
    assert "observation.state" in result["keys"] and result["skipped"] == 0
    info, episodes = load_dataset(out)
    assert info.task == "Push" and info.rate_hz == 10 and len(episodes[0]) == 20
    assert info.config["mapping"]["action"] == SMALL["action"]
    with pytest.raises(InvalidInputError, match="--overwrite"):
        import_dataset("rosbag2", path, out, mapping=SMALL, rate_hz=10)
    bad = {**SMALL, "action": "/nothing"}
    for isolate in (True, False):
        with pytest.raises(InvalidInputError, match="no topic '/nothing'"):
            import_dataset("rosbag2", path, out, mapping=bad, rate_hz=10, overwrite=True,
                           isolate=isolate)
        assert len(load_dataset(out)[1]) == 1
    again = import_dataset("", path, out, mapping=SMALL, rate_hz=20, overwrite=True)
    assert again["steps"] == 40 and again["format"] == "rosbag2"
    assert len(load_dataset(tmp_path / "deep" / "out.old")[1][0]) == 20
    assert sorted(p.name for p in out.parent.iterdir()) == ["out", "out.old"]


def test_what_a_killed_import_left_is_cleared(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f".out.{dead.pid}.importing"
    others = [tmp_path / f".out.{os.getppid()}.importing", tmp_path / ".out.x.importing",
              tmp_path / ".outer.1.importing"]
    for folder in (stale, *others):
        folder.mkdir()
    path = small_bag(tmp_path / "bag")
    import_dataset("rosbag2", path, tmp_path / "out", mapping=SMALL, rate_hz=10, isolate=False)
    assert not stale.exists() and all(folder.exists() for folder in others)


def test_the_same_in_one_process(tmp_path):
    path = small_bag(tmp_path / "bag")
    seen: list[tuple[int, int]] = []
    import_dataset("rosbag2", path, tmp_path / "a", mapping=SMALL, rate_hz=10,
                   progress=lambda *counts: seen.append(counts))
    import_dataset("rosbag2", path, tmp_path / "b", mapping=SMALL, rate_hz=10, isolate=False)
    a, b = (load_dataset(tmp_path / name)[1][0] for name in "ab")
    np.testing.assert_array_equal(a.observation, b.observation)
    assert seen[-1] == (1, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "rosbag3"}, "did you mean 'rosbag2'"),
        ({"kind": ""}, "looks like none"),
        ({"rate_hz": -1.0}, "rate is -1"),
        ({"source": "gone"}, "does not exist"),
        ({"mapping": "gone.yaml"}, "does not exist"),
    ],
)
def test_arguments_that_cannot_be_used(tmp_path, arguments, message):
    (tmp_path / "text").write_text("hello")
    given = {"kind": "rosbag2", "source": tmp_path / "text", "out": tmp_path / "out", **arguments}
    with pytest.raises(InvalidInputError, match=message):
        import_dataset(given.pop("kind"), given.pop("source"), given.pop("out"), **given)
    assert not (tmp_path / "out").exists()


def fake_importer(tmp_path: Path, monkeypatch: Any, body: str) -> None:
    """Registers an importer that behaves badly, for the child too."""
    (tmp_path / "bad_importer.py").write_text(textwrap.dedent(body))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(run.IMPORTERS, "npz", "bad_importer")
    # The child learns of it the same way.
    monkeypatch.setattr(run, "_START", run._START.replace(
        "serve()", "import robot_rl.data.importers.run as r; "
        "r.IMPORTERS['npz'] = 'bad_importer'; r.serve()", 1).replace("import serve()", "import *"))


BAD_READERS = [
    ("import os, signal\ndef open_source(s, o): os.kill(os.getpid(), signal.SIGSEGV)",
     InvalidInputError, "crashed its reader, signal SIGSEGV"),
    ("import os\ndef open_source(s, o): os._exit(3)", InvalidInputError, "exit code 3"),
    ("import numpy as np\ndef open_source(s, o): np.ones(1 << 28)", InvalidInputError, "memory"),
    ("import time\ndef open_source(s, o): time.sleep(60)", InvalidInputError, "no progress"),
    ("def open_source(s, o): raise KeyError('x')", InvalidInputError, "KeyError"),
    ("from robot_rl.errors import MissingDependencyError\n"
     "def open_source(s, o): raise MissingDependencyError('needs foo')",
     MissingDependencyError, "^needs foo$"),
    ("print('noise')\ndef open_source(s, o):\n    import sys; sys.stdout.write('x' * 10**6)\n"
     "    raise ValueError('y')", InvalidInputError, "ValueError"),
]


@pytest.mark.parametrize(("body", "kind", "message"), BAD_READERS)
def test_whatever_happens_to_a_reader_becomes_an_error(
    tmp_path, monkeypatch, body, kind, message
):
    fake_importer(tmp_path, monkeypatch, body)
    source = tmp_path / "source.npz"
    source.write_bytes(b"PK\x03\x04")
    begun = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        import_dataset("npz", source, tmp_path / "out",
                       limits=run.Limits(memory_bytes=1 << 30, stall_s=1.0))
    assert isinstance(caught.value, RobotRLError) and time.monotonic() - begun < 30.0
    left = {p.name for p in tmp_path.iterdir()}
    assert left <= {"bad_importer.py", "source.npz", "__pycache__"}


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    program = """
        import sys
        from robot_rl.data.importers import import_dataset, run
        run.IMPORTERS["npz"] = "slow_importer"
        run._START = run._START.replace("serve()", "import robot_rl.data.importers.run as r; "
            "r.IMPORTERS['npz'] = 'slow_importer'; r.serve()", 1).replace("import serve()",
            "import *")
        sys.path.insert(0, sys.argv[1])
        print("ready", flush=True)
        import_dataset("npz", sys.argv[1] + "/source.npz", sys.argv[1] + "/out",
                       progress=lambda *counts: print(counts, flush=True))
    """
    (tmp_path / "slow_importer.py").write_text(textwrap.dedent("""
        import time
        import numpy as np
        from robot_rl.data import DatasetInfo, Episode
        class Source:
            count, notes = None, []
            info = DatasetInfo("", (2,), 0, 1)
            def __iter__(self):
                no = np.zeros(3, bool)
                while True:
                    yield Episode(np.zeros((4, 2), "f4"), np.zeros((4, 0), "f4"),
                                  np.zeros(0, "f4"), np.zeros((3, 1), "f4"), np.zeros(3, "f4"),
                                  no, no, no)
                    time.sleep(0.05)
            def close(self): pass
        def open_source(source, options): return Source()
    """))
    (tmp_path / "source.npz").write_bytes(b"PK\x03\x04")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # A shell without job control starts what it puts in the background with this ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[-1].startswith("("), process.communicate()[1]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert {p.name for p in tmp_path.iterdir()} <= {
        "slow_importer.py", "source.npz", "__pycache__"}


def test_the_reader_starts_quickly_and_without_torch():
    program = ("import time, sys; import robot_rl.data.importers.rosbag; "
               "import robot_rl.data.writer; "
               "print('torch' in sys.modules, time.process_time() < 2.0)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_formats_are_recognised(tmp_path):
    assert detect(small_bag(tmp_path / "a")) == "rosbag2"
    assert detect(tmp_path / "a" / "a.mcap") == "rosbag2"
    assert detect(small_bag(tmp_path / "b", "sqlite") / "b.db3") == "rosbag2"
    assert detect(small_bag(tmp_path / "c.bag", "ros1")) == "rosbag1"
    (tmp_path / "lerobot" / "meta").mkdir(parents=True)
    (tmp_path / "lerobot" / "meta" / "info.json").write_text("{}")
    assert detect(tmp_path / "lerobot") == "lerobot"
    (tmp_path / "minari" / "data").mkdir(parents=True)
    (tmp_path / "minari" / "data" / "metadata.json").write_text("{}")
    assert detect(tmp_path / "minari") == "minari"
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    assert detect(tmp_path / "x.npz") == "npz"
    assert detect(tmp_path / "gone") is None and detect(tmp_path) is None
