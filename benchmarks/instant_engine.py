"""An engine that costs next to nothing: it answers at once with fixed bytes, or streams chunks as fast as asked.

    python -m benchmarks.instant_engine [PORT ...]

It serves on all ports given, or on a free one.
`max_tokens` of the body is the number of chunks; the header `x-pause-ms` the time between them, 0 for none.
"""

import asyncio
import re
import sys
from typing import cast

import uvloop

END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")
_PAUSE = re.compile(rb"\r\nx-pause-ms: (\d+)")
_TOKENS = re.compile(rb'"max_tokens":(\d+)')
_FIELDS = b'"id":"chatcmpl-0","object":"chat.completion%b","created":1750000000,"model":"m","choices":['
_USAGE = (
    b'"usage":{"prompt_tokens":21,"total_tokens":24,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}}'
)


def whole() -> bytes:
    """A complete answer."""
    choice = b'{"index":0,"message":{"role":"assistant","content":"' + b"word " * 12 + b'"},"finish_reason":"length"}],'
    body = b"{" + _FIELDS % b"" + choice + _USAGE
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def chunk(event: bytes) -> bytes:
    """An event as one HTTP chunk."""
    data = b"data: " + event + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = whole()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = chunk(
    b"{" + _FIELDS % b".chunk" + b'{"index":0,"delta":{"content":"word "},"logprobs":null,"finish_reason":null}]}'
)
LAST = chunk(b"{" + _FIELDS % b".chunk" + b"]," + _USAGE) + chunk(b"[DONE]") + b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buffer = b""
        self._left = 0
        self._pause_s = 0.0
        self._due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of a request."""
        self._buffer += data
        at = self._buffer.find(END)
        if at < 0:
            return
        length = _LENGTH.search(self._buffer)
        if len(self._buffer) < at + 4 + (int(length[1]) if length else 0):
            return
        request, self._buffer = self._buffer, b""
        if b'"stream":true' not in request:
            self.transport.write(WHOLE)
            return
        tokens, pause = _TOKENS.search(request), _PAUSE.search(request)
        self._left = int(tokens[1]) if tokens else 16
        self._pause_s = int(pause[1]) / 1e3 if pause else 0.0
        self._due_s = self._loop.time()
        self.transport.write(HEAD)
        self._emit()

    def _emit(self) -> None:
        if self.transport.is_closing():
            return
        self._left -= 1
        if self._left <= 0:
            self.transport.write(LAST)
            return
        self.transport.write(TOKEN)
        if self._pause_s:
            self._due_s += self._pause_s
            self._loop.call_at(self._due_s, self._emit)
        else:
            self._loop.call_soon(self._emit)


async def main() -> None:
    loop = asyncio.get_running_loop()
    ports = [int(port) for port in sys.argv[1:]] or [0]
    servers = [await loop.create_server(lambda: Connection(loop), "127.0.0.1", port, backlog=1024) for port in ports]
    print(f"ready http://127.0.0.1:{servers[0].sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
