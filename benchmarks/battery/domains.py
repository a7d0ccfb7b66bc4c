"""DDS domains that nobody else on this machine uses, among those that ask here."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

# Above these, DDS's ports lie where the system takes those of outgoing connections from.
_DOMAINS = range(1, 91)
_held: list[tuple[int, int]] = []


def free_domain() -> int:
    """A domain of this process's own until it ends, or until it has asked for all there are."""
    begin = os.getpid() * 7
    for k in _DOMAINS:
        domain = 1 + (begin + k) % len(_DOMAINS)
        path = Path(tempfile.gettempdir()) / f"robot_rl_domain_{domain}.lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            continue  # another user's
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            continue
        _held.append((domain, handle))
        return domain
    if not _held:
        raise RuntimeError(f"all of the domains {_DOMAINS.start} to {_DOMAINS.stop - 1} are in use")
    _held.append(_held.pop(0))
    return _held[-1][0]
