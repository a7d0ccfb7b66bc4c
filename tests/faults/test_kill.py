"""kill -9 at random moments of recording. `benchmarks/durability.py` does it a thousand times."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults.kills import kill_recordings
from benchmarks.faults.samples import INFO, digest, is_beginning, make_episode, play
from robot_rl.data import DatasetWriter, open_log
from robot_rl.data.repair import repair
from robot_rl.errors import InvalidInputError


def test_killed_recordings_lose_nothing_that_was_acknowledged(tmp_path):
    seen = kill_recordings(25, tmp_path, seed=int(time.time()) % 1000)
    assert seen.kills == 25 and seen.acknowledged > 0


def recording_process(path: Path, steps: int) -> tuple[int, int]:
    """A process that records ``steps`` steps, says so and waits; its number and a pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with DatasetWriter.extend(path) as writer:
                play(writer.begin(), make_episode(7, 200), steps=steps)
                time.sleep(0.8)  # longer than anything is held back
                os.write(writing, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    os.close(writing)
    return child, reading


def test_a_kill_loses_less_than_a_second_of_the_episode_in_progress(tmp_path):
    path = tmp_path / "data"
    with DatasetWriter(path, INFO) as writer:
        writer.append(make_episode(1))
    child, reading = recording_process(path, 100)
    assert os.read(reading, 1) == b"x"
    log = open_log(path)
    assert log.recording is not None and log.leftovers == []
    running = log.running(images=True)
    assert running is not None and is_beginning(running, make_episode(7, 200))
    with pytest.raises(InvalidInputError, match=rf"recorded into by another process .*{child}"):
        DatasetWriter.extend(path)
    with pytest.raises(InvalidInputError, match="recorded into by another process"):
        repair(path)
    with pytest.raises(InvalidInputError, match="recorded into by another process"):
        DatasetWriter(path, INFO, overwrite=True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    assert log.recording is None and len(log.leftovers) == 1
    assert log.running() is None
    with DatasetWriter.extend(path) as writer:  # the lock went with the process
        writer.append(make_episode(2))
    result = repair(path)
    assert result["ok"] and result["complete"] and len(result["salvaged"]) == 1
    first, second, salvaged = list(open_log(path))
    assert [digest(first), digest(second)] == [digest(make_episode(n)) for n in (1, 2)]
    assert len(salvaged) == 100 and salvaged.truncated[-1]
    assert is_beginning(salvaged, make_episode(7, 200))
    assert np.array_equal(salvaged.images["front"].at(slice(None)),
                          make_episode(7, 200).images["front"].at(slice(0, 101)))


@pytest.mark.slow
def test_a_thousand_kills(tmp_path):
    assert kill_recordings(1000, tmp_path).kills == 1000
