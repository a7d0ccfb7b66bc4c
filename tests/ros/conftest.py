"""Nodes of the embedded runtime that spin until the test ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from robot_rl.ros import runtime


@pytest.fixture(autouse=True)
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_RL_ROS_RUNTIME", "embedded")


@pytest.fixture
def domain() -> int:
    return 100 + os.getpid() % 100


@pytest.fixture
def node(domain: int) -> Iterator[Callable[..., Any]]:
    """Makes nodes that spin until the test ends."""
    made: list[tuple[Any, runtime.Spinner]] = []

    def make(name: str, **options: Any) -> Any:
        one = runtime.make_node(name, domain_id=domain, **options)
        made.append((one, runtime.Spinner(one)))
        return one

    yield make
    for one, spinner in made:
        spinner.close()
        runtime.destroy(one)
