"""Makes Debian's or Ubuntu's rospy importable here, and keeps it quiet."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

from robot_rl.errors import MissingDependencyError

DIST_PACKAGES = Path("/usr/lib/python3/dist-packages")
"""Where Debian and Ubuntu install Python packages for their own interpreter."""
APT_PACKAGES = (
    "python3-rospy", "python3-rosmaster", "python3-genpy", "python3-std-msgs",
    "python3-sensor-msgs", "python3-geometry-msgs",
)
_rospy: Any = None


def import_rospy() -> Any:
    """The module ``rospy``: of a sourced ROS 1, or of the distribution's own packages.

    The distribution's folder goes to the end of ``sys.path``, so that nothing of it stands before
    what is installed here.

    Raises:
        MissingDependencyError: it is not installed, is for another Python, or another ROS stands
            in its way; the message says what to do.
    """
    global _rospy
    if _rospy is not None:
        return _rospy
    if importlib.util.find_spec("rospy") is None:
        _add_dist_packages()
    # rosgraph makes its own logger the default of the whole process.
    logger = logging.getLoggerClass()
    try:
        module = importlib.import_module("rospy")
        header = importlib.import_module("std_msgs.msg").Header
    except ImportError as error:
        raise MissingDependencyError(f"rospy cannot be imported ({error}); {_how()}") from error
    finally:
        logging.setLoggerClass(logger)
    if not hasattr(header, "_md5sum"):
        raise MissingDependencyError(
            "the std_msgs found first are ROS 2's, and rospy needs ROS 1's: start this program "
            "from a shell in which no ROS 2 was sourced"
        )
    # What it has to say of a lost master the session says in one line.
    logging.getLogger("rospy").setLevel(logging.CRITICAL)
    logging.getLogger("rosout").setLevel(logging.ERROR)
    _rospy = module
    return module


def _add_dist_packages() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (DIST_PACKAGES / "rospy").is_dir():
        raise MissingDependencyError(f"rospy, the ROS 1 client, is not installed: {_how()}")
    if not Path(f"/usr/lib/python{version}").is_dir():
        raise MissingDependencyError(
            f"the system's rospy is for another Python than this {version}: make the environment "
            "with the system's own, e.g. make PYTHON=/usr/bin/python3"
        )
    if str(DIST_PACKAGES) not in sys.path:
        sys.path.append(str(DIST_PACKAGES))


def _how() -> str:
    return f"apt-get install {' '.join(APT_PACKAGES)}"
