"""Do requests wait longer while the gateway takes in the engines' KV events?

The gateway as `beaconry serve` runs it, on one core; on another one the client (this process), engines that answer at once, and a process
that publishes KV events for all of them over ZeroMQ (`benchmarks.kv_publisher`: 100,000 block operations a second). Requests come open
loop, with token ids that some engines have cached, so each is looked up in the exact index. Four cases take turns: straight to the engines
or through the gateway, with events or without. What the gateway adds is the difference of the two ways in the same case, because the
publisher disturbs the client as well.

    python -m benchmarks.kv_ingest [--smoke] [--json FILE] [--rate OPERATIONS] [--requests PER_SECOND]
"""

import asyncio
import gc
import os
import re
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from random import Random
from urllib.request import urlopen

import uvloop
from msgspec import Struct

from beaconry.io.children.supervisor import free_ports
from beaconry.workload.distribution import quantile
from benchmarks.children import Child, children
from benchmarks.data_plane import Meter
from benchmarks.kv_publisher import prompt_of
from benchmarks.raw_client import Client
from benchmarks.report import median, options, save, table

SECONDS, SMOKE_SECONDS = 1.5, 0.5
"""Short, and more repeats: on a shared machine a stall of tens of milliseconds spoils one of them, and not the median."""
PROMPT_TOKENS = 512
SETTLE_S = 0.3
_STATE = re.compile(r'^beaconry_endpoint_kv_events_state\{.*state="(\w+)"\} 1\.0', re.MULTILINE)


class Case(Struct, frozen=True, kw_only=True):
    """One of the four cases, once."""

    way: str
    events: bool
    repeat: int
    p50_ms: float
    p99_ms: float
    core_share: float | None
    """Of one core, used by the gateway; None of the direct way."""


def payload() -> bytes:
    """A completion whose prompt is the beginning of what the first engine has prefilled."""
    ids = ",".join(map(str, prompt_of(0, 0)[:PROMPT_TOKENS]))
    body = b'{"model":"m","max_tokens":16,"prompt":[%b]}' % ids.encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def configuration(ports: Sequence[int], event_ports: Sequence[int]) -> str:
    """One endpoint per publisher."""
    blocks = "{blockTokens: 16, algorithm: sha256, seed: vllm-none-hash}"
    lines = ["endpoints:"]
    for i, (port, event_port) in enumerate(zip(ports, event_ports, strict=True)):
        address = f"{{endpoint: 'tcp://127.0.0.1:{event_port}'}}"
        host = f"host: 127.0.0.1, port: {port}, model: m"
        lines.append(f"- {{name: e{i}, {host}, kvEvents: {address}, kvBlocks: {blocks}}}")
    return "\n".join(lines) + "\n"


async def one(ports: Sequence[int], args: Namespace, seed: int, meter: Meter) -> tuple[float, float, float | None]:
    """p50 and p99 in ms of one open loop, and the gateway's share of its core."""
    client = Client(ports, meter.start)
    seconds = SMOKE_SECONDS if args.smoke else SECONDS
    await client.connect(8)
    await client.send_at_rate(payload(), args.requests, 0.2 * seconds, Random(seed))
    client.reset()
    await client.send_at_rate(payload(), args.requests, seconds, Random(seed))
    elapsed_s, used_s = client.now_s() - client.begun_s, meter.used_s()
    await asyncio.sleep(0.1)
    latencies = sorted(client.latencies_s)
    client.close()
    share = None if used_s is None else used_s / elapsed_s
    return 1e3 * quantile(latencies, 0.5), 1e3 * quantile(latencies, 0.99), share


async def measure(args: Namespace, gateway: Child, engine_ports: Sequence[int], publisher: Child) -> list[Case]:
    """All cases in turn, the order of the ways turned round each time."""
    gc.freeze()
    ways: dict[str, tuple[Sequence[int], int | None]] = {
        "direct": (engine_ports, None),
        "gateway": ([gateway.port], gateway.pid),
    }
    found: list[Case] = []
    for repeat in range(1 if args.smoke else args.repeats):
        for events in (False, True) if repeat % 2 else (True, False):
            if events:
                publisher.send(signal.SIGUSR1)
            await asyncio.sleep(SETTLE_S)
            for way in sorted(ways, reverse=bool(repeat % 2)):
                ports, pid = ways[way]
                p50, p99, share = await one(ports, args, repeat, Meter(pid))
                found.append(Case(way=way, events=events, repeat=repeat, p50_ms=p50, p99_ms=p99, core_share=share))
            if events:
                publisher.send(signal.SIGUSR1)
    return found


def states(port: int) -> list[str]:
    """How well the gateway knows each engine's cache."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        return _STATE.findall(page.read().decode())


def added(cases: list[Case], field: str, *, events: bool) -> list[float]:
    """What the gateway adds, by repeat."""
    of = {(case.way, case.repeat): getattr(case, field) for case in cases if case.events is events}
    return [of["gateway", repeat] - of["direct", repeat] for way, repeat in of if way == "direct"]


def figures(cases: list[Case]) -> dict[str, float | None]:
    """Medians over the repeats."""
    found: dict[str, float | None] = {}
    for name, events in (("without", False), ("with", True)):
        for field in ("p50_ms", "p99_ms"):
            found[f"added_{field}_{name}_events"] = median(added(cases, field, events=events))
        shares = (case.core_share for case in cases if case.events is events and case.core_share is not None)
        found[f"core_share_{name}_events"] = median(shares)
    for field in ("p50_ms", "p99_ms"):
        before, after = found[f"added_{field}_without_events"], found[f"added_{field}_with_events"]
        found[f"added_{field}_growth"] = after / before - 1 if before and after else None
    return found


def show(cases: list[Case], found: dict[str, float | None], operations_per_s: float) -> None:
    rows = [
        (way, "yes" if events else "no", *(_spread([getattr(c, f) for c in mine]) for f in ("p50_ms", "p99_ms")))
        for way in ("direct", "gateway")
        for events in (False, True)
        if (mine := [c for c in cases if c.way == way and c.events is events])
    ]
    table("Latency: median (least-most) of the repeats", ("way", "events", "p50 ms", "p99 ms"), rows)
    table(f"At {operations_per_s:,.0f} block operations a second", ("figure", "median"), found.items())


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--rate", type=float, default=100_000, help="block operations a second")
    parser.add_argument("--requests", type=float, default=300, help="a second")
    parser.add_argument("--sources", type=int, default=64, help="publishers: each is an endpoint")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    if args.smoke:
        args.sources = 8
    cpus = sorted(os.sched_getaffinity(0))
    here, there = (cpus[0], cpus[1]) if len(cpus) > 1 else (None, None)
    if there is not None:
        os.sched_setaffinity(0, {there})
    ports = free_ports(2 * args.sources, "127.0.0.1", Random())
    engine_ports, event_ports = ports[: args.sources], ports[args.sources :]
    with tempfile.TemporaryDirectory() as folder:
        tally = Path(folder, "tally")
        answer = ["-m", "benchmarks.instant_engine", *map(str, engine_ports)]
        publish = ["-m", "benchmarks.kv_publisher", "--ports", ",".join(map(str, event_ports))]
        publish += ["--rate", str(args.rate), "--tally", str(tally)]
        with children(answer, publish, cpu=there) as (_, publisher):
            config = Path(folder, "gateway.yaml")
            config.write_text(configuration(engine_ports, event_ports))
            serve = ["-m", "beaconry", "serve", "--config", str(config), "--port", "0"]
            with children(serve, cpu=here) as (gateway,), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(asyncio.sleep(1.0))  # until it hears all publishers
                cases = runner.run(measure(args, gateway, engine_ports, publisher))
                runner.run(asyncio.sleep(0.5))  # until the publisher has counted
                known = states(gateway.port)
        told, spoken_s = map(float, tally.read_text().split())
    found = figures(cases)
    show(cases, found, told / spoken_s)
    exact = known.count("exact")
    print(f"\n{exact} of {args.sources} engines' caches known exactly at the end: no message was lost there")
    save(args.json, {"figures": found, "operations_per_s": told / spoken_s, "exact": exact, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
