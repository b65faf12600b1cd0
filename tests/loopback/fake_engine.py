"""A scripted engine on a raw socket, so that it can be slow, broken or a liar; and a gateway in front of some of them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import uvloop

from beaconry.apps.assemble import Gateway
from beaconry.config.gateway import EndpointConfig, GatewayConfig, Health, Listen, Scrape
from beaconry.values.endpoint import Role, SchedulingPolicy

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 0}}


def whole(text: str = "hi", status: int = 200) -> bytes:
    """A complete JSON answer."""
    body = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": USAGE}).encode()
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str) -> bytes:
    """One content event."""
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


USAGE_EVENT = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
DONE = b"data: [DONE]\n\n"


@dataclass
class Got:
    """One request as the engine received it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Script = Callable[[Got, asyncio.StreamWriter], Awaitable[None]]


async def answer_whole(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.write(whole())


async def answer_stream(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE_HEAD)
    for text in ("a", "b"):
        writer.write(chunk(event(text)))
    if json.loads(got.body).get("stream_options", {}).get("include_usage"):
        writer.write(chunk(USAGE_EVENT))
    writer.write(chunk(DONE) + b"0\r\n\r\n")


@dataclass
class FakeEngine:
    """Answers each POST with `script`; /health and /metrics are always well."""

    script: Script = answer_whole
    requests: list[Got] = field(default_factory=list)
    port: int = 0
    open_connections: int = 0
    healthy: bool = True
    role: Role = Role.BOTH
    scheduling_policy: SchedulingPolicy = SchedulingPolicy.FCFS

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                method, target, _ = first.split(" ")
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if method == "GET":
                    status = 200 if self.healthy else 500
                    writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
                else:
                    got = Got(method, target, headers, body)
                    self.requests.append(got)
                    await self.script(got, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()


@contextlib.asynccontextmanager
async def gateway(*engines: FakeEngine, **sections: object) -> AsyncIterator[Gateway]:
    """A gateway before these engines; checks afterwards that nothing is left in flight."""
    async with contextlib.AsyncExitStack() as stack:
        for engine in engines:
            server = await asyncio.start_server(engine.serve, "127.0.0.1", engine.port)
            stack.callback(server.close)  # whatever happens: uvloop waits for ever for a server that is left open
            engine.port = server.sockets[0].getsockname()[1]
        endpoints = tuple(
            EndpointConfig(
                name=f"e{i}",
                host="127.0.0.1",
                port=e.port,
                model="m",
                role=e.role,
                scheduling_policy=e.scheduling_policy,
            )
            for i, e in enumerate(engines)
        )
        given = {
            "health": Health(interval_s=0.1, timeout_s=2.0),
            "scrape": Scrape(interval_s=0.2),
            "policy": "round-robin",
            **sections,
        }
        running = Gateway(GatewayConfig(listen=Listen(port=0), endpoints=endpoints, **given))
        await running.start()
        try:
            yield running
            running._router.check()
        finally:
            await running.stop(1.0)
        statistics = running._router.statistics(0.0)
        assert statistics.in_flight == 0
        assert all(
            e.prefilling == e.decoding == e.prefill_tokens == e.context_tokens == 0 for e in statistics.endpoints
        )


@dataclass
class Reply:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool = True

    def json(self) -> dict:
        return json.loads(self.body)


async def send(port: int, payload: bytes) -> Reply:
    """Send raw bytes on a fresh connection, read one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(payload)
        return await read_reply(reader)
    finally:
        writer.transport.abort()


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    reply = Reply(int(first.split(" ")[1]), headers, b"")
    try:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                reply.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            reply.body = await reader.readexactly(int(headers["content-length"]))
    except (asyncio.IncompleteReadError, ValueError, ConnectionError):
        reply.complete = False
    return reply


def post(document: object, path: str = "/v1/chat/completions", headers: str = "") -> bytes:
    """A POST request with a JSON body."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def chat(**fields: object) -> dict[str, object]:
    """A chat body."""
    return {"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test coroutine on the production event loop, bounded."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]
