"""A file of lines that is written some times a second, not once per line: the event loop is held by few writes instead of many.

What cannot be written, as when the disk is full, is dropped, and said to be: a log must not hold up what it tells of.
"""

import asyncio
import logging
import sys
from typing import IO

from beaconry.values.errors import OperatorError

FLUSH_S = 0.2
MAX_PENDING = 8192
"""Lines held before they are written at once."""
COMPLAIN_S = 60.0
"""Complaints come at most so often."""
_LOG = logging.getLogger(__name__)


class LineFile:
    """Appends lines to a file; "-" is standard output."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop, knob: str, *, fresh: bool = False) -> None:
        """`knob` names the setting in errors; a `fresh` file must not exist yet. Raises OperatorError if it cannot be written."""
        self._loop = loop
        self._pending: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._place = f"{knob} ({path})"
        self._lost = 0
        """Lines dropped since the last complaint."""
        self._complained_s = -COMPLAIN_S
        try:
            self._file: IO[bytes] = sys.stdout.buffer
            if path != "-":
                self._file = open(path, "xb" if fresh else "ab", buffering=0)  # noqa: SIM115 -- closed in close()
        except FileExistsError as error:
            raise OperatorError(f"{path} exists already; move it away or change {knob}") from error
        except OSError as error:
            raise OperatorError(f"cannot write {path}: {error.strerror}; check {knob}") from error

    def write(self, line: bytes) -> None:
        """Note a line, without its end."""
        self._pending.append(line)
        if len(self._pending) >= MAX_PENDING:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what is pending. Never raises for the file's sake."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._pending = self._pending, []
        if not lines:
            return
        left = memoryview(b"\n".join(lines) + b"\n")
        try:
            while left:
                left = left[self._file.write(left) :]  # a disk that fills up takes a part
            self._file.flush()
        except OSError as error:
            self._drop(len(lines), error)

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        if self._file is not sys.stdout.buffer:
            self._file.close()

    def _drop(self, lines: int, error: OSError) -> None:
        self._lost += lines
        now_s = self._loop.time()
        if now_s - self._complained_s >= COMPLAIN_S:
            _LOG.warning("%s cannot be written: %s; up to %d lines are lost", self._place, error.strerror, self._lost)
            self._lost, self._complained_s = 0, now_s
