"""How many cores training uses, and how its memory is kept."""

from __future__ import annotations

import ctypes
import sys

import torch

from robot_rl.agents.base import Agent
from robot_rl.errors import InvalidInputError, unknown_name

# glibc's numbers for mallopt(3), and the largest block that it keeps for reuse.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT_BYTES = 32 << 20


def set_threads(threads: int, device: str) -> None:
    """Set torch's thread count on purpose, and check that the device is there.

    Two threads are two networks at a time with one thread each (see :func:`use_threads`): threads
    inside one matrix product wait for each other, and crawl beside a busy process.

    Raises:
        InvalidInputError: no such device here.
    """
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise unknown_name("device", device, ("cpu", "cuda"))
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("device cuda is not available here; valid: cpu")
    torch.set_num_threads(1 if threads == 2 else threads)
    _keep_freed_memory()


def use_threads(agent: Agent, threads: int) -> None:
    """Let the agent's updates use ``threads`` cores; what they compute is the same to the bit."""
    agent.set_workers(2 if threads == 2 else 1)


def _keep_freed_memory() -> None:
    # Large batches otherwise go back to the kernel and are mapped and zeroed again every update.
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
