"""A hold that outlives the program: a file by the name of the arm's address."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import uuid
from datetime import datetime, timezone
from pathlib import Path

from robot_rl.errors import InvalidInputError, SafetyError

NO_REASON = "no reason was given"
_RETRY_S = 1.0
_NOTHING: tuple[dict[str, str], list[str]] = {}, []
# Names of so many released holds stay in the file.
_REMEMBERED = 50
_UNREADABLE = (OSError, ValueError, RecursionError)


def state_folder() -> Path:
    """Where holds are kept: ``ROBOT_RL_STATE_DIR``, or ``robot_rl`` in ``XDG_STATE_HOME`` or in
    ``~/.local/state``. The same wherever a program is started.

    Raises:
        InvalidInputError: ``ROBOT_RL_STATE_DIR`` is relative, or there is no home folder.
    """
    own = os.environ.get("ROBOT_RL_STATE_DIR")
    if own:
        if not os.path.isabs(own):
            raise InvalidInputError(f"ROBOT_RL_STATE_DIR is {own!r}, should be an absolute path")
        return Path(own)
    given = os.environ.get("XDG_STATE_HOME", "")
    # Its specification has relative paths ignored.
    if os.path.isabs(given):
        return Path(given) / "robot_rl"
    with contextlib.suppress(RuntimeError):
        home = Path.home()
        if home.is_absolute():
            return home / ".local" / "state" / "robot_rl"
    raise InvalidInputError(
        "there is no home folder to keep holds in: set ROBOT_RL_STATE_DIR to an absolute path"
    )


def resolved(address: str) -> str:
    """One spelling of ``host``, ``host:port`` or ``scheme://host:port/path``, so that an arm has
    one name: lower case, the host as an IPv4 number where it has one."""
    scheme, mark, rest = address.strip().lower().rstrip("/").rpartition("://")
    host = re.split("[:/]", rest, maxsplit=1)[0]
    port_and_path = rest[len(host):]
    with contextlib.suppress(OSError, UnicodeError):
        host = socket.gethostbyname(host) if host else host
    if host.startswith("127."):
        # A machine's own name may be any of its loopback's numbers.
        host = "127.0.0.1"
    return f"{scheme}{mark}{host}{port_and_path}"


class Latch:
    """The kept holds of one physical arm: each of every program's has a name of its own.

    Only an operator releases them, with :meth:`clear`, when the arm was made ready again. That is
    a sign of its own in the file: where a hold is gone, or the file cannot be read, nobody has
    released anything.
    """

    def __init__(self, robot: str, address: str, folder: Path | None = None) -> None:
        self.robot = robot
        self.address = address
        # One arm may be driven under more than one description.
        name = re.sub(r"[^A-Za-z0-9.-]", "_", address)
        self.path = (folder if folder is not None else state_folder()) / f"hold-{name}.json"
        self._next_s = -math.inf  # when a hold that could not be written is tried again
        # Names of the holds that were read or written last: those that an operator knows of.
        self._ids: set[str] | None = None

    def check(self) -> None:
        """Raise InvalidInputError where holds cannot be kept."""
        try:
            self._put({}, [])
            self._part.unlink()
        except OSError as error:
            raise InvalidInputError(
                f"holds cannot be kept in {self.path.parent} ({error}): set ROBOT_RL_STATE_DIR to "
                "a folder that can be written"
            ) from None

    def reason(self) -> str | None:
        """Why the arm is held, or None. A file that cannot be read holds it as well."""
        self._ids = set()
        try:
            holds, _ = self._read()
        except _UNREADABLE as error:
            return f"{self.path} cannot be read ({error})"
        self._ids = set(holds)
        return _told(holds) if holds else None

    def is_set(self) -> bool:
        """Whether a hold is kept, or may be: a file that cannot be read counts."""
        return self.reason() is not None

    def write(self, reason: str) -> bool:
        """Keep a new hold, in one piece or not at all; whether it was kept."""
        name = uuid.uuid4().hex
        # A hold that is not in the file must not look like one that was released.
        self._ids = set()
        holds, released = _NOTHING
        with contextlib.suppress(*_UNREADABLE):
            holds, released = self._read()
        try:
            self._put({**holds, name: reason}, released)
            os.replace(self._part, self.path)
        except OSError:
            return False
        self._ids = {name}
        return True

    def keep(self, reason: str, now_s: float) -> str:
        """Have a hold kept, the one that was read or written or else a new one, and its reason.

        Where it cannot be written the reason says so, and from a second later on, by a clock that
        is at ``now_s``, it is tried again.
        """
        if now_s < self._next_s:
            return reason
        note = f" (and this hold could not be kept in {self.path})"
        reason = reason.removesuffix(note)
        if self._kept() or self.write(reason):
            return reason
        self._next_s = now_s + _RETRY_S
        return reason + note

    def _kept(self) -> bool:
        try:
            holds, _ = self._read()
        except _UNREADABLE:
            return False
        return bool(self._ids and self._ids & holds.keys())

    def released(self) -> bool:
        """Whether an operator has released the holds that were read or written last."""
        try:
            _, released = self._read()
        except _UNREADABLE:
            return False
        return bool(self._ids and self._ids <= set(released))

    def clear(self) -> None:
        """Release the holds that were read or written last. Only for an operator, after the arm
        has recovered.

        Raises:
            SafetyError: there are others by now, which the message names and the next call
                releases; or the file cannot be read or written.
        """
        self._next_s = -math.inf
        holds, released = _NOTHING
        try:
            try:
                holds, released = self._read()
            except _UNREADABLE:
                # What was unreadable when it was read last is what the operator knows of.
                if self._ids:
                    raise
            ids = set(holds) if self._ids is None else self._ids
            left = {name: reason for name, reason in holds.items() if name not in ids}
            released = [name for name in released if name not in ids] + sorted(ids)
            self._put(left, released[-_REMEMBERED:])
            os.replace(self._part, self.path)
        except _UNREADABLE as error:
            raise SafetyError(f"the hold in {self.path} cannot be released ({error})") from None
        self._ids = ids
        if left:
            self._ids = set(left)
            raise SafetyError(f"the arm is held for another reason as well ({_told(left)})")

    # -- the file ---------------------------------------------------------------------------

    @property
    def _part(self) -> Path:
        return self.path.with_suffix(f".{os.getpid()}.part")

    def _put(self, holds: dict[str, str], released: list[str]) -> None:
        """A record that is safe from a power cut, beside the file that it is to replace."""
        record = {
            "holds": holds,
            "released": released,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "robot": self.robot,
            "address": self.address,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> tuple[dict[str, str], list[str]]:
        """The holds in the file, reasons by name, and names of released ones; raises one of
        ``_UNREADABLE``."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self.path.is_symlink():
                raise
            return _NOTHING
        if not isinstance(record, dict):
            raise ValueError("it is no record")
        holds, released = record.get("holds"), record.get("released")
        if not (isinstance(holds, dict) and isinstance(released, list)):
            raise ValueError("it says neither what holds the arm nor what was released")
        return {name: str(reason) for name, reason in holds.items()}, [str(x) for x in released]


def _told(holds: dict[str, str]) -> str:
    """The reasons of holds, each once."""
    return "; ".join(dict.fromkeys(reason.strip() or NO_REASON for reason in holds.values()))
