"""Logs for the tests of their replay buffers."""

from __future__ import annotations

from pathlib import Path

import pytest

from robot_rl.data import DatasetInfo, DatasetWriter
from robot_rl.data.log import Log
from tests.unit.view_logs import recorded


@pytest.fixture
def log_of(episode, tmp_path):
    """Writes episodes ``numbers`` into a log, after those that are there."""

    def write(numbers, name="log", **options) -> Path:
        path = tmp_path / name
        for number in numbers:
            one = recorded(episode, number, **options)
            if not path.exists():
                DatasetWriter(path, DatasetInfo.of(one, task="Push")).close()
            with DatasetWriter.extend(path) as writer:
                writer.append(one)
        return path

    return write


@pytest.fixture
def own_cache_folder(tmp_path, monkeypatch):
    """The user's folder for caches, in a place of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))


@pytest.fixture
def reads(monkeypatch):
    """The numbers of the episodes that were read from a log."""
    found: list[int] = []
    read = Log.read

    def counted(self, which, **options):
        found.append(which.number)
        return read(self, which, **options)

    monkeypatch.setattr(Log, "read", counted)
    return found
