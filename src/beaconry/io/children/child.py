"""One child process in a process group of its own: its output, its health, its end.

The pipe is ours rather than the event loop's, because loops disagree on whether waiting for a process also waits for its pipes,
which grandchildren may hold open.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

KEPT_LINES = 50
KEPT_LINE_BYTES = 2_000
_FLUSH_S = 0.5
"""For the last output to come through the pipe after the process has ended."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\t\x20-\x7e\u00a0-\U0010ffff]")


class Child:
    """A running process. Whoever starts one must `end()` it."""

    def __init__(self, process: asyncio.subprocess.Process, output: "_Output", pipe: asyncio.ReadTransport) -> None:
        self._process = process
        self._output = output
        self._pipe = pipe
        self.pid = process.pid
        """Also the id of its group and session."""

    @classmethod
    async def start(cls, argv: Sequence[str], environment: Mapping[str, str]) -> "Child":
        """Start `argv` with exactly `environment`. Raises OSError if the program cannot be run."""
        loop = asyncio.get_running_loop()
        read_fd, write_fd = os.pipe()
        try:
            pipe, output = await loop.connect_read_pipe(_Output, os.fdopen(read_fd, "rb", 0))
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=write_fd,
                    stderr=write_fd,
                    env=dict(environment),
                    start_new_session=True,
                )
            except BaseException:
                pipe.close()
                raise
        finally:
            os.close(write_fd)
        return cls(process, output, pipe)

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines of standard output and error, oldest first, without control characters."""
        return self._output.lines()

    async def exited(self) -> str:
        """Wait for the process to end; return how, in words."""
        code = await self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def terminate(self) -> None:
        """Ask the process to end; its own children are its business as long as it lives."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def end(self, within_s: float) -> None:
        """Kill what is left of the group, reap the process, read its last output and release the pipe."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left; macOS refuses for zombies
            os.killpg(self.pid, signal.SIGKILL)
        try:
            await completed(self._process.wait(), within_s)
            await completed(self._output.closed.wait(), _FLUSH_S)
        finally:
            self._pipe.close()


async def until_healthy(host: str, port: int, poll_s: float, timeout_s: float) -> None:
    """Return once `GET /health` answers 200; `timeout_s` bounds each try, the caller bounds them all."""
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                if await _healthy(host, port):
                    return
        await asyncio.sleep(poll_s)


async def completed(work: Coroutine[Any, Any, Any], within_s: float) -> bool:
    """Wait for `work`, at most `within_s`; whether it came to its end (if not, it is cancelled)."""
    try:
        async with asyncio.timeout(within_s):
            await work
    except TimeoutError:
        return False
    return True


async def _healthy(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        status = await reader.readline()
    except ValueError:  # a line beyond the reader's limit: not HTTP
        return False
    finally:
        writer.close()
    return status.startswith(b"HTTP/1.") and status[8:13] == b" 200 "


class _Output(asyncio.Protocol):
    """Keeps the last `KEPT_LINES` lines, each cut at `KEPT_LINE_BYTES`."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=KEPT_LINES)
        self._partial = b""  # an unfinished line, at most KEPT_LINE_BYTES
        self.closed = asyncio.Event()
        """The process and all that inherited its output have closed it."""

    def data_received(self, data: bytes) -> None:
        *complete, last = data.split(b"\n")
        for line in complete:
            self._lines.append((self._partial + line)[:KEPT_LINE_BYTES])
            self._partial = b""
        self._partial = (self._partial + last)[:KEPT_LINE_BYTES]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.closed.set()

    def lines(self) -> tuple[str, ...]:
        raw = [*self._lines, self._partial] if self._partial else list(self._lines)
        return tuple(_ESCAPES.sub("", line.decode(errors="replace")).rstrip() for line in raw)
