"""Keep-alive HTTP/1.1 connections to engines, one leg at a time on each.

A connection hands each read to its leg in one call, payload only, together with whether the answer is complete, so that a short
answer costs one write to the client. It knows nothing of OpenAI or of routing.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from beaconry.router.facts import Fault

IDLE_CONNECTIONS = 512
"""Kept per endpoint; more are closed when they fall idle."""


class Leg(Protocol):
    """The receiver of one answer."""

    def on_answer(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        """The head is complete. `length` is None for a chunked or open-ended body."""
        ...

    def on_data(self, data: bytes, *, ended: bool) -> None:
        """A piece of the body (may be empty if ended). After `ended` nothing more comes."""
        ...

    def on_failure(self, fault: Fault, detail: str) -> None:
        """The answer will not be complete. Nothing more comes."""
        ...


class ExcessAnswerError(Exception):
    """Raised inside a parser callback: a second answer behind the one that was asked for."""


class Call:
    """One request to an endpoint on its way: cancel it, or hold its answer back."""

    __slots__ = ("_connection", "_paused", "leg", "payload")

    def __init__(self, leg: Leg, payload: bytes) -> None:
        self.leg: Leg | None = leg
        """None once the call has ended or was cancelled."""
        self.payload = payload
        self._connection: UpstreamConnection | None = None
        self._paused = False

    def attach(self, connection: "UpstreamConnection | None") -> None:
        """Note the connection that carries the call."""
        self._connection = connection
        if connection is not None and self._paused:
            connection.transport.pause_reading()

    def cancel(self) -> None:
        """Close the connection at once, so that the engine stops working; the leg hears nothing more."""
        self.leg = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()

    def pause(self) -> None:
        """Stop reading the answer: the client is slow."""
        self._paused = True
        if self._connection is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if self._connection is not None:
                self._connection.transport.resume_reading()

    def fail(self, fault: Fault, detail: str) -> None:
        """Tell the leg, once."""
        leg, self.leg = self.leg, None
        self._connection = None
        if leg is not None:
            leg.on_failure(fault, detail)


class UpstreamConnection(asyncio.Protocol):
    """One connection to one endpoint. Its callbacks are llhttp's and asyncio's."""

    __slots__ = (
        "_call",
        "_complete",
        "_headers",
        "_keep_alive",
        "_open_ended",
        "_parser",
        "_parts",
        "_pool",
        "_received",
        "_served",
        "_status",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, pool: "UpstreamPool") -> None:
        self._pool = pool
        self._call: Call | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._status = 0
        self._received = False
        """Some byte of the current answer has come."""
        self._open_ended = False
        """The current answer's body ends with the connection."""
        self._complete = False
        self._keep_alive = False
        self._served = 0
        """Answers completed on this connection."""

    def send(self, call: Call) -> None:
        """Put a call on this idle connection."""
        self._call = call
        self._received = self._complete = self._open_ended = False
        self._status = 0
        call.attach(self)
        self.transport.write(call.payload)

    def drop(self) -> None:
        """Close now, tell nobody."""
        self._call = None
        self.transport.abort()

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        call, self._call = self._call, None
        self._pool.forget(self)
        if call is None:
            return
        if self._open_ended and exc is None and call.leg is not None:
            leg, call.leg = call.leg, None
            leg.on_data(b"", ended=True)
        elif not self._received and self._served:
            self._pool.again(call)  # the engine closed an idle connection just as it was used: no fault of the request
        else:
            call.fail(
                Fault.RESET, f"connection closed: {exc}" if exc else "connection closed before the answer was complete"
            )

    def data_received(self, data: bytes) -> None:  # noqa: D102
        call = self._call
        if call is None:
            self.transport.abort()  # an answer nobody asked for: the connection is out of step
            return
        self._received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._call = None
            self.transport.abort()
            call.fail(Fault.PROTOCOL, f"the engine's answer is not valid HTTP: {error}")
            return
        parts = self._parts
        if parts or self._complete:
            payload = parts[0] if len(parts) == 1 else b"".join(parts)
            self._parts = []
            self._deliver(call, payload)

    def _deliver(self, call: Call, payload: bytes) -> None:
        leg = call.leg
        if not self._complete:
            if leg is not None:
                leg.on_data(payload, ended=False)
            return
        self._call = None
        call.leg = None
        call.attach(None)
        self._served += 1
        if self._keep_alive:
            self._pool.release(self)
        else:
            self.transport.close()
        if leg is not None:
            leg.on_data(payload, ended=True)

    # -- llhttp

    def on_message_begin(self) -> None:  # noqa: D102
        if self._complete:
            raise ExcessAnswerError
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if not self._status:  # trailers come this way too, and are dropped
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:  # noqa: D102
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer (100, 103): the real one follows
            return
        self._status = status
        length: int | None = None
        chunked = False
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = True
        self._open_ended = length is None and not chunked and status not in (204, 304)
        call = self._call
        if call is not None and call.leg is not None:
            call.leg.on_answer(status, self._headers, length)

    def on_body(self, data: bytes) -> None:  # noqa: D102
        self._parts.append(data)

    def on_message_complete(self) -> None:  # noqa: D102
        if self._status:
            self._complete = True
            self._keep_alive = (
                self._parser.should_keep_alive()
            )  # known only here: llhttp starts afresh after the message


class UpstreamPool:
    """All connections to one endpoint."""

    def __init__(self, host: str, port: int, connect_s: float, spawn: Callable[..., object]) -> None:
        self.host = host
        self.port = port
        self.address = f"{host}:{port}".encode()
        """For the Host header."""
        self._connect_s = connect_s
        self._spawn = spawn
        """Starts a coroutine in the owner's task group."""
        self._idle: list[UpstreamConnection] = []
        self._all: set[UpstreamConnection] = set()
        self._closed = False

    def send(self, call: Call) -> None:
        """Send on an idle connection, or on a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                connection.send(call)
                return
        self._spawn(self._connect(call))

    def again(self, call: Call) -> None:
        """Send once more, on a fresh connection: idle ones may be as stale as the last."""
        if call.leg is not None:
            self._spawn(self._connect(call))

    def release(self, connection: UpstreamConnection) -> None:
        """Take a connection back after a complete answer."""
        if self._closed or len(self._idle) >= IDLE_CONNECTIONS:
            connection.transport.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection has closed."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close idle connections now and busy ones after their answer."""
        self._closed = True
        for connection in self._idle:
            connection.transport.close()
        self._idle.clear()

    def abort(self) -> None:
        """Close everything now, without a word to the legs."""
        self.close()
        for connection in list(self._all):
            connection.drop()

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._all)

    async def _connect(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(lambda: UpstreamConnection(self), self.host, self.port)
        except TimeoutError:
            call.fail(Fault.CONNECT, f"no connection within {self._connect_s:g} s")
            return
        except OSError as error:
            call.fail(Fault.CONNECT, error.strerror or errno.errorcode.get(error.errno or 0, str(error)))
            return
        except ValueError as error:  # a host that no name can be, such as "a..b"
            call.fail(Fault.CONNECT, str(error))
            return
        self._all.add(connection)
        if call.leg is None:  # cancelled while connecting
            self.release(connection)
        else:
            connection.send(call)
