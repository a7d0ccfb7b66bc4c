"""A sensor on a serial line, e.g. a microcontroller that reads an encoder or a contact.

The protocol: one ASCII number a line, ended by ``\\n`` or ``\\r\\n``, sent again and again whether
or not it changed, at 5 Hz or more: ``0.1523\\n``. ``1`` and ``0`` are a contact closed and open.
Lines that are not one finite number are counted and left out, empty lines and lines beginning
with ``#`` are left out. Nothing is ever sent to the device.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import Any

from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl.interfaces import Clock, Reading
from robot_rl_drivers.sensors.latest import Latest

_LONGEST_LINE = 64
_READ_TIMEOUT_S = 0.05
_REOPEN_S = 0.5
# What lay in the line for longer than this was measured before it.
_OVERSLEPT_S = 0.25
_now_s = time.monotonic


class SerialSensor:
    """:class:`robot_rl.interfaces.Sensor` on a serial line.

    Args:
        name: of the sensor.
        unit: of its readings after scaling: ``m``, ``rad`` or ``""``.
        port: device, e.g. ``/dev/ttyUSB0``; one that a cable's change does not rename lies in
            ``/dev/serial/by-id``.
        clock: the rig's.
        baud: bits per second.
        scale, offset: reading = scale x number + offset.
        low, high: readings outside are counted as bad and left out.

    Raises:
        MissingDependencyError: pyserial is not installed.
        InvalidInputError: the port cannot be opened, or a number cannot be used.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        port: str,
        clock: Clock,
        *,
        baud: int = 115200,
        scale: float = 1.0,
        offset: float = 0.0,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> None:
        if not (math.isfinite(scale) and math.isfinite(offset) and scale != 0.0):
            raise InvalidInputError(
                f"sensor {name!r}: scale {scale} and offset {offset} should be finite, the scale "
                "not 0"
            )
        if not low < high:
            raise InvalidInputError(f"sensor {name!r}: low {low} should be below high {high}")
        self.name, self.unit = name, unit
        self.bad_lines = 0
        self._scale, self._offset, self._low, self._high = scale, offset, low, high
        self._port, self._baud = port, baud
        self._latest: Latest[float] = Latest(f"the sensor {name!r} on {port}", clock)
        self._serial = _import_serial()
        self._stop = threading.Event()
        line = self._open()
        self._thread = threading.Thread(
            target=self._run, args=(line,), name=f"sensor {name}", daemon=True
        )
        self._thread.start()

    def read(self, max_age_s: float) -> Reading:
        """The newest reading.

        Raises:
            StaleDataError: it is older than ``max_age_s``, or there is none yet.
        """
        value, stamp_s = self._latest.get(max_age_s)
        return Reading(value, stamp_s)

    def close(self) -> None:
        """Stop listening; may be called again."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _open(self) -> Any:
        try:
            return self._serial.Serial(self._port, self._baud, timeout=_READ_TIMEOUT_S,
                                       exclusive=True)
        except (self._serial.SerialException, ValueError) as error:
            raise InvalidInputError(
                f"sensor {self.name!r}: cannot open the serial port {self._port} at {self._baud} "
                f"baud: {error}"
            ) from None

    def _run(self, line: Any) -> None:
        """Listen until closed; a line that was lost is opened again."""
        while not self._stop.is_set():
            try:
                self._listen(line)
            except (self._serial.SerialException, OSError, TypeError) as error:
                self._latest.blame(f"the line was lost ({error})")
            _close(line)
            while not self._stop.wait(_REOPEN_S):
                try:
                    line = self._open()
                    break
                except InvalidInputError as error:
                    self._latest.blame(str(error))

    def _listen(self, line: Any) -> None:
        """Take lines in. The first one is left out: its beginning may be missing."""
        held, skip = b"", True
        looked_s = _now_s()
        while not self._stop.is_set():
            chunk = line.read(max(1, line.in_waiting))
            now_s = _now_s()
            if now_s - looked_s > _OVERSLEPT_S:
                # This process was stopped for a while: what waited here is of an unknown age.
                line.reset_input_buffer()
                held, skip, chunk = b"", True, b""
            looked_s = now_s
            *lines, held = (held + chunk).split(b"\n")
            if skip and lines:
                lines, skip = lines[1:], False
            if len(held) > _LONGEST_LINE:
                self.bad_lines += 1
                held, skip = b"", True
            for text in lines:
                self._take(text)

    def _take(self, text: bytes) -> None:
        text = text.strip()
        if not text or text.startswith(b"#"):
            return
        try:
            if len(text) > _LONGEST_LINE or b"_" in text:
                raise ValueError
            value = self._scale * float(text.decode("ascii")) + self._offset
        except ValueError:
            value = math.nan
        if math.isfinite(value) and self._low <= value <= self._high:
            self._latest.put(value)
        else:
            self.bad_lines += 1
            self._latest.blame(f"{self.bad_lines} lines were bad, the last {text[:32]!r}")


def _close(line: Any) -> None:
    with contextlib.suppress(OSError):  # it may be gone already
        line.close()


def _import_serial() -> Any:
    try:
        import serial
    except ImportError as error:
        raise MissingDependencyError(
            "pyserial is not installed: pip install 'robot_rl[sensors]'"
        ) from error
    return serial
