"""Two independent parts of one update: one after the other, or on two cores at once.

Torch's own threads share out each matrix product, and for networks of two layers of 256 they spend
longer waiting for each other than they save. Two whole networks at once need one hand-over per
update, and every number is computed exactly as on one core.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

import torch

_A = TypeVar("_A")
_B = TypeVar("_B")


class Both(Protocol):
    """Calls two functions, neither of which writes what the other one touches."""

    def __call__(self, first: Callable[[], _A], second: Callable[[], _B]) -> tuple[_A, _B]:
        """What ``first`` and ``second`` return."""
        ...


def in_turn(first: Callable[[], _A], second: Callable[[], _B]) -> tuple[_A, _B]:
    """Calls ``first``, then ``second``."""
    return first(), second()


def at_once(first: Callable[[], _A], second: Callable[[], _B]) -> tuple[_A, _B]:
    """Calls ``first`` in a thread of its own and ``second`` here, each with one torch thread.

    The caller must be in inference mode, as ``first`` will be; and neither may call this again.
    Returns, or raises what one of them raised, once both are done.
    """
    with _one_torch_thread():
        future = _the_worker().submit(_in_inference_mode, first)
        try:
            result = second()
            return future.result(), result
        except BaseException:
            wait([future])
            raise


def _in_inference_mode(function: Callable[[], _A]) -> _A:
    # Like grad mode, it is a property of the thread.
    with torch.inference_mode():
        return function()


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# One for the process: agents come and go, and more threads than cores would help nobody.
_worker: ThreadPoolExecutor | None = None


def _the_worker() -> ThreadPoolExecutor:
    global _worker
    if _worker is None:
        _worker = ThreadPoolExecutor(1, "robot_rl-update", torch.set_num_threads, (1,))
    return _worker


def _forget_worker() -> None:
    """After a fork the child has the object but not its thread."""
    global _worker
    _worker = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_worker)
