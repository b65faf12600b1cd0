"""Keep-alive connections of the load client: at most `limit` of them, each with one request at a time; further requests wait in order.

Waiting is no loophole in the measurement: the clock of a request runs from its planned time, wherever it waits.
"""

import asyncio
import ssl
from collections import deque
from typing import Protocol, cast

import httptools
from msgspec import Struct

CONNECT_TIMEOUT_S = 10.0


class Address(Struct, frozen=True, kw_only=True):
    """Where connections go. `tls` holds the context for https, None for http."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class Exchange(Protocol):
    """One request and the receiver of its answer. Exactly one of `on_end` and `on_failure` is called, unless it is withdrawn."""

    payload: bytes

    def on_sent(self) -> None:
        """The request is written. Called again if it is repeated on a fresh connection."""
        ...

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The answer's head is there."""
        ...

    def on_body(self, data: bytes) -> None:
        """A piece of the answer's body."""
        ...

    def on_end(self) -> None:
        """The answer is complete."""
        ...

    def on_failure(self, kind: str, detail: str) -> None:
        """There will be no complete answer."""
        ...


class LoadConnection(asyncio.Protocol):
    """One connection. Its callbacks are asyncio's and llhttp's."""

    transport: asyncio.Transport

    def __init__(self, pool: "LoadPool") -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._heard = False
        """Some byte of the current answer has come."""
        self._open_ended = False
        """The current answer's body ends with the connection."""
        self.exchange: Exchange | None = None
        """The request on this connection, None while idle."""
        self.served = 0

    def send(self, exchange: Exchange) -> None:
        """Put a request on this idle connection."""
        self.exchange = exchange
        self._heard = self._open_ended = False
        self._headers = []
        self.transport.write(exchange.payload)
        exchange.on_sent()

    def drop(self) -> None:
        """Close at once; the request on it, if any, hears nothing more."""
        self.exchange = None
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclasses

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: closed by either side."""
        exchange, self.exchange = self.exchange, None
        self._pool.lost(self)
        if exchange is None:
            return
        if self._open_ended and exc is None:
            exchange.on_end()
        elif (
            self.served and not self._heard
        ):  # the server had closed the idle connection before our request came: no fault of its
            self._pool.repeat(exchange)
        else:
            exchange.on_failure("reset", str(exc or "the server closed the connection in the middle of an answer"))

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of the answer."""
        self._heard = True
        if self.exchange is None:  # bytes that nobody asked for: the connection cannot be trusted
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            exchange, self.exchange = self.exchange, None
            self.transport.abort()
            if exchange is not None:
                exchange.on_failure("bad answer", str(error))

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: one header line."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """llhttp: the end of the head."""
        status = self._parser.get_status_code()
        if self.exchange is None or status < 200:  # an interim answer such as 100
            return
        names = {name.lower() for name, _ in self._headers}
        self._open_ended = names.isdisjoint((b"content-length", b"transfer-encoding"))
        self.exchange.on_head(status, self._headers)

    def on_body(self, body: bytes) -> None:
        """llhttp: a piece of the body."""
        if self.exchange is not None:
            self.exchange.on_body(body)

    def on_message_complete(self) -> None:
        """llhttp: the end of the answer."""
        if self.exchange is None or self._parser.get_status_code() < 200:
            self._headers = []
            return
        exchange, self.exchange = self.exchange, None
        self.served += 1
        if self._parser.should_keep_alive():
            self._pool.idle(self)
        else:
            self.transport.close()
        exchange.on_end()


class LoadPool:
    """All connections of a run, and the requests that wait for one."""

    def __init__(self, address: Address, limit: int, tasks: asyncio.TaskGroup) -> None:
        self._address = address
        self._limit = limit
        self._tasks = tasks
        self._idle: list[LoadConnection] = []
        """Connections without a request; the last used one is the next, so that few are kept busy."""
        self._connections: set[LoadConnection] = set()
        """All open connections, idle ones included."""
        self._connecting: set[asyncio.Task[None]] = set()
        """Attempts to open a connection. With the open ones never more than the limit."""
        self._waiting: deque[Exchange] = deque()
        """Requests without a connection, oldest first. Bounded by the plan's rate times the deadline, which withdraws them."""

    def submit(self, exchange: Exchange) -> None:
        """Send the request now if a connection is free, else as soon as there is one."""
        if self._idle:
            self._idle.pop().send(exchange)
        else:
            self._waiting.append(exchange)
            self._open()

    def repeat(self, exchange: Exchange) -> None:
        """Send a request again, before all others, on a fresh connection."""
        self._waiting.appendleft(exchange)
        self._open()

    def withdraw(self, exchange: Exchange) -> None:
        """Forget a request wherever it is; an answer on its way is cut off."""
        if exchange in self._waiting:
            self._waiting.remove(exchange)
        for connection in self._connections:
            if connection.exchange is exchange:
                connection.drop()
                return

    def idle(self, connection: LoadConnection) -> None:
        """A connection has become free."""
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: LoadConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._waiting:
            self._open()

    def close(self) -> None:
        """Close every connection. Requests still on one hear nothing more."""
        self._waiting.clear()
        for attempt in self._connecting:
            attempt.cancel()
        self._connecting.clear()
        for connection in list(self._connections):
            connection.drop()

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        assert len(self._connections) + len(self._connecting) <= self._limit, "no more connections than allowed"
        assert all(connection.exchange is None for connection in self._idle), "idle connections have no request"
        assert self._connections.issuperset(self._idle), "idle connections are open"

    def _open(self) -> None:
        """Open one more connection if a request lacks one and the limit allows it."""
        attempts = len(self._connecting)
        if attempts < len(self._waiting) and len(self._connections) + attempts < self._limit:
            self._connecting.add(self._tasks.create_task(self._connect()))

    async def _connect(self) -> None:
        attempt = asyncio.current_task()
        assert attempt is not None
        try:
            connection = await self._dial()
        except (OSError, TimeoutError) as error:
            self._connecting.discard(attempt)
            self._fail_oldest("connect", str(error) or f"no connection within {CONNECT_TIMEOUT_S:g} s")
            return
        self._connecting.discard(attempt)
        if connection.transport.is_closing():
            self._fail_oldest("reset", "the server closed the connection as soon as it was open")
        else:
            self._connections.add(connection)
            self.idle(connection)

    async def _dial(self) -> LoadConnection:
        address = self._address
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: LoadConnection(self), address.host, address.port, ssl=address.tls
            )
            return connection

    def _fail_oldest(self, kind: str, detail: str) -> None:
        """An attempt to connect failed: so does the request that it was for. The others go on."""
        if self._waiting:
            self._waiting.popleft().on_failure(kind, detail)
        self._open()
