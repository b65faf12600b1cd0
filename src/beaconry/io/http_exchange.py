"""One request on a server connection, and the means to answer it exactly once."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol

from beaconry.wire.errors import error_body

Headers = Sequence[tuple[bytes, bytes]]

_STATUS_LINES = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK\\r\\n`."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


class Writer(Protocol):
    """What an exchange needs of its connection's transport."""

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        ...


class Carrier(Protocol):
    """What an exchange needs of its connection."""

    write_paused: bool

    @property
    def transport(self) -> Writer:
        """Where the bytes go."""
        ...

    def answered(self, exchange: "Exchange") -> None:
        """The answer is complete."""
        ...

    def abort(self) -> None:
        """Drop the connection."""
        ...


class Exchange:
    """One request and the means to answer it, exactly once.

    Either `respond()`, or `start()`, any number of `write()`, then `finish()`; `abort()` ends it at any time.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_named",
        "body",
        "closed",
        "headers",
        "http10",
        "keep_alive",
        "method",
        "on_close",
        "on_writable",
        "path",
        "target",
    )

    def __init__(self, connection: Carrier, method: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self._connection = connection
        self._head = b""
        self._chunked = False
        self.method = method
        self.target = target
        """Path and query, as sent."""
        self.path = target.partition(b"?")[0].decode("ascii")
        """Percent-escapes are not decoded."""
        self.headers = headers
        """In order; names in lower case."""
        self._named: dict[bytes, bytes] | None = None
        """The first value of each header, once somebody has asked for one."""
        self.body = b""
        self.http10 = False
        self.keep_alive = True
        self.closed = False
        """The answer is complete, or the connection is gone: nothing more may be written."""
        self.on_close: Callable[[], None] | None = None
        """Called once if the client leaves before the answer is complete."""
        self.on_writable: Callable[[], None] | None = None
        """Called when a slow client reads again after `write` returned False."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header (lower-case name), None if absent."""
        if self._named is None:
            self._named = dict(reversed(self.headers))
        return self._named.get(name)

    def respond(
        self, status: int, body: bytes, content_type: bytes = b"application/json", headers: Headers = ()
    ) -> None:
        """Send a whole answer."""
        if self.closed:
            return
        head = self._render_head(status, [(b"content-type", content_type), *headers], len(body))
        self._connection.transport.write(head if self.method == "HEAD" else head + body)
        self._connection.answered(self)

    def fail(self) -> None:
        """A bug of ours has been caught: it costs this request, and nobody waits for an answer that does not come."""
        if self.on_close is not None:
            self.on_close()  # whoever has taken it in lets go of it
        self.keep_alive = False
        self.respond(500, error_body("this gateway has failed; its log says why", status=500, code="internal"))

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        """Begin an answer of `length` bytes, or of unknown length. The head leaves with the first `write`."""
        self._chunked = length is None and not self.http10 and self.method != "HEAD"
        if length is None and self.http10:
            self.keep_alive = False
        self._head = self._render_head(status, headers, length)

    def write(self, data: bytes) -> bool:
        """Send a piece of the body. False: the client is slow, stop until `on_writable`."""
        if self.closed:
            return True
        if self.method == "HEAD":
            data = b""
        elif self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data, self._head = self._head + data, b""
        self._connection.transport.write(data)
        return not self._connection.write_paused

    def finish(self, data: bytes = b"") -> None:
        """Send a last piece and end the answer."""
        if self.closed:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        elif self.method == "HEAD":
            data = b""
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._connection.transport.write(data)
        self._connection.answered(self)

    def abort(self) -> None:
        """Drop the connection: the client must not take what it has for a complete answer."""
        if not self.closed:
            self.closed = True
            self._connection.abort()

    def _render_head(self, status: int, headers: Headers, length: int | None) -> bytes:
        parts = [status_line(status)]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        if length is not None:
            parts.append(b"content-length: %d\r\n" % length)
        elif self._chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif self.http10:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)
