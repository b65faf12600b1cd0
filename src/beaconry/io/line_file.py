"""A file of lines that is written some times a second, not once per line: the event loop is held by few writes instead of many."""

import asyncio
import sys
from typing import IO

from beaconry.values.errors import OperatorError

FLUSH_S = 0.2
MAX_PENDING = 8192
"""Lines held before they are written at once."""


class LineFile:
    """Appends lines to a file; "-" is standard output."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop, knob: str, *, fresh: bool = False) -> None:
        """`knob` names the setting in errors; a `fresh` file must not exist yet. Raises OperatorError if it cannot be written."""
        self._loop = loop
        self._pending: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
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
        """Write what is pending."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending:
            self._file.write(b"\n".join(self._pending) + b"\n")
            self._file.flush()
            self._pending.clear()

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        if self._file is not sys.stdout.buffer:
            self._file.close()
