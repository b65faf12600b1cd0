"""How soon does a gateway that is full say 429?

Real HTTP: the gateway in a process of its own, before one simulated engine all of whose places are taken by endless streams, with one
request waiting for a place and no room in the queue. So every further request is refused, while the streams go on. Requests of 2.5 kB come
at random times, whatever becomes of those before them; the time is from writing one to having the whole answer, as the client sees it,
which runs at a lower priority than the gateway.

    python -m benchmarks.refusals
"""

import asyncio
import gc
import json
import os
import tempfile
import time
from asyncio import StreamReader, StreamWriter
from pathlib import Path
from random import Random

import uvloop
from msgspec import Struct

from beaconry.workload.distribution import quantile
from benchmarks import report
from benchmarks.children import children

PLACES = (1, 64)
"""Streams that go on meanwhile, at 20 tokens a second each."""
REQUESTS = 10_000
PER_S = 250.0
TARGET_MS = 10.0
"""For the 99th percentile."""
NICER = 5
"""How much lower the client's priority is."""


class Figures(Struct, frozen=True, kw_only=True):
    """One run, in milliseconds."""

    streams: int
    refused: int
    chunks_per_s: float
    """Of the streams, as they came here meanwhile."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    lag_p99_ms: float
    """How late requests were sent: the client's own doing."""


def message(content: str, **fields: object) -> bytes:
    """A chat completion on the wire."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], "stream": True, **fields})
    return f"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


class Streams:
    """Endless ones, read as they come."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.chunks = 0

    async def run(self, begun: asyncio.Event) -> None:
        """One of them, until cancelled; `begun` is set when something comes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(message("go on", max_tokens=100_000, ignore_eos=True))
            while data := await reader.read(65_536):
                self.chunks += data.count(b"data: ")
                begun.set()
        finally:
            writer.close()


class Asking:
    """Requests that are refused, each on an idle connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[StreamReader, StreamWriter]] = []
        self._payload = message("word " * 500)
        self.took_ms: list[float] = []
        self.lags_ms: list[float] = []

    async def run(self, count: int, rng: Random) -> None:
        """All of them, at random times."""
        due_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                due_s += rng.expovariate(PER_S)
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                self.lags_ms.append(1e3 * (time.perf_counter() - due_s))
                group.create_task(self._one())

    async def _one(self) -> None:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        began = time.perf_counter()
        writer.write(self._payload)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 429"):
            raise SystemExit(f"not refused: {head[:100]!r}")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
        self.took_ms.append(1e3 * (time.perf_counter() - began))
        self._idle.append((reader, writer))

    def close(self) -> None:
        """Drop the connections."""
        for _, writer in self._idle:
            writer.close()


async def against(port: int, places: int, count: int) -> Figures:
    """Fill the gateway on `port`, then be refused."""
    streams, asking, tasks = Streams(port), Asking(port), []
    try:
        async with asyncio.timeout(60.0):
            for _ in range(places):  # one after the other: what comes while one has no first byte is refused
                begun = asyncio.Event()
                tasks.append(asyncio.create_task(streams.run(begun)))
                await begun.wait()
        tasks.append(asyncio.create_task(streams.run(asyncio.Event())))  # it waits for a place
        await asyncio.sleep(0.5)
        chunks, began = streams.chunks, time.perf_counter()
        await asking.run(count, Random(1))
        chunks_per_s = (streams.chunks - chunks) / (time.perf_counter() - began)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        asking.close()
    took = sorted(asking.took_ms)
    return Figures(
        streams=places,
        refused=len(took),
        chunks_per_s=chunks_per_s,
        p50_ms=quantile(took, 0.5),
        p99_ms=quantile(took, 0.99),
        p999_ms=quantile(took, 0.999),
        lag_p99_ms=quantile(sorted(asking.lags_ms), 0.99),
    )


def engine(places: int) -> list[str]:
    """An engine that takes so many at a time."""
    fixed = ["-m", "beaconry", "engine", "--port", "0", "--model", "m", "--step-time", "fixed_s=0.05"]
    return [*fixed, "--max-num-seqs", str(places), "--blocks", str(places * 10_000)]


def gateway(engine_port: int, folder: Path) -> list[str]:
    """A gateway that holds nothing back: what the engine cannot use is refused."""
    config = {
        "listen": {"port": 0},
        "flow": {"queuedRequests": 0, "engineWaitS": 0.01},
        "endpoints": [{"name": "e", "host": "127.0.0.1", "port": engine_port, "model": "m"}],
    }
    file = folder / f"{engine_port}.yaml"
    file.write_text(json.dumps(config))
    return ["-m", "beaconry", "serve", "--config", str(file)]


def main() -> None:
    args = report.options(__doc__.splitlines()[0]).parse_args()
    count = 300 if args.smoke else REQUESTS
    with (
        tempfile.TemporaryDirectory() as folder,
        children(*map(engine, PLACES)) as engines,
        children(*(gateway(one.port, Path(folder)) for one in engines)) as gateways,
    ):
        os.nice(NICER)
        gc.disable()  # a collection here would look like the gateway's
        figures = [uvloop.run(against(one.port, places, count)) for one, places in zip(gateways, PLACES, strict=True)]
    columns = ("streams", "refused", "chunks/s", "p50 ms", "p99", "p99.9", "client's lag p99 ms")
    rows = [(f.streams, f.refused, f.chunks_per_s, f.p50_ms, f.p99_ms, f.p999_ms, f.lag_p99_ms) for f in figures]
    report.table(f"429 at {PER_S:g}/s, target {TARGET_MS:g} ms at p99", columns, rows)
    report.save(args.json, figures)


if __name__ == "__main__":
    main()
