"""What does the gateway add, per request and per streamed chunk, in CPU and in latency?

The gateway as `beaconry serve` runs it, with its default policy, on one core; on another one the client (this process) and engines that
answer at once. The same load goes through the gateway and straight to the engines, in the same run.

    python -m benchmarks.data_plane [--smoke] [--json FILE] [--policy NAME]

- closed loop: 64 tiny requests in flight; most requests a second, CPU per 1,000 requests
- open loop: 200 tiny requests a second, Poisson; added latency
- paced streams: 40 streams, a chunk every 10 ms; CPU per million chunks, added time to first chunk
- unpaced streams: 32 streams as fast as they come; most chunks a second, CPU per million chunks
"""

import asyncio
import gc
import os
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import psutil
import uvloop
from msgspec import Struct

from benchmarks.children import Child, children
from benchmarks.raw_client import Client
from benchmarks.report import median, options, save, table

ENGINES = 4
SECONDS, SMOKE_SECONDS = 3.0, 0.6
WARM_SHARE = 0.2
RATE = 200.0
TOKENS = 400


class Figures(Struct, kw_only=True, omit_defaults=True):
    """One load, one way. None where a figure has no meaning."""

    requests_per_s: float | None = None
    chunks_per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    first_chunk_p50_ms: float | None = None
    cpu_s_per_1000_requests: float | None = None
    cpu_s_per_1m_chunks: float | None = None
    core_share: float | None = None
    """Of one core, used by the gateway."""


Loading = Callable[[Client, float, Random], Awaitable[None]]


def payload(*, stream: bool, tokens: int, pause_ms: int = 0) -> bytes:
    """A chat request as a client library sends it."""
    body = (
        b'{"model":"m","max_tokens":%d,"temperature":0.0,"stream":%b,"messages":[{"role":"user","content":"%b"}]}'
        % (
            tokens,
            b'true,"stream_options":{"include_usage":true}' if stream else b"false",
            b"one two three four five six seven",
        )
    )
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\naccept: */*\r\n"
        b"authorization: Bearer sk-0123456789abcdef0123456789abcdef\r\nx-pause-ms: %d\r\ncontent-length: %d\r\n\r\n"
    )
    return head % (pause_ms, len(body)) + body


async def closed_loop(client: Client, seconds: float, rng: Random) -> None:  # noqa: ARG001 -- a Loading
    await client.connect(64)
    await client.keep_busy(payload(stream=False, tokens=16))
    await _measured(client, seconds)


async def open_loop(client: Client, seconds: float, rng: Random) -> None:
    await client.connect(8)
    await client.send_at_rate(payload(stream=False, tokens=16), RATE, seconds * WARM_SHARE, rng)
    client.reset()
    await client.send_at_rate(payload(stream=False, tokens=16), RATE, seconds, rng)


async def paced_streams(client: Client, seconds: float, rng: Random) -> None:  # noqa: ARG001 -- a Loading
    await client.connect(40)
    await client.keep_busy(payload(stream=True, tokens=max(5, int(seconds * 10)), pause_ms=10), stagger_s=0.00025)
    await _measured(client, seconds)


async def unpaced_streams(client: Client, seconds: float, rng: Random) -> None:  # noqa: ARG001 -- a Loading
    await client.connect(32)
    await client.keep_busy(payload(stream=True, tokens=TOKENS))
    await _measured(client, seconds)


LOADS: dict[str, Loading] = {
    "closed loop": closed_loop,
    "open loop": open_loop,
    "paced streams": paced_streams,
    "unpaced streams": unpaced_streams,
}


async def _measured(client: Client, seconds: float) -> None:
    await asyncio.sleep(seconds * WARM_SHARE)
    client.reset()
    await asyncio.sleep(seconds)


class Meter:
    """CPU of a process, if there is one."""

    def __init__(self, pid: int | None) -> None:
        self._process = None if pid is None else psutil.Process(pid)
        self._before_s = 0.0

    def start(self) -> None:
        """Begin."""
        self._before_s = self._now_s()

    def used_s(self) -> float | None:
        """CPU seconds since `start`, user and system; None without a process."""
        return None if self._process is None else self._now_s() - self._before_s

    def _now_s(self) -> float:
        if self._process is None:
            return 0.0
        times = self._process.cpu_times()
        return times.user + times.system


async def run(load: Loading, ports: list[int], pid: int | None, args: Namespace, repeat: int) -> Figures:
    """One load through one door."""
    meter = Meter(pid)
    client = Client(ports, meter.start)
    await load(client, SMOKE_SECONDS if args.smoke else SECONDS, Random(repeat))
    elapsed_s, cpu_s = client.now_s() - client.begun_s, meter.used_s()
    requests, chunks = client.requests, client.chunks
    latencies_s, firsts_s = sorted(client.latencies_s), client.firsts_s
    client.close()
    await asyncio.sleep(0.1)
    streamed = chunks > 0
    figures = Figures(
        requests_per_s=None if streamed else requests / elapsed_s, chunks_per_s=chunks / elapsed_s if streamed else None
    )
    if not streamed:
        figures.p50_ms = 1e3 * statistics.median(latencies_s)
        figures.p99_ms = 1e3 * latencies_s[int(0.99 * len(latencies_s))]
    elif firsts_s:
        figures.first_chunk_p50_ms = 1e3 * statistics.median(firsts_s)
    if cpu_s is not None:
        figures.core_share = cpu_s / elapsed_s
        if streamed:
            figures.cpu_s_per_1m_chunks = 1e6 * cpu_s / chunks
        else:
            figures.cpu_s_per_1000_requests = 1e3 * cpu_s / requests
    return figures


async def measure(args: Namespace, gateway: Child, engines: list[Child]) -> dict[str, dict[str, list[Figures]]]:
    """All loads, both ways, as often as asked."""
    gc.freeze()
    direct = [engine.port for engine in engines]
    ways: dict[str, tuple[list[int], int | None]] = {"direct": (direct, None), "gateway": ([gateway.port], gateway.pid)}
    found: dict[str, dict[str, list[Figures]]] = {name: {way: [] for way in ways} for name in LOADS}
    for repeat in range(1 if args.smoke else 3):
        for name, load in LOADS.items():
            for way, (ports, pid) in ways.items():
                found[name][way].append(await run(load, ports, pid, args, repeat))
    return found


def show(found: dict[str, dict[str, list[Figures]]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Print the medians, and what the gateway adds. Returns the medians."""
    medians = {
        name: {
            way: {f: median(v for one in runs if (v := getattr(one, f)) is not None) for f in Figures.__struct_fields__}
            for way, runs in ways.items()
        }
        for name, ways in found.items()
    }
    for name, ways in medians.items():
        direct, gateway = ways["direct"], ways["gateway"]
        rows = []
        for field, value in gateway.items():
            if value is not None:
                base = direct[field]
                added = value - base if base is not None and field.endswith("_ms") else None
                rows.append((field, base, value, added))
        table(name, ("", "direct", "gateway", "added"), rows)
    return medians


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--policy", default="expected-cost", help="the gateway's")
    args = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    here, there = (cpus[0], cpus[1]) if len(cpus) > 1 else (None, None)
    if there is not None:
        os.sched_setaffinity(0, {there})
    else:
        print("only one core: gateway, client and engines share it, so nothing here is a maximum")
    with (
        tempfile.TemporaryDirectory() as folder,
        children(*[["-m", "benchmarks.instant_engine"]] * ENGINES, cpu=there) as engines,
    ):
        config = Path(folder, "gateway.yaml")
        lines = [f"policy: {args.policy}", "endpoints:"]
        lines += [f"- {{name: e{i}, host: 127.0.0.1, port: {e.port}, model: m}}" for i, e in enumerate(engines)]
        config.write_text("\n".join(lines) + "\n")
        serve = ["-m", "beaconry", "serve", "--config", str(config), "--port", "0"]
        with children(serve, cpu=here) as (gateway,), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(measure(args, gateway, engines))
    medians = show(found)
    save(args.json, {"medians": medians, "runs": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
