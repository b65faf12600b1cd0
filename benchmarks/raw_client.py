"""A load client that must not be the bottleneck: raw sockets, fixed payloads, nothing parsed but where answers end."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import cast

END = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    transport: asyncio.Transport

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._missing = -1
        """Bytes to come of a whole answer; -1 while its head is awaited."""
        self._begun = False
        """Some byte of the answer has come."""
        self.sent_s = self.first_s = 0.0
        self.chunks = 0
        self.failed = False

    def send(self, payload: bytes) -> None:
        """Send a request."""
        self._missing = -1
        self._begun = False
        self.first_s = 0.0
        self.chunks = 0
        self.sent_s = self._client.now_s()
        self.transport.write(payload)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """asyncio: closed."""
        self.failed = True

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of an answer."""
        if not self._begun:
            self._begun = True
            self.failed = self.failed or not data.startswith(b"HTTP/1.1 200 ")
        chunks = data.count(b"data: ")
        if chunks or self.chunks:
            if not self.chunks:
                self.first_s = self._client.now_s()
            self.chunks += chunks
            self._client.chunks += chunks
            if data.endswith(b"0\r\n\r\n"):
                self._client.ended(self)
            return
        if self._missing < 0:
            head, end, body = data.partition(END)
            if b"transfer-encoding" in head or not end:
                return  # of a stream, before its first chunk
            self._missing = int(head.partition(b"content-length: ")[2].partition(b"\r")[0]) - len(body)
        else:
            self._missing -= len(data)
        if not self._missing:
            self._client.ended(self)


class Client:
    """Connections to some ports, used in turn, and what was measured on them since `reset`."""

    def __init__(self, ports: Sequence[int], on_reset: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.now_s = time.perf_counter  # the loop's own clock has milliseconds only
        self._on_reset = on_reset
        """What else begins to measure then."""
        self._ports = itertools.cycle(ports)
        self._again: bytes | None = None
        """Closed loop: what is sent when an answer is complete."""
        self._idle: list[Connection] = []
        self._all: list[Connection] = []
        self.reset()

    def reset(self) -> None:
        """Forget what was measured."""
        self.latencies_s: list[float] = []
        self.firsts_s: list[float] = []
        self.requests = self.chunks = 0
        self._on_reset()
        self.begun_s = self.now_s()

    async def connect(self, count: int) -> None:
        """Open connections."""
        for _ in range(count):
            _, made = await self._loop.create_connection(lambda: Connection(self), "127.0.0.1", next(self._ports))
            self._all.append(made)
            self._idle.append(made)

    async def keep_busy(self, payload: bytes, stagger_s: float = 0.0) -> None:
        """Closed loop: from now on each connection sends again when its answer is complete."""
        self._again = payload
        for connection in self._idle:
            connection.send(payload)
            await asyncio.sleep(stagger_s)
        self._idle.clear()

    async def send_at_rate(self, payload: bytes, rate: float, seconds: float, rng: Random) -> None:
        """Open loop: Poisson arrivals, each on an idle connection."""
        due_s = self.now_s()
        end_s = due_s + seconds
        while due_s < end_s:
            due_s += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due_s - self.now_s()))
            if not self._idle:
                await self.connect(1)
            self._idle.pop().send(payload)

    def close(self) -> None:
        """Drop all connections. Raises RuntimeError if one had failed."""
        failed = sum(connection.failed for connection in self._all)
        for connection in self._all:
            connection.transport.abort()
        if failed:
            raise RuntimeError(f"{failed} of {len(self._all)} connections had an answer other than 200, or were closed")

    def ended(self, connection: Connection) -> None:
        """A connection has its complete answer."""
        now_s = self.now_s()
        self.requests += 1
        self.latencies_s.append(now_s - connection.sent_s)
        if connection.chunks:
            self.firsts_s.append(connection.first_s - connection.sent_s)
        if self._again is not None:
            connection.send(self._again)
        else:
            self._idle.append(connection)
