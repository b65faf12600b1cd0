"""The HTTP server against well-behaved, slow, broken and hostile peers."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from beaconry.config.gateway import Limits
from beaconry.io.http_exchange import Exchange
from beaconry.io.http_server import HttpServer, serve
from beaconry.values.errors import OperatorError

POST = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b"


def echo(exchange: Exchange) -> None:
    exchange.respond(
        200, exchange.method.encode() + b" " + exchange.path.encode() + b" " + exchange.body, b"text/plain"
    )


@contextlib.asynccontextmanager
async def serving(handle: Callable[[Exchange], None] = echo, **limits: float) -> AsyncIterator[HttpServer]:
    server = await serve(handle, "127.0.0.1", 0, Limits(**limits))
    try:
        yield server
    finally:
        await server.abort_all()
        assert server.statistics().connections == 0
        assert server.buffered_bytes == 0


class Client(asyncio.Protocol):
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.answer = b""
        self.closed = False

    def data_received(self, data: bytes) -> None:
        self.answer += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True


TURNS = 8
"""One loop does everything: what is not there after so many of its turns is not coming."""


async def settled(client: Client) -> None:
    """Until the server has closed, or has nothing more to say."""
    before, still = -1, 0
    while still < TURNS and not client.closed:
        await asyncio.sleep(0.001)
        still = still + 1 if len(client.answer) == before else 0
        before = len(client.answer)


async def some_turns() -> None:
    """Let the loop do what it has to do."""
    for _ in range(TURNS):
        await asyncio.sleep(0.001)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no callback announces; the time for a test bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


async def talk(server: HttpServer, *pieces: bytes) -> bytes:
    """Send the pieces, each when the server has nothing more to say to those before, unless it has closed; returns all that it says."""
    transport, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", server.port)
    for piece in pieces:
        if not client.closed:
            transport.write(piece)
            await settled(client)
    transport.close()
    return client.answer


def run(test: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


def test_a_request_is_answered_and_the_connection_kept():
    async def main():
        async with serving() as server:
            answer = await talk(server, POST % (2, b"hi"), POST % (3, b"you"))
            assert answer.count(b"HTTP/1.1 200 OK") == 2
            assert answer.endswith(b"POST /echo you")

    run(main)


def test_requests_sent_ahead_are_answered_in_order():
    async def main():
        async with serving() as server:
            answer = await talk(server, b"".join(POST % (1, b"%d" % i) for i in range(10)))
            assert [answer.index(b"/echo %d" % i) for i in range(10)] == sorted(
                answer.index(b"/echo %d" % i) for i in range(10)
            )

    run(main)


def test_more_requests_ahead_than_allowed_end_the_connection_after_those_allowed():
    async def main():
        def later(exchange: Exchange) -> None:
            asyncio.get_running_loop().call_soon(echo, exchange)

        async with serving(later, pipelined_requests=4) as server:
            answer = await talk(server, b"".join(POST % (1, b"x") for _ in range(50)))
            assert 1 <= answer.count(b"200 OK") <= 5

    run(main)


def test_a_body_in_chunks_arrives_whole_and_trailers_are_dropped():
    async def main():
        seen = []

        def handle(exchange: Exchange) -> None:
            seen.append((exchange.body, exchange.header(b"x-late")))
            echo(exchange)

        async with serving(handle) as server:
            head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
            await talk(server, head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\nx-late: 1\r\n\r\n")
            assert seen == [(b"abcde", None)]

    run(main)


def test_expect_continue_is_answered_before_the_body_comes():
    async def main():
        async with serving() as server:
            head = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
            answer = await talk(server, head, b"ok")
            assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")

    run(main)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: " + b"0" * 5000 + b"1\r\n\r\nx", 413),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1e3\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET http:/x HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET nonsense:x HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nexpect: miracles\r\n\r\n", 417),
        (b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 501),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 15_000 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n", 413),
    ],
)
def test_what_is_not_one_clear_request_is_refused_and_closed(request_bytes: bytes, status: int):
    async def main():
        handled = []
        async with serving(handled.append) as server:
            answer = await talk(server, request_bytes)
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
            assert b"connection: close" in answer
            assert answer.count(b"HTTP/1.1 ") == 1
            assert handled == []

    run(main)


def test_a_chunked_body_beyond_the_limit_is_refused():
    async def main():
        async with serving(body_bytes=1000) as server:
            head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
            answer = await talk(server, head + (b"200\r\n" + b"x" * 512 + b"\r\n") * 4)
            assert answer.startswith(b"HTTP/1.1 413 ")

    run(main)


def test_bodies_of_all_clients_together_are_bounded():
    async def main():
        async with serving(body_bytes=10_000, buffered_bytes=5_000) as server:
            answer = await talk(server, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000\r\n\r\n" + b"x" * 8000)
            assert answer.startswith(b"HTTP/1.1 503 ")

    run(main)


def test_a_header_that_never_ends_is_refused():
    async def main():
        async with serving() as server:
            answer = await talk(server, b"GET / HTTP/1.1\r\nhost: a\r\nx: ", *[b"y" * 30_000] * 4)
            assert answer.startswith(b"HTTP/1.1 431 ")

    run(main)


def test_a_trailer_that_never_ends_is_refused():
    async def main():
        async with serving() as server:
            head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx: "
            answer = await talk(server, head, *[b"y" * 30_000] * 4)
            assert answer.startswith(b"HTTP/1.1 431 ")

    run(main)


def test_a_body_in_tiny_chunks_weighs_no_more_than_its_bytes():
    async def main():
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + b"2\r\nxy\r\n" * 50_000)
            while server.buffered_bytes < 100_000:
                await asyncio.sleep(0.01)
            (connection,) = server._connections
            assert sys.getsizeof(connection._body) < 130_000
            writer.write(b"0\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(len("POST / ") + 100_000) == b"POST / " + b"xy" * 50_000
            writer.close()

    run(main)


def test_what_comes_behind_a_last_request_is_not_answered():
    async def main():
        async with serving() as server:
            last = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
            answer = await talk(server, last + b"\x00garbage")
            assert answer.count(b"HTTP/1.1 ") == 1
            assert answer.startswith(b"HTTP/1.1 200 ")

    run(main)


def test_a_slow_reader_of_a_last_answer_has_the_time_of_a_stalled_write():
    async def main():
        def handle(exchange: Exchange) -> None:
            exchange.keep_alive = False
            exchange.respond(200, b"x" * 30_000_000)

        async with serving(handle, stalled_write_s=30.0) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            writer.write(POST % (0, b""))
            await until(lambda: any(connection.write_paused for connection in server._connections))
            (connection,) = server._connections
            assert connection.deadline_s > server.now_s() + 20.0
            writer.transport.abort()

    run(main)


def test_a_reader_that_stands_still_is_dropped_however_little_is_left_to_send():
    async def main():
        async with serving(stalled_write_s=0.1) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            writer.write(POST % (0, b""))
            await reader.readuntil(b"\r\n\r\n")
            (connection,) = server._connections
            while not connection.transport.get_write_buffer_size():
                connection.transport.write(b"x" * 100_000)
                await asyncio.sleep(0.001)
            assert not connection.write_paused
            connection.deadline_s = 0.0
            while server.statistics().connections:
                await asyncio.sleep(0.01)
            writer.transport.abort()

    run(main)


def test_a_request_that_does_not_arrive_in_time_is_refused():
    async def main():
        async with serving(header_s=0.05) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nhost")
            assert (await reader.read(100)).startswith(b"HTTP/1.1 408 ")
            writer.close()

    run(main)


def test_an_idle_connection_is_closed():
    async def main():
        async with serving(keep_alive_s=0.05) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(POST % (0, b""))
            await reader.readuntil(b"\r\n\r\n")
            await reader.read()
            assert reader.at_eof()
            writer.close()

    run(main)


def test_an_old_client_gets_an_answer_that_ends_with_the_connection():
    async def main():
        def handle(exchange: Exchange) -> None:
            exchange.start(200, [])
            exchange.write(b"a")
            exchange.finish(b"b")

        async with serving(handle) as server:
            answer = await talk(server, b"GET / HTTP/1.0\r\n\r\n")
            assert answer.endswith(b"connection: close\r\n\r\nab")
            assert b"chunked" not in answer

    run(main)


def test_a_connection_too_many_is_closed_without_a_word():
    async def main():
        async with serving(connections=2) as server:
            loop = asyncio.get_running_loop()
            kept = [await loop.create_connection(Client, "127.0.0.1", server.port) for _ in range(2)]
            await until(lambda: server.statistics().connections == 2)
            _, refused = await loop.create_connection(Client, "127.0.0.1", server.port)
            await until(lambda: refused.closed)
            assert refused.answer == b""
            assert server.statistics().connections == 2
            kept[0][0].close()
            await until(lambda: server.statistics().connections == 1)
            assert (await talk(server, POST % (0, b""))).startswith(b"HTTP/1.1 200 ")

    run(main)


def test_an_address_that_is_taken_is_the_operators_to_change():
    async def main():
        async with serving() as server:
            with pytest.raises(OperatorError, match=f"cannot listen on 127.0.0.1:{server.port}: .*choose another"):
                await serve(echo, "127.0.0.1", server.port, Limits())

    run(main)


def test_head_gets_headers_only_of_a_stream_too():
    async def main():
        def handle(exchange: Exchange) -> None:
            exchange.start(200, [(b"x-own", b"1")])
            exchange.write(b"a")
            exchange.finish(b"b")

        async with serving(handle) as server:
            answer = await talk(server, b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert answer == b"HTTP/1.1 200 OK\r\nx-own: 1\r\n\r\n"

    run(main)


def test_head_gets_headers_only():
    async def main():
        async with serving() as server:
            answer = await talk(server, b"HEAD /x HTTP/1.1\r\nhost: a\r\n\r\n")
            assert b"content-length: 8\r\n" in answer
            assert answer.endswith(b"\r\n\r\n")

    run(main)


def test_an_absolute_target_is_taken_for_its_path():
    async def main():
        async with serving() as server:
            answer = await talk(server, b"GET http://h/p?q=1 HTTP/1.1\r\nhost: h\r\n\r\n")
            assert answer.endswith(b"GET /p ")

    run(main)


def test_the_handler_hears_of_a_client_that_leaves():
    async def main():
        come, left = asyncio.Event(), asyncio.Event()

        def handle(exchange: Exchange) -> None:
            exchange.on_close = left.set
            come.set()

        async with serving(handle) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(POST % (0, b""))
            await come.wait()
            assert not left.is_set()
            writer.transport.abort()
            await left.wait()

    run(main)


def test_a_client_that_does_not_read_stops_the_writer_and_starts_it_again():
    async def main():
        resumed = asyncio.Event()
        exchanges = []

        def handle(exchange: Exchange) -> None:
            exchanges.append(exchange)
            exchange.on_writable = resumed.set
            exchange.start(200, [])
            while exchange.write(b"x" * 65_536):
                pass

        async with serving(handle) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            writer.write(POST % (0, b""))
            await until(lambda: exchanges)
            await some_turns()
            assert not resumed.is_set()
            while not resumed.is_set():
                await reader.read(65_536)
            exchanges[0].finish()
            writer.close()

    run(main)


def test_draining_lets_an_answer_finish_and_takes_no_new_connection():
    async def main():
        exchanges = []
        async with serving(exchanges.append) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(POST % (0, b""))
            await until(lambda: exchanges)
            loop = asyncio.get_running_loop()
            draining = asyncio.ensure_future(server.drain(loop.time() + 15))
            await some_turns()
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", server.port)
            exchanges[0].respond(200, b"done")
            assert (await reader.read()).endswith(b"done")
            writer.close()
            assert await draining

    run(main)
