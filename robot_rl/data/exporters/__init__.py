"""Episodes to elsewhere: ROS 2 bags, LeRobot, Minari. Modules are imported when they are used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from robot_rl.errors import unknown_name

# Name of a format: the module that writes it.
EXPORTERS = {
    "mcap": "robot_rl.data.exporters.mcap",
    "lerobot": "robot_rl.data.exporters.lerobot",
    "minari": "robot_rl.data.exporters.minari",
}


def export_dataset(
    kind: str, source: str | Path, dest: str | Path, *, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Write the dataset ``source`` into the new folder ``dest``, whole or not at all.

    Returns:
        What the exporter says, plain JSON; ``path``, ``episodes`` and ``steps`` at least.

    Raises:
        InvalidInputError: no such format, or a folder that cannot be used.
        MissingDependencyError: a package that writes this format is not installed.
    """
    from robot_rl.data.log import open_log

    if kind not in EXPORTERS:
        raise unknown_name("format", kind, EXPORTERS)
    module = importlib.import_module(EXPORTERS[kind])
    result: dict[str, Any] = module.export(
        open_log(source), Path(dest), overwrite=overwrite, quiet=quiet
    )
    return result


__all__ = ["EXPORTERS", "export_dataset"]
