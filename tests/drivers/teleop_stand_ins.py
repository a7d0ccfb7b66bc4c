"""What the tests of devices stand on: the C library of HID devices, and an environment's shape."""

from __future__ import annotations

import struct
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np


def env_shape(*parts: str, opening: float = 1.0) -> Any:
    """What a device needs to know of an environment with these action parts."""
    size = 3 + ("yaw" in parts) + ("gripper" in parts)
    return SimpleNamespace(
        parts=("xyz", *parts),
        action_space=SimpleNamespace(shape=(size,)),
        rig=SimpleNamespace(gripper=SimpleNamespace(opening=lambda age_s: opening)),
        safety=SimpleNamespace(config=SimpleNamespace(max_state_age_s=0.2)),
    )


class Ticks:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class HidLibrary:
    """The functions of hidapi's C interface that easyhid calls, with one device plugged in.

    ``reports`` are bytes as the device sends them, report id first.
    """

    def __init__(self, ffi: Any, vendor: int, product: int) -> None:
        self._ffi, self._ids = ffi, (vendor, product)
        self.reports: deque[bytes] = deque()
        self.plugged, self.opened = True, 0
        self._keep: list[Any] = []

    def hid_enumerate(self, vendor: int, product: int) -> Any:
        if not self.plugged:
            return self._ffi.NULL
        path = self._ffi.new("char[]", b"/dev/hidraw7")
        name = self._ffi.new("wchar_t[]", "SpaceMouse Compact")
        info = self._ffi.new("struct hid_device_info *")
        info.path, info.product_string, info.manufacturer_string = path, name, name
        info.serial_number = name
        info.vendor_id, info.product_id = self._ids
        self._keep += [path, name, info]
        return info

    def hid_free_enumeration(self, devices: Any) -> None:
        return None

    def hid_open_path(self, path: Any) -> Any:
        if not self.plugged:
            return self._ffi.NULL
        self.opened += 1
        return self._ffi.cast("hid_device *", 1)

    def hid_set_nonblocking(self, device: Any, on: int) -> int:
        return 0

    def hid_read(self, device: Any, data: Any, length: int) -> int:
        if not self.plugged:
            return -1
        if not self.reports:
            return 0
        report = self.reports.popleft()[:length]
        self._ffi.buffer(data)[: len(report)] = report
        return len(report)

    def hid_close(self, device: Any) -> None:
        return None

    # What a person does.

    def push(self, x: int = 0, y: int = 0, z: int = 0) -> None:
        """A report of translation in the device's own axes: right, towards the user, down."""
        self.reports.append(struct.pack("<Bhhh", 1, x, y, z))

    def twist(self, rx: int = 0, ry: int = 0, rz: int = 0) -> None:
        """A report of rotation; ``rz`` is positive clockwise from above."""
        self.reports.append(struct.pack("<Bhhh", 2, rx, ry, rz))

    def buttons(self, left: bool = False, right: bool = False) -> None:
        self.reports.append(bytes([3, left | right << 1, 0]))


def close_to(action: Any, expected: list[float]) -> bool:
    """Whether an action is there and is that."""
    return action is not None and bool(np.allclose(action, expected, atol=1e-6))
