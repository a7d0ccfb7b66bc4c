"""Recordings that are killed at any moment, and what has to hold afterwards."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot_rl.data import DatasetWriter, Episode, RecordingOptions, open_log
from robot_rl.data import recording as live_recording
from robot_rl.data.repair import repair
from robot_rl.data.verify import verify

from .samples import INFO, digest, is_beginning, make_episode, play

# A dataset is checked as a whole, repaired and left for a new one after so many kills.
_KILLS_EACH = 20
_LONGEST_S = 0.06


@dataclass
class Kills:
    """What was seen: ``acknowledged`` commits had returned, ``unacknowledged`` ones were on the
    disk although the process died before it could say so; ``interrupted`` files were left, of
    which ``salvaged`` became episodes (the others held no whole step yet)."""

    kills: int = 0
    acknowledged: int = 0
    unacknowledged: int = 0
    interrupted: int = 0
    salvaged: int = 0
    seconds: float = 0.0


def kill_recordings(count: int, work: Path, *, seed: int = 0) -> Kills:
    """Start and kill ``count`` recordings below ``work``.

    Raises:
        AssertionError: an acknowledged episode is lost, doubled or another, a log did not open, or
            anything else is not as it has to be; names the kill.
    """
    rng, seen, begun_at = random.Random(seed), Kills(), time.perf_counter()
    for first in range(0, count, _KILLS_EACH):
        folder = work / f"kills-{first}"
        dataset = _Dataset(folder / "data", rng, seen)
        for number in range(first, min(first + _KILLS_EACH, count)):
            try:
                dataset.kill_one(number)
            except Exception as error:
                raise AssertionError(f"kill {number} of seed {seed}: {error!r}") from error
        dataset.finish()
        shutil.rmtree(folder)
    seen.seconds = time.perf_counter() - begun_at
    return seen


class _Dataset:
    """One folder that a process after another records into."""

    def __init__(self, path: Path, rng: random.Random, seen: Kills) -> None:
        path.parent.mkdir(parents=True)
        self.path, self.rng, self.seen = path, rng, seen
        self.known: dict[int, str] = {}
        self.begun: dict[int, str] = {}
        self.left = 0

    def kill_one(self, kill: int) -> None:
        lines = _recorded_until_killed(self.path, kill, self.rng.random() * _LONGEST_S)
        self.seen.kills += 1
        for line in lines:
            word, *rest = line.split()
            if word == "begun":
                self.begun[int(rest[0])] = digest(episode_of(int(rest[0])))
            else:
                self.known[int(rest[0])] = rest[1]
                self.seen.acknowledged += 1
        if not (self.path / "dataset.json").exists():
            assert not self.known, "the dataset is gone"
            return
        log = open_log(self.path)
        committed = {file.number: file for file in log.files}
        missing = set(self.known) - set(committed)
        assert not missing, f"episodes {missing} are lost"
        for number in set(committed) - set(self.known):
            found = digest(log.read(committed[number]))
            assert found in self.begun.values(), f"episode {number} never was recorded"
            self.known[number] = found
            self.seen.unacknowledged += 1
        last = max(self.known, default=None)
        if last is not None:
            assert digest(log.read(committed[last])) == self.known[last], "the last one differs"
        self.seen.interrupted += len(log.leftovers) - self.left
        self.left = len(log.leftovers)

    def finish(self) -> None:
        """Everything at once: exact, once, and whole after a repair."""
        if not self.known:
            return
        found = {file.number: digest(log_read) for file, log_read in _all(self.path)}
        assert found == self.known, "what was acknowledged differs from what is there"
        assert len(set(found.values())) == len(found), "an episode is there twice"
        report = verify(self.path)
        assert report["ok"] and report["episodes"] == len(found), report
        result = repair(self.path)
        assert result["ok"] and result["complete"], result
        self.seen.salvaged += len(result["salvaged"])
        wholes = [episode_of(seed) for seed in self.begun]
        for file, episode in _all(self.path):
            if file.number in found:
                assert digest(episode) == found[file.number]
            else:
                assert any(is_beginning(episode, whole) for whole in wholes), "it never happened"
                assert digest(episode) not in found.values(), "a committed one was salvaged"


def _all(path: Path) -> list[Any]:
    log = open_log(path)
    return [(file, log.read(file)) for file in log.files]


def _recorded_until_killed(path: Path, kill: int, after_s: float) -> list[str]:
    """What a process said that was killed so long after it began to record."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _record(path, kill, writing)
        finally:
            os._exit(9)
    os.close(writing)
    said = b""
    try:
        while b"ready\n" not in said:
            block = os.read(reading, 4096)
            assert block, "the recording ended by itself"
            said += block
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        while block := os.read(reading, 1 << 16):
            said += block
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (
        f"the recording ended by itself: {status}")
    lines = said.decode().splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and line != "ready\n"]


def episode_of(seed: int) -> Episode:
    """The episode of this seed: of 1 to 12 steps, not always with cameras."""
    return make_episode(seed, 1 + seed % 12, cameras=seed % 3 > 0)


def _record(path: Path, kill: int, writing: int) -> None:
    """Record for ever, saying what was begun and, with its number, what was committed."""
    live_recording._FLUSH_BYTES = 1  # so that there is something to be interrupted
    rng = random.Random(kill)
    options = RecordingOptions(image_format=rng.choice(["raw", "png"]))
    os.write(writing, b"ready\n")
    writer = (DatasetWriter.extend(path, options=options) if (path / "dataset.json").exists()
              else DatasetWriter(path, INFO, options=options))
    for number in range(100_000):
        seed = kill * 100_000 + number
        episode = episode_of(seed)
        os.write(writing, f"begun {seed}\n".encode())
        if rng.random() < 0.5:
            saved = writer.append(episode)
        else:
            live = writer.begin(episode.metadata)
            play(live, episode, threads=rng.random() < 0.3)
            if rng.random() < 0.1:
                live.discard()
                continue
            saved = live.commit()
        os.write(writing, f"done {int(saved.stem)} {digest(episode)}\n".encode())

