"""A hold that outlives the program: a file by the name of the arm's address."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timezone
from pathlib import Path


def state_folder() -> Path:
    """Where holds are kept: ``ROBOT_RL_STATE_DIR``, or ``robot_rl`` in ``XDG_STATE_HOME`` or in
    ``~/.local/state``."""
    own = os.environ.get("ROBOT_RL_STATE_DIR")
    if own:
        return Path(own)
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "robot_rl"


class Latch:
    """The kept hold of one physical arm.

    Only an operator removes it, with :meth:`clear`, when the arm was made ready again.
    """

    def __init__(self, robot: str, address: str, folder: Path | None = None) -> None:
        self.robot = robot
        self.address = address
        name = re.sub(r"[^A-Za-z0-9.-]", "_", f"{robot}-{address}")
        self.path = (folder if folder is not None else state_folder()) / f"hold-{name}.json"

    def reason(self) -> str | None:
        """Why the arm is held, or None. A file that cannot be read holds it as well."""
        try:
            return str(json.loads(self.path.read_text(encoding="utf-8"))["reason"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{self.path} cannot be read ({error})"

    def write(self, reason: str) -> bool:
        """Keep a hold, in one piece or not at all; whether it was kept."""
        record = {
            "reason": reason,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "robot": self.robot,
            "address": self.address,
        }
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("w", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except OSError:
            return False
        return True

    def is_set(self) -> bool:
        """Whether a hold is kept."""
        return self.path.exists()

    def clear(self) -> None:
        """Forget the hold. Only for an operator's release, after the arm has recovered."""
        self.path.unlink(missing_ok=True)
