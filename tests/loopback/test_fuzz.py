"""Ten thousand malformed requests: each is refused or its connection closed, nothing breaks, nothing is left behind.

The engine behind the gateway is stricter than any real one: it takes one request at a time, framed by Content-Length alone, with
a body of valid JSON; a byte more or less on its connection is a smuggled request. To see one case again:
`python -c "from tests.loopback.malformed import case; print(case(SEED, INDEX))"`.
"""

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

import psutil
import pytest

from beaconry.apps.assemble import Gateway
from beaconry.config.gateway import Deadlines, EndpointConfig, GatewayConfig, Health, Listen
from beaconry.io.relay import Relay
from beaconry.router.facts import Fact
from tests.loopback.fake_engine import DONE, SSE_HEAD, chunk, event, run, whole
from tests.loopback.malformed import END, case

SEED = 20_260
CASES = 12_000
BATCH = 200
WARM_BATCHES = 5
GROWTH_BYTES = 96 * 1024 * 1024
HEAD = re.compile(rb"POST (/v1/[!-~]*) HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9a-z-]+: [^\r\n\0]*\r\n)+)\r\n")
"""What may reach an engine: names in lower case, no other line ends, no NUL."""
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n")
EDITED = frozenset({"stream_options", "kv_transfer_params", "disaggregated_params", "vllm_xargs"})
"""What the gateway may change in a body."""


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def document_of(body: bytes) -> dict[str, object]:
    """A body as an engine reads it, numbers as text. ValueError if it is not JSON in UTF-8."""
    return json.loads(body.decode("utf-8"), parse_int=str, parse_float=str, parse_constant=_no_constant)


def unedited(target: bytes, body: bytes) -> tuple[bytes, str]:
    """A request without what the gateway may change, comparable."""
    kept = {key: value for key, value in document_of(body).items() if key not in EDITED}
    return target, json.dumps(kept, sort_keys=True)


class Record:
    """What came through a gateway, on all connections of a run."""

    def __init__(self) -> None:
        self.relays: list[Relay] = []
        """What the gateway took for a request."""
        self.requests: list[tuple[bytes, bytes]] = []
        """Target and body of what the engine took for one."""
        self.faults: list[object] = []
        """What must not be."""

    def sent(self) -> Counter[tuple[bytes, str]]:
        """What the gateway means to have sent."""
        exchanges = [relay.exchange for relay in self.relays if relay.placement is not None]
        return Counter(unedited(e.target, e.body) for e in exchanges)

    def arrived(self) -> Counter[tuple[bytes, str]]:
        """What the engine has read."""
        return Counter(unedited(*request) for request in self.requests)


class StrictEngine(asyncio.Protocol):
    """One connection of the recording engine."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.buffer.startswith(b"GET ") and self.buffer.endswith(END):  # the monitor's
            self.buffer = b""
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        elif END in self.buffer:
            self._read()

    def _read(self) -> None:
        head = HEAD.match(self.buffer)
        names = re.findall(rb"^([^:]+):", head[2], re.MULTILINE) if head else []
        if names.count(b"content-length") != 1 or names.count(b"host") != 1 or b"transfer-encoding" in names:
            self.record.faults.append(("head", self.buffer))
            self.transport.abort()
            return
        length = int(re.search(rb"^content-length: (\d+)\r$", head[2], re.MULTILINE)[1])
        body = self.buffer[head.end() :]
        if len(body) < length:
            return
        if len(body) > length:
            self.record.faults.append(("bytes behind the request", self.buffer))
        self.buffer = b""
        self.record.requests.append((head[1], body))
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        document: dict[str, object] = {}
        try:
            document = document_of(body)
        except ValueError as error:
            self.record.faults.append((f"not JSON: {error}", body))
        if {"kv_transfer_params", "disaggregated_params"} & document.keys():
            self.record.faults.append(("a reserved key", body))
        if document.get("stream") is True:
            self.transport.write(SSE_HEAD + chunk(event("a")) + chunk(DONE) + b"0\r\n\r\n")
        else:
            self.transport.write(whole())


class Client(asyncio.Protocol):
    """Sends a payload, some in two pieces, and keeps what comes."""

    def __init__(self, index: int, payload: bytes) -> None:
        self.index = index
        self.payload = payload
        self.received = b""
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        split = Random(self.index).randrange(len(self.payload) + 1) if self.index % 3 == 0 else len(self.payload)
        transport.write(self.payload[:split])
        asyncio.get_running_loop().call_soon(transport.write, self.payload[split:])

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True


def statuses(data: bytes) -> list[int]:
    """The status of each answer in a run of complete ones. ValueError if it is anything else."""
    found = []
    while data:
        line = STATUS.match(data)
        if line is None or END not in data:
            raise ValueError(f"not an answer: {data[:200]!r}")
        head, _, data = data.partition(END)
        found.append(int(line[1]))
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        if found[-1] == 100 or data.startswith(b"HTTP/1.1 "):
            continue  # no body, or the answer to HEAD
        if length is not None:
            if 0 < len(data) < int(length[1]):
                raise ValueError("an answer cut short")
            data = data[int(length[1]) :]
        elif b"\r\ntransfer-encoding: chunked" in head:
            _, end, data = data.partition(b"0\r\n\r\n")
            if not end:
                raise ValueError("an answer without end")
        else:
            data = b""
    return found


async def converse(running: Gateway, payloads: list[tuple[int, bytes]]) -> list[Client]:
    """Send each payload on its own connection until all is said; then leave, one way or the other."""
    loop = asyncio.get_running_loop()
    clients = [Client(index, payload) for index, payload in payloads]
    await asyncio.gather(*(loop.create_connection(lambda c=c: c, "127.0.0.1", running.port) for c in clients))
    before, still = -1, 0
    while still < 8:  # one loop does everything: what is not there after some of its turns is not coming
        await asyncio.sleep(0.001)
        now = sum(len(c.received) + c.closed for c in clients)
        still = still + 1 if now == before and not running.statistics().in_flight else 0
        before = now
    for client in clients:
        if client.index % 2:
            client.transport.abort()
        else:
            client.transport.close()
    while running.server_statistics().connections:
        await asyncio.sleep(0.001)
    return clients


def record_of(talk: Callable[[Gateway, Record], Awaitable[None]]) -> Record:
    """Let `talk` meet a gateway before a strict engine. Whatever fails inside, or stays behind, is a fault."""
    record = Record()

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, trouble: record.faults.append(trouble))
        engine = await loop.create_server(lambda: StrictEngine(record), "127.0.0.1", 0)
        endpoint = EndpointConfig(name="e", host="127.0.0.1", port=engine.sockets[0].getsockname()[1], model="m")
        deadlines = Deadlines(first_byte_s=10, total_s=10)
        config = GatewayConfig(
            listen=Listen(port=0), endpoints=(endpoint,), health=Health(interval_s=1000), deadlines=deadlines
        )
        running = Gateway(config)
        await running.start()
        admit = running._driver.admit

        def recording(relay: Relay, request_id: str, fact: Fact) -> None:
            record.relays.append(relay)
            admit(relay, request_id, fact)

        running._driver.admit = recording
        try:
            await talk(running, record)
            running._router.check()
            assert running.statistics().in_flight == running.statistics().retries == 0
            assert running.server_statistics().buffered_bytes == 0
            assert running._driver._relays == {}
        finally:
            await running.stop(1.0)
            engine.close()

    run(main)
    return record


def test_ten_thousand_malformed_requests_break_nothing(caplog: pytest.LogCaptureFixture):
    counts: Counter[int] = Counter()
    process = psutil.Process()

    async def talk(running: Gateway, record: Record) -> None:
        files = bytes_before = 0
        for number, start in enumerate(range(0, CASES, BATCH)):
            clients = await converse(running, [(i, case(SEED, i)) for i in range(start, start + BATCH)])
            assert record.faults == [], f"cases from {start}: {record.faults[0]!r:.2000}"
            for client in clients:
                where = f"case({SEED}, {client.index})"
                try:
                    found = statuses(client.received)
                except ValueError as error:
                    raise AssertionError(f"{where}: {error}") from None
                assert all(s in (100, 200, 501) or 400 <= s < 500 for s in found), (where, found)
                counts.update(found)
            assert record.sent() == record.arrived(), f"cases from {start}"
            record.relays.clear()
            record.requests.clear()
            if number == WARM_BATCHES:
                files, bytes_before = process.num_fds(), process.memory_info().rss
        while process.num_fds() > files + running._driver.connections:  # a client's close takes a turn of the loop
            await asyncio.sleep(0.01)
        assert process.memory_info().rss - bytes_before < GROWTH_BYTES

    with caplog.at_level(logging.WARNING):
        record = record_of(talk)
    assert record.faults == []
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert counts[400] > CASES / 4, "the cases are not malformed"
    assert counts[200] > CASES / 20, "the cases are malformed beyond recognition"


INNER = b'{"model":"m"}'
CHUNKS = b"d\r\n" + INNER + b"\r\n0\r\n\r\n"
NEXT = b"POST /v1/next HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n" + INNER
SMUGGLING = [
    # framing headers, body, how many requests these bytes hold
    (b"content-length: 13\r\ntransfer-encoding: chunked", CHUNKS + NEXT, 0),
    (b"transfer-encoding: chunked\r\ncontent-length: 13", CHUNKS + NEXT, 0),
    (b"content-length: 13\r\ncontent-length: 13", INNER + NEXT, 0),
    (b"content-length: 13, 13", INNER + NEXT, 0),
    (b"content-length: +13", INNER + NEXT, 0),
    (b"content-length: 1_3", INNER + NEXT, 0),
    (b"content-length : 13", INNER + NEXT, 0),
    (b"content-length: 0000013", INNER + NEXT, 2),
    (b"connection: content-length\r\ncontent-length: 13", INNER + NEXT, 2),
    (b"content-length: 13", INNER + NEXT, 2),
    (b"content-length: %d" % len(NEXT), NEXT, 0),
    (b"x: y", NEXT, 1),
    (b"x: \x00\r\ncontent-length: 13", INNER + NEXT, 0),
    (b"transfer-encoding: xchunked", CHUNKS + NEXT, 0),
    (b"transfer-encoding:\tchunked", CHUNKS + NEXT, 2),
    (b"transfer-encoding: \x0bchunked", CHUNKS + NEXT, 0),
    (b'transfer-encoding: "chunked"', CHUNKS + NEXT, 0),
    (b"transfer-encoding:\r\n chunked", CHUNKS + NEXT, 0),
    (b"transfer-encoding: gzip, chunked", CHUNKS + NEXT, 0),
    (b"transfer-encoding: chunked\r\ntransfer-encoding: identity", CHUNKS + NEXT, 0),
    (b"x: y\ntransfer-encoding: chunked", CHUNKS + NEXT, 0),
    (b"x: y\rtransfer-encoding: chunked", CHUNKS + NEXT, 0),
    (b"transfer-encoding: chunked", b"d;a=b\r\n" + INNER + b"\r\n0;x\r\n\r\n" + NEXT, 2),
    (b"transfer-encoding: chunked", b"d;a\n" + INNER + b"\r\n0\r\n\r\n" + NEXT, 0),
    (b"transfer-encoding: chunked", b"d\n" + INNER + b"\r\n0\r\n\r\n" + NEXT, 0),
    (b"transfer-encoding: chunked", b"d \r\n" + INNER + b"\r\n0\r\n\r\n" + NEXT, 0),
    (b"transfer-encoding: chunked", b"d\r\n" + INNER + b"0\r\n\r\n" + NEXT, 0),
    (b"transfer-encoding: chunked", b"d\r\n" + INNER + b"XX0\r\n\r\n" + NEXT, 0),
    (b"transfer-encoding: chunked", b"1000000000000000d\r\n" + INNER + b"\r\n0\r\n\r\n" + NEXT, 0),
]


@pytest.mark.parametrize(("framing", "body", "held"), SMUGGLING)
def test_the_engine_sees_the_requests_that_the_bytes_hold_and_no_other(framing: bytes, body: bytes, held: int):
    async def talk(running: Gateway, record: Record) -> None:
        head = b"POST /v1/first HTTP/1.1\r\nhost: x\r\n" + framing
        await converse(running, [(index, head + END + body) for index in range(4)])
        assert record.arrived() == record.sent()
        targets = [b"/v1/first", b"/v1/next"][2 - held :]
        assert Counter(target for target, _ in record.requests) == dict.fromkeys(targets, 4)

    assert record_of(talk).faults == []
