"""Full, read-only, failing and vanishing disks: a clear error, and what was committed is intact."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.faults.samples import INFO, digest, is_beginning, make_episode, play, rows_of
from robot_rl.data import DatasetWriter, RecordingOptions, load_dataset, open_log, recording
from robot_rl.data import files as data_files
from robot_rl.data.repair import repair
from robot_rl.data.verify import verify
from robot_rl.errors import InvalidInputError, StorageError


class FailingOs:
    """The module ``os``, of which the ``at``-th call of one of ``names`` fails, and all after it
    until it is mended. ``bytes_left`` lets writes through up to there, the last one in part."""

    def __init__(self, names: tuple[str, ...], at: int, number: int) -> None:
        self.names, self.left, self.number = names, at, number
        self.broken = False
        self.bytes_left: int | None = None

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.names:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.bytes_left is not None and name == "write":
                return self._write(*args)
            self.left -= 1
            self.broken = self.broken or self.left < 0
            if self.broken:
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **kwargs)

        return call

    def _write(self, handle: int, data: Any) -> int:
        assert self.bytes_left is not None
        if self.bytes_left <= 0:
            self.broken = True
            raise OSError(self.number, os.strerror(self.number))
        count = os.write(handle, data[: self.bytes_left])
        self.bytes_left -= count
        return count


@contextlib.contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], at: int, number: int
) -> Iterator[FailingOs]:
    disk = FailingOs(names, at, number)
    with monkeypatch.context() as patch:
        patch.setattr(data_files, "os", disk)
        yield disk


@pytest.fixture
def dataset(tmp_path) -> Path:
    with DatasetWriter(tmp_path / "data", INFO) as writer:
        for seed in range(2):
            writer.append(make_episode(seed))
    return tmp_path / "data"


def append(writer: DatasetWriter) -> None:
    writer.append(make_episode(5))


def live(writer: DatasetWriter) -> None:
    episode = make_episode(5)
    one = writer.begin()
    play(one, episode)
    one.commit()


RECORDINGS = {"append": append, "live": live}


def check_intact(path: Path, writer: DatasetWriter, record: Callable[[DatasetWriter], None]) -> int:
    """What was committed is there, nothing else counts, and recording goes on where it can."""
    before = [digest(e) for e in open_log(path)]
    assert before[:2] == [digest(make_episode(seed)) for seed in range(2)]
    # An episode whose commit had been reached before the error may count only if it is whole.
    assert before[2:] in ([], [digest(make_episode(5))])
    report = verify(path)
    assert report["ok"] and report["episodes"] == len(before), report["errors"]
    if writer._live is not None:
        writer._live.abandon()
    record(writer)
    writer.close()
    with DatasetWriter.extend(path) as again:
        again.append(make_episode(6))
    after = [digest(e) for e in open_log(path)]
    assert after == [*before, digest(make_episode(5)), digest(make_episode(6))]
    result = repair(path)
    assert result["ok"] and result["complete"]
    salvaged = list(open_log(path))[len(after) :]
    assert all(is_beginning(episode, make_episode(5)) for episode in salvaged)
    return len(salvaged)


@pytest.mark.parametrize("record", RECORDINGS)
@pytest.mark.parametrize(
    ("names", "number", "said"),
    [
        (("write",), errno.ENOSPC, "No space left on device; make room"),
        (("write",), errno.EIO, "Input/output error"),
        (("fsync",), errno.EIO, "Input/output error"),
        (("open",), errno.EROFS, "Read-only file system; choose another folder"),
        (("open",), errno.EMFILE, "Too many open files"),
        (("rename", "replace"), errno.EIO, "Input/output error"),
        (("write", "fsync", "rename", "unlink", "open", "mkdir"), errno.EIO, "Input/output error"),
    ],
)
def test_every_call_that_fails(dataset, monkeypatch, record, names, number, said):
    """The first, second, ... call fails, and all after it: recording stops, nothing is lost."""
    monkeypatch.setattr(recording, "_FLUSH_BYTES", 1)
    failed = 0
    for at in [*range(6), *range(6, 100, 5)]:
        path = dataset.with_name(f"data{at}")
        shutil.copytree(dataset, path)
        writer = DatasetWriter.extend(path)
        with failing(monkeypatch, names, at, number) as disk:
            try:
                RECORDINGS[record](writer)
            except StorageError as error:
                assert said in str(error) and str(path) in str(error)
            if not disk.broken:
                break
        failed += 1
        if writer.count == 2:
            check_intact(path, writer, RECORDINGS[record])
        else:
            writer.close()
        shutil.rmtree(path)
    else:
        pytest.fail("the recording never came to its end")
    assert failed >= 1


@pytest.mark.parametrize("record", RECORDINGS)
def test_a_disk_that_is_full_at_any_byte(dataset, monkeypatch, record):
    size = (dataset / "episodes" / "000000.mcap").stat().st_size
    for left in range(0, size * 9 // 10, size // 15):
        path = dataset.with_name("full")
        shutil.copytree(dataset, path)
        writer = DatasetWriter.extend(path)
        with failing(monkeypatch, ("write",), 0, errno.ENOSPC) as disk:
            disk.bytes_left = left
            with pytest.raises(StorageError, match=r"000002.mcap.part: No space left .*make room"):
                RECORDINGS[record](writer)
        check_intact(path, writer, RECORDINGS[record])
        shutil.rmtree(path)


def test_the_control_loop_hears_of_a_full_disk_and_can_go_on_when_there_is_room(
    dataset, monkeypatch
):
    monkeypatch.setattr(recording, "_FLUSH_BYTES", 1)
    writer = DatasetWriter.extend(dataset)
    episode = make_episode(8, 400, cameras=False)
    with failing(monkeypatch, ("write",), 20, errno.ENOSPC):
        one = writer.begin()
        one.start(rows_of(episode, 0)[0])
        with pytest.raises(StorageError, match="No space left"):
            for number in range(1, 400):
                one.step(*rows_of(episode, number))
            one.commit()
        for call in (lambda: one.step(*rows_of(episode, 1)), one.commit,
                     lambda: one.frame("front", np.zeros((4, 6, 3), np.uint8))):
            with pytest.raises(StorageError, match="No space left"):
                call()
        assert len(load_dataset(dataset)[1]) == 2
    one.abandon()  # keeps what the disk took
    live(writer)
    writer.close()
    assert len(load_dataset(dataset)[1]) == 3
    assert verify(dataset)["complete"] is False
    (saved,) = repair(dataset)["salvaged"]
    assert is_beginning(open_log(dataset).read(saved["episode"]), episode)


def test_a_rename_whose_sync_fails_does_not_count(dataset, monkeypatch):
    """The caller was told that it failed, and records it again: it must not be there twice."""
    writer = DatasetWriter.extend(dataset)
    real = data_files.sync_folder

    def broken(folder: Path) -> None:
        if folder.name == "episodes":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(folder)

    with monkeypatch.context() as patch:
        patch.setattr(data_files, "sync_folder", broken)
        with pytest.raises(StorageError, match=r"000002.mcap: Input/output error"):
            append(writer)
        assert len(open_log(dataset)) == 2
    assert check_intact(dataset, writer, append) == 0


def test_a_read_only_folder(dataset, tmp_path, monkeypatch):
    read = [digest(e) for e in open_log(dataset)]
    with failing(monkeypatch, ("open", "mkdir", "rename"), 0, errno.EROFS):
        for call in (lambda: DatasetWriter.extend(dataset), lambda: repair(dataset),
                     lambda: DatasetWriter(tmp_path / "new", INFO)):
            with pytest.raises(InvalidInputError, match="Read-only file system"):
                call()
    for folder, _, names in os.walk(dataset):
        for name in names:
            os.chmod(os.path.join(folder, name), 0o444)
        os.chmod(folder, 0o555)
    if os.geteuid() == 0:  # whom permissions do not stop
        code = ("import os, sys; os.setuid(65534)\n"
                "from robot_rl.data.verify import verify\nfrom robot_rl.data import open_log\n"
                "report = verify(sys.argv[1]); assert report['ok'] and report['complete'], report\n"
                "assert len(list(open_log(sys.argv[1]))) == 2\n"
                "try: open(sys.argv[1] + '/x', 'w')\nexcept OSError: sys.exit(7)\n")
        for parent in dataset.parents:
            if parent.stat().st_uid == 0 and parent.is_relative_to("/tmp") and (
                parent != Path("/tmp")
            ):
                parent.chmod(0o755)
        done = subprocess.run([sys.executable, "-c", code, str(dataset)],
                              capture_output=True, text=True)
        if done.returncode == 7:
            return
        if "Permission denied" not in done.stderr and "ModuleNotFound" not in done.stderr:
            pytest.fail(done.stderr)
    report = verify(dataset)
    assert report["ok"] and report["complete"] and not (dataset / "x").exists()
    assert [digest(e) for e in open_log(dataset)] == read


@pytest.mark.parametrize("record", RECORDINGS)
def test_a_folder_that_vanishes(dataset, tmp_path, record):
    writer = DatasetWriter.extend(dataset)
    shutil.rmtree(dataset)
    with pytest.raises(StorageError, match=r"cannot write .*: No such file or directory"):
        RECORDINGS[record](writer)
    writer.close()
    with DatasetWriter(dataset, INFO) as again:
        append(again)
    assert len(load_dataset(dataset)[1]) == 1


def test_a_folder_that_vanishes_while_an_episode_is_recorded(dataset):
    writer = DatasetWriter.extend(dataset)
    one = writer.begin()
    play(one, make_episode(5), steps=3)
    shutil.rmtree(dataset)
    with pytest.raises(StorageError, match=r"000002.mcap: No such file or directory"):
        one.commit()
    writer.close()


@pytest.mark.parametrize("at", range(12))
def test_a_dataset_that_could_not_be_made_can_be_made_again(tmp_path, monkeypatch, at):
    path = tmp_path / "a" / "data"
    with failing(monkeypatch, ("write", "fsync", "replace", "mkdir"), at, errno.ENOSPC) as disk:
        try:
            DatasetWriter(path, INFO).close()
        except InvalidInputError as error:
            assert "No space left" in str(error)
    if not disk.broken:
        pytest.skip("fewer calls are made")
    with DatasetWriter(path, INFO) as writer:
        append(writer)
    assert verify(path)["complete"]


def test_the_limit_of_a_file_s_size_is_an_error_as_any_other(dataset):
    """The kernel's own refusal, not a made-up one."""
    pid = os.fork()
    if pid == 0:
        try:
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            writer = DatasetWriter.extend(dataset)
            for record in RECORDINGS.values():
                try:
                    record(writer)
                except StorageError as error:
                    assert "File too large" in str(error)
                else:
                    os._exit(3)
            writer.close()
            os._exit(0)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [digest(e) for e in open_log(dataset)] == [digest(make_episode(n)) for n in range(2)]
    assert verify(dataset)["ok"]


def test_a_small_disk_that_is_full(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(small)],
                      capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        writer = DatasetWriter(small / "data", INFO)
        kept = []
        with pytest.raises(StorageError, match=r"No space left on device; make room"):
            for seed in range(1000):
                (append if seed % 2 else live)(writer)
                kept.append(seed)
        writer.close()
        assert len(kept) > 3
        expected = digest(make_episode(5))
        assert [digest(e) for e in open_log(small / "data")] == [expected] * len(kept)
        assert verify(small / "data")["ok"]
        with pytest.raises(StorageError, match="No space left"):
            DatasetWriter(small / "other", INFO)
        assert not (small / "other" / "dataset.json").exists()
        # Room is made: recording goes on.
        for part in (small / "data").rglob("*.part"):
            part.unlink()
        os.unlink(small / "data" / "episodes" / f"{len(kept) - 1:06d}.mcap")
        with DatasetWriter.extend(small / "data") as again:
            append(again)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_encoder_that_fails_reaches_the_loop(dataset, monkeypatch):
    def broken(*args: Any, **how: Any) -> bytes:
        raise RuntimeError("no codec")

    monkeypatch.setattr(recording, "encode", broken)
    writer = DatasetWriter.extend(dataset, options=RecordingOptions("png"))
    one = writer.begin()
    with pytest.raises(StorageError, match=r"000002.mcap.part failed: RuntimeError\('no codec'\)"):
        play(one, make_episode(5))
        one.commit()
    writer.close()
    assert threading.active_count() < 50 and len(load_dataset(dataset)[1]) == 2
