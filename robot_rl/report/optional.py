"""Imports of what the extra ``report`` brings, at the moment of use."""

from __future__ import annotations

import importlib
from typing import Any

from robot_rl.errors import MissingDependencyError

# Module: the distribution that brings it.
_BROUGHT_BY = {"av": "av", "cv2": "opencv-python-headless", "matplotlib": "matplotlib"}


def need(module: str, purpose: str) -> Any:
    """The module, imported.

    Raises:
        MissingDependencyError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = _BROUGHT_BY.get(module.split(".")[0], module)
        raise MissingDependencyError(
            f"{purpose} need {package} ({error}); install robot_rl[report]"
        ) from None
