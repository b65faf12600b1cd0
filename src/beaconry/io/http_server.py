"""An HTTP/1.1 server on llhttp: strict parsing, bounded everything, one write per answer where possible.

A connection carries one exchange at a time; requests sent ahead are kept, in order and bounded, and reading stops meanwhile.
Whole requests are handed to `handle(exchange)`; the answer is written through the exchange, whenever it is there.
Framing follows RFC 9112 strictly (llhttp refuses Content-Length beside Transfer-Encoding, bare line feeds, folded headers), so
that no two parties can disagree on where a request ends.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools
import msgspec

from beaconry.config.gateway import Limits
from beaconry.io.http_exchange import Exchange, status_line
from beaconry.values.errors import OperatorError
from beaconry.wire.errors import error_body
from beaconry.wire.framing import (
    UPGRADE,
    Fault,
    body_too_large,
    expects_continue,
    fault_of_headers,
    head_bytes,
    headers_too_large,
    origin_form,
)

_LOG = logging.getLogger(__name__)
NEVER = float("inf")
LINGER_S = 2.0
"""How long the rest of a refused request is read and dropped: closing at once would reset the connection under the answer."""
SWEEP_S = 1.0
WRITE_HIGH_BYTES = 262_144
Screen = Callable[[list[tuple[bytes, bytes]]], Fault | None]
"""Judges a request by its headers alone, before its body is read."""


class TooManyPipelinedError(Exception):
    """Raised inside a parser callback to stop parsing."""


class Connection(asyncio.Protocol):
    """One client connection. Its callbacks are llhttp's and asyncio's."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_current",
        "_draining_input",
        "_fed_bytes",
        "_headers",
        "_in_headers",
        "_modern",
        "_parser",
        "_pending",
        "_reading_paused",
        "_server",
        "_target",
        "deadline_s",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._current: Exchange | None = None
        self._pending: deque[Exchange] = deque()
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: bytes | bytearray = b""
        """The present request's, so far. In one run: kept as pieces, tiny chunks would weigh many times their length."""
        self._body_bytes = 0
        """What is counted for it in `_server.buffered_bytes`."""
        self._fed_bytes = 0
        """Bytes received since a request was complete or body bytes came: no fewer than a header or trailer under way has."""
        self._target = b""
        self._in_headers = False
        self._modern = True
        """The present request is HTTP/1.1, and not 1.0; known with its headers."""
        self._draining_input = False
        self._reading_paused = False
        self.write_paused = False
        self.deadline_s = NEVER
        """When the connection is closed unless something happens; NEVER while an answer is awaited."""

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self.transport = cast("asyncio.Transport", transport)
        if not self._server.admit(self):
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES)
        self.deadline_s = self._server.now_s() + self._server.limits.header_s

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, D102
        self._server.leave(self)
        self._server.buffered_bytes -= self._body_bytes
        self._body_bytes = 0
        self._draining_input = True
        for exchange in self._pending:
            exchange.closed = True
            self._server.buffered_bytes -= len(exchange.body)
        self._pending.clear()
        current, self._current = self._current, None
        if current is not None:
            self._server.buffered_bytes -= len(current.body)
            if not current.closed:
                current.closed = True
                if current.on_close is not None:
                    current.on_close()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self._draining_input:
            return
        if self._fed_bytes > self._server.limits.header_bytes:
            # a header or trailer without end stays inside the parser, so what was fed counts
            self._refuse(*headers_too_large(self._server.limits))
            return
        self._fed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._draining_input = True  # refused with its headers
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, TooManyPipelinedError):
                raise
            self._draining_input = True
            self._stop_reading()
        except httptools.HttpParserError as error:
            self._refuse(400, f"the request is not valid HTTP/1.1: {error}", "malformed_http")

    def pause_writing(self) -> None:  # noqa: D102
        self.write_paused = True
        self.deadline_s = self._server.now_s() + self._server.limits.stalled_write_s

    def resume_writing(self) -> None:  # noqa: D102
        self.write_paused = False
        if self._current is None:
            self.deadline_s = self._server.now_s() + (
                LINGER_S if self._draining_input else self._server.limits.keep_alive_s
            )
            return
        self.deadline_s = NEVER
        if self._current.on_writable is not None:
            self._current.on_writable()

    # -- llhttp

    def on_message_begin(self) -> None:  # noqa: D102
        if self._draining_input:
            return
        if len(self._pending) >= self._server.limits.pipelined_requests:
            raise TooManyPipelinedError
        self._headers = []
        self._body = b""
        self._target = b""
        self._in_headers = True
        if self._current is None:
            self.deadline_s = self._server.now_s() + self._server.limits.header_s

    def on_url(self, url: bytes) -> None:  # noqa: D102
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if self._in_headers:  # trailers come this way too, and are dropped
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:  # noqa: D102
        self._in_headers = False
        if self._draining_input:
            return
        self._modern = modern = self._parser.get_http_version() == "1.1"
        fault = UPGRADE if self._parser.should_upgrade() else self._fault_of_head(modern=modern)
        if fault is not None:
            self._refuse(*fault)
            return
        if self._current is None:
            self.deadline_s = self._server.now_s() + self._server.limits.body_s
            if modern and expects_continue(self._headers):
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _fault_of_head(self, *, modern: bool) -> Fault | None:
        limits = self._server.limits
        if self._fed_bytes > limits.header_bytes and head_bytes(self._target, self._headers) > limits.header_bytes:
            return headers_too_large(limits)
        return fault_of_headers(self._headers, limits, modern=modern) or self._server.screen(self._headers)

    def on_body(self, data: bytes) -> None:  # noqa: D102
        if self._draining_input:
            return
        if not self._body:
            self._body = data  # the usual case: all of it in one piece
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += data
        self._fed_bytes = 0
        self._body_bytes += len(data)
        self._server.buffered_bytes += len(data)
        if self._body_bytes > self._server.limits.body_bytes:
            self._refuse(*body_too_large(self._server.limits))
        elif self._server.buffered_bytes > self._server.limits.buffered_bytes:
            self._refuse(503, "the gateway holds as many request bodies as it may; try again shortly", "overloaded")

    def on_message_complete(self) -> None:  # noqa: D102
        self._fed_bytes = 0
        if self._draining_input:
            return
        parser = self._parser
        try:
            exchange = Exchange(self, parser.get_method().decode("ascii"), origin_form(self._target), self._headers)
        except ValueError:
            self._refuse(400, "the request target is not a valid path", "bad_target")
            return
        exchange.http10 = not self._modern
        exchange.keep_alive = parser.should_keep_alive() and not self._server.closing
        exchange.body = bytes(self._body)
        self._body = b""
        self._body_bytes = 0  # from here on the exchange's, until it is answered
        if self._current is None:
            self._begin(exchange)
        else:
            self._pending.append(exchange)
            self._stop_reading()

    # -- exchanges

    def _begin(self, exchange: Exchange) -> None:
        self._current = exchange
        self.deadline_s = NEVER
        try:
            self._server.handle(exchange)
        except Exception:  # noqa: BLE001 -- a bug of ours must cost one request, not leave its client waiting
            _LOG.exception("a request could not be handled")
            exchange.fail()

    def answered(self, exchange: Exchange) -> None:
        """The current answer is complete: go on with the next request, or wait for it, or close."""
        exchange.closed = True
        self._server.buffered_bytes -= len(exchange.body)
        self._current = None
        if not exchange.keep_alive or self._server.closing:
            self.close_gently()
        elif self._pending:
            # not from here: a handler that answers at once would recurse through all that was sent ahead
            self._server.loop.call_soon(self._next)
        elif self._draining_input:
            self.close_gently()
        else:
            self.deadline_s = self._server.now_s() + self._server.limits.keep_alive_s
            self._resume_reading()

    def _next(self) -> None:
        if self._pending and self._current is None:
            self._begin(self._pending.popleft())

    def _stop_reading(self) -> None:
        if not self._reading_paused and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    @property
    def idle(self) -> bool:
        """No request is being answered or read."""
        return self._current is None and not self._in_headers and not self._body_bytes and not self._pending

    # -- refusing and closing

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer what cannot become an exchange, and close. If an answer is under way, closing must do."""
        if self._draining_input:
            return  # the connection is ending: this came behind its last request
        self._draining_input = True
        self._in_headers = False
        self._server.buffered_bytes -= self._body_bytes
        self._body_bytes = 0
        self._body = b""
        if self._current is not None:
            self._current.keep_alive = False
            self._stop_reading()
            return
        self._server.refused(status, code)
        body = error_body(message, status=status, code=code)
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status_line(status), len(body)) + body)
        self.close_gently()

    def close_gently(self) -> None:
        """Send what is buffered and our end of stream, drop what still comes, close when the client does or time is up."""
        self._draining_input = True
        if self.transport.is_closing():
            return
        self._resume_reading()
        if not self.write_paused:  # else the client is slow to read its answer, and has the time of a stalled write
            self.deadline_s = self._server.now_s() + LINGER_S
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def abort(self) -> None:
        """Drop the connection now."""
        self._draining_input = True
        self.transport.abort()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.write_paused or self.transport.is_closing():
            self.transport.abort()
        elif self._draining_input or self._current is not None or self.idle:
            self.deadline_s = self._server.now_s() + self._server.limits.stalled_write_s  # for what is still unsent
            self.transport.close()
        else:
            self._refuse(408, "the request did not arrive in time", "request_timeout")


class ServerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a server holds at one moment, and what it has refused so far."""

    connections: int
    buffered_bytes: int
    refused: dict[tuple[int, str], int]


class HttpServer:
    """The listener and its connections."""

    def __init__(
        self, handle: Callable[[Exchange], None], screen: Screen, limits: Limits, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.handle = handle
        self.screen = screen
        self.limits = limits
        self.loop = loop
        self.now_s = loop.time
        self.closing = False
        """Set once: each connection ends with its current answer."""
        self.buffered_bytes = 0
        """Bytes of all request bodies being received, waiting or being answered; 0 when idle."""
        self.port = 0
        self._connections: set[Connection] = set()
        self._refused: dict[tuple[int, str], int] = {}
        self._emptied = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> None:
        """Bind. Raises OperatorError if the address cannot be taken."""
        try:
            self._listener = await self.loop.create_server(lambda: Connection(self), host, port, backlog=4096)
        except OSError as error:
            raise OperatorError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with --host and --port, or 0 for a free port"
            ) from error
        self.port = self._listener.sockets[0].getsockname()[1]
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def statistics(self) -> ServerStatistics:
        """Connections and bytes held."""
        return ServerStatistics(
            connections=len(self._connections), buffered_bytes=self.buffered_bytes, refused=dict(self._refused)
        )

    def close_listeners(self) -> None:
        """Take no new connections; those that are idle end now, the others with their current answer."""
        self.closing = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            if connection.idle:
                connection.transport.close()

    async def drain(self, deadline_s: float) -> bool:
        """Wait until all connections have ended, at most until `deadline_s` (loop time). True if they have."""
        self.close_listeners()
        if self._connections:
            self._emptied = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), max(0.0, deadline_s - self.now_s()))
        return not self._connections

    async def abort_all(self) -> None:
        """Drop every connection and release the listener."""
        self.close_listeners()
        for connection in list(self._connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self.drain(self.now_s() + SWEEP_S)
        if self._listener is not None:
            await self._listener.wait_closed()

    # -- called by connections

    def admit(self, connection: Connection) -> bool:
        """Count a new connection in, unless there are too many."""
        if self.closing or len(self._connections) >= self.limits.connections:
            return False
        self._connections.add(connection)
        return True

    def leave(self, connection: Connection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.set()

    def refused(self, status: int, code: str) -> None:
        """Count a request that never became an exchange."""
        self._refused[status, code] = self._refused.get((status, code), 0) + 1

    def _sweep(self) -> None:
        now_s = self.now_s()
        for connection in [c for c in self._connections if c.deadline_s <= now_s]:
            connection.expire()
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)


def admit_all(headers: list[tuple[bytes, bytes]]) -> None:
    """The screen of a server that reads every body."""


async def serve(
    handle: Callable[[Exchange], None], host: str, port: int, limits: Limits, screen: Screen = admit_all
) -> HttpServer:
    """Start a server on the running loop. `screen` may refuse a request before its body is read. OperatorError for an address in use."""
    server = HttpServer(handle, screen, limits, asyncio.get_running_loop())
    await server.listen(host, port)
    return server
