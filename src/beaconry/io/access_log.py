"""One JSON line per request with its outcome: never a prompt, a body or a credential. Lines are written in batches."""

import asyncio
import sys
import time
from typing import IO

import msgspec

from beaconry.io.relay import Relay
from beaconry.router.effects import Ended
from beaconry.values.errors import OperatorError

FLUSH_S = 0.2
MAX_PENDING = 8192
"""Lines held before they are written at once."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request."""

    time: float
    id: str
    model: str
    path: str
    outcome: str
    status: int
    e2e_ms: float
    endpoint: str | None = None
    attempts: int = 0
    stream: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


class AccessLog:
    """Collects lines and writes them some times a second."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._encoder = msgspec.json.Encoder()
        try:
            self._file: IO[bytes] = sys.stdout.buffer if path == "-" else open(path, "ab", buffering=0)  # noqa: SIM115 -- closed in close()
        except OSError as error:
            raise OperatorError(f"cannot write the access log {path}: {error.strerror}; check access.log") from error

    def write(self, relay: Relay, ended: Ended) -> None:
        """Note one request."""
        usage = relay.usage
        placement = relay.placement
        line = Line(
            time=round(time.time(), 3),
            id=ended.request_id,
            model=relay.parsed.model[:200],
            path=relay.exchange.path,
            outcome=ended.outcome.value,
            status=relay.status,
            e2e_ms=round(1e3 * ended.e2e_s, 1),
            endpoint=None if placement is None else placement.endpoint.name,
            attempts=ended.attempts,
            stream=relay.parsed.stream,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            cached_tokens=None if usage is None else usage.cached_tokens,
            output_tokens=None if usage is None else usage.completion_tokens,
        )
        self._pending.append(self._encoder.encode(line))
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
