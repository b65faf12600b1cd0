"""Under overload, what do routers with a queue or a limit of their own keep, beside Beaconry with and without flow control?

Real processes, HTTP and clocks: each router stands before four simulated engines of sixteen places, whose steps take so long that the
routers decide the outcome and not the machine. Open loop, three bands, three tenants, one of which sends half of everything. Good is a
request that is complete and had its first token within `GOOD_S` of its planned time. Routers that are not installed are skipped, by name.

    python -m benchmarks.overload_peers --peers FOLDER-OF-VENVS
    python -m benchmarks.overload_peers --routers Beaconry,haproxy --loads 150 --repeats 3
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import msgspec
import psutil
import uvloop
from msgspec import Struct, structs

from beaconry.io.load.client import LoadClient, LoadOptions
from beaconry.io.load.target import Target
from beaconry.workload.arrivals import poisson
from beaconry.workload.distribution import quantile
from beaconry.workload.plan import Plan
from beaconry.workload.prompts import PromptText
from beaconry.workload.sample import Sample
from beaconry.workload.synthetic import Bounds, Shape, conversations
from benchmarks import report
from benchmarks.children import children
from benchmarks.rival import (
    BANDS,
    BATCHED_TOKENS,
    BLOCKS,
    ENGINES,
    FULL_RATE,
    GOOD_S,
    KEYS,
    MODEL,
    OBJECTIVE,
    PLACES,
    TENANTS,
    Rival,
    Site,
)
from benchmarks.rival_routers import RIVALS

STEP_TIME = "fixed_s=0.1,prefill_tps=40000"
"""Ten tokens per second and reply, so that a machine of two cores is hardly busy."""
SHAPE = Shape(prompt_tokens=Bounds(low=50, high=400), output_tokens=Bounds(low=10, high=30))
PATIENCE_S = 10.0
"""When a client gives up waiting for the whole answer."""
LOADS = (70, 150)
READY_WITHIN_S = 90.0
LATE_MS = 50.0
"""A run whose client sent later than this (99th percentile) was starved by other work on the machine: it is done again."""


class Times(Struct, frozen=True, kw_only=True):
    """How long a run is."""

    warmup_s: float
    counted_s: float
    tries: int
    """How often a starved run is done at most."""


FULL = Times(warmup_s=8.0, counted_s=20.0, tries=3)
SMOKE = Times(warmup_s=2.0, counted_s=4.0, tries=1)


class Cell(Struct, frozen=True, kw_only=True):
    """One router under one load."""

    rival: Rival
    load: int
    seed: int
    tries: int = 1


class Run(Struct, frozen=True, kw_only=True):
    """One run in figures, over the requests that were planned while it counted."""

    router: str
    load: int
    seed: int
    offered_per_s: float
    good_per_s: float
    completed: int
    refused: int
    """Told so by a status of 4xx or 5xx."""
    gave_up: int
    """Clients that got no complete answer in `PATIENCE_S`, or a broken one."""
    statuses: dict[str, int]
    refused_p99_ms: float | None
    """How long the refused waited for their answer."""
    tokens_per_s: float
    """Output tokens of completed requests."""
    top_p50_ms: float | None
    top_p99_ms: float | None
    top_good: float
    """Share of the top band that was good."""
    jain: float | None
    """Jain's index of the tenants' good requests in the middle band: 1 is an equal share for all, which the backlogged can expect."""
    busy: float
    """Share of the machine's cores that was busy, with all that ran on it."""
    lag_p99_ms: float
    """How late the client sent."""


async def run(cell: Cell, engines: tuple[int, ...], peers: Path, times: Times) -> Run:
    """Start the router, load it, end it."""
    async with router(cell.rival, engines, peers) as port:
        idle, began_s = idle_s(), time.monotonic()
        by_class = await send(port, cell, times)
        busy = 1.0 - (idle_s() - idle) / ((time.monotonic() - began_s) * (os.cpu_count() or 1))
    return summarise(cell, by_class, times, busy)


@asynccontextmanager
async def router(rival: Rival, engines: tuple[int, ...], peers: Path) -> AsyncIterator[int]:
    """A router process that answers, on a free port."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = Site(port=free_port(), engines=engines, folder=folder, peers=peers)
        async with AsyncExitStack() as stack:
            for command in rival.beside(site):
                await stack.enter_async_context(running(command, folder / "said"))
            process = await stack.enter_async_context(running(rival.command(site), folder / "said"))
            if not await answers(site.port, process):
                raise SystemExit(f"{rival.name} did not start: {(folder / 'said').read_text()[-2000:]}")
            await asyncio.sleep(1.0)  # health checks of all engines
            yield site.port


@asynccontextmanager
async def running(command: Sequence[str], said: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is gone afterwards, and where it says what it says."""
    with said.open("ab") as file:
        process = await asyncio.create_subprocess_exec(*command, stdout=file, stderr=file)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 3.0)
            except TimeoutError:
                process.kill()
                await process.wait()


def free_port() -> int:
    """A port that nobody has, and its neighbour, below those that the system gives to connections."""
    for port in random.sample(range(20_000, 30_000, 2), 50):
        try:
            for each in (port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        return port
    raise SystemExit("no two neighbouring ports are free between 20000 and 30000")


async def answers(port: int, process: asyncio.subprocess.Process) -> bool:
    """Whether the router comes to answer a request before its time is over or it ends."""
    until_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until_s and process.returncode is None:
        if await asyncio.to_thread(_asks, port):
            return True
        await asyncio.sleep(0.1)
    return False


def _asks(port: int) -> bool:
    body = msgspec.json.encode({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]})
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS['quiet']}"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=5).close()
    except OSError:
        return False
    return True


async def send(port: int, cell: Cell, times: Times) -> dict[tuple[str, str], list[Sample]]:
    """All classes of requests at once, each an independent stream; samples by band and tenant."""
    clients = {}
    for number, (band, tenant) in enumerate((band, tenant) for band in BANDS for tenant in TENANTS):
        rng = Random(cell.seed * 1009 + number)
        rate = FULL_RATE * cell.load / 100 * BANDS[band][1] * TENANTS[tenant]
        plan = Plan(conversations(SHAPE, poisson(rate, rng), rng), until_s=times.warmup_s + times.counted_s)
        headers = (("authorization", f"Bearer {KEYS[tenant]}"), (OBJECTIVE, band), *cell.rival.hints(band))
        target = Target(host="127.0.0.1", port=port, model=MODEL, headers=headers)
        options = LoadOptions(timeout_s=PATIENCE_S)
        clients[band, tenant] = LoadClient(plan, PromptText(cell.seed * 31 + number), target, options)
    async with asyncio.TaskGroup() as group:
        tasks = {key: group.create_task(client.run()) for key, client in clients.items()}
    return {key: task.result() for key, task in tasks.items()}


def summarise(cell: Cell, by_class: dict[tuple[str, str], list[Sample]], times: Times, busy: float) -> Run:
    """The figures."""
    counted = {key: [s for s in samples if s.planned_s >= times.warmup_s] for key, samples in by_class.items()}
    samples = [s for each in counted.values() for s in each]
    top = next(iter(BANDS))
    middle = next(name for name, (priority, _) in BANDS.items() if priority == 0)
    top_samples = [s for (band, _), each in counted.items() if band == top for s in each]
    ttft = sorted(1e3 * s.ttft_s for s in top_samples if s.ttft_s is not None)
    refused = [s for s in samples if s.error is not None and s.error.startswith("status")]
    shares = [sum(map(is_good, counted[middle, tenant])) for tenant in TENANTS]
    squares = sum(share * share for share in shares)
    refused_ms = sorted(1e3 * s.e2e_s for s in refused)
    return Run(
        router=cell.rival.name,
        load=cell.load,
        seed=cell.seed,
        offered_per_s=len(samples) / times.counted_s,
        good_per_s=sum(map(is_good, samples)) / times.counted_s,
        completed=sum(s.error is None for s in samples),
        refused=len(refused),
        gave_up=sum(s.error is not None for s in samples) - len(refused),
        statuses={error: sum(s.error == error for s in samples) for error in {s.error for s in samples if s.error}},
        refused_p99_ms=quantile(refused_ms, 0.99) if refused else None,
        tokens_per_s=sum(s.output_tokens or 0 for s in samples if s.error is None) / times.counted_s,
        top_p50_ms=quantile(ttft, 0.5) if ttft else None,
        top_p99_ms=quantile(ttft, 0.99) if ttft else None,
        top_good=sum(map(is_good, top_samples)) / max(len(top_samples), 1),
        jain=sum(shares) ** 2 / (len(shares) * squares) if squares else None,
        busy=busy,
        lag_p99_ms=1e3 * quantile(sorted(s.lag_s for s in samples), 0.99),
    )


def is_good(sample: Sample) -> bool:
    """Complete, and begun in time."""
    return sample.error is None and sample.ttft_s is not None and sample.ttft_s <= GOOD_S


def idle_s() -> float:
    """What all cores have idled since the machine's start."""
    times = psutil.cpu_times()
    return float(times.idle + times.iowait)


async def run_all(cells: Sequence[Cell], lanes: int, peers: Path, times: Times) -> list[Run]:
    """All cells, `lanes` of them at a time, each lane with engines of its own."""
    engine = ["-m", "beaconry", "engine", "--port", "0", "--model", MODEL, "--step-time", STEP_TIME]
    engine += ["--max-num-seqs", str(PLACES), "--blocks", str(BLOCKS)]
    engine += ["--max-num-batched-tokens", str(BATCHED_TOKENS)]
    waiting, runs = deque(cells), []
    with children(*[engine] * (ENGINES * lanes)) as started:
        ports = [child.port for child in started]

        async def lane(engines: tuple[int, ...]) -> None:
            while waiting:
                cell = waiting.popleft()
                one = await run(cell, engines, peers, times)
                print(
                    f"{one.router}, {one.load} %, seed {one.seed}: {one.good_per_s:.1f} good/s, client late by {one.lag_p99_ms:.0f} ms",
                    file=sys.stderr,
                )
                if one.lag_p99_ms > LATE_MS and cell.tries < times.tries:
                    waiting.append(structs.replace(cell, tries=cell.tries + 1))
                else:
                    runs.append(one)

        async with asyncio.TaskGroup() as group:
            for i in range(lanes):
                group.create_task(lane(tuple(ports[i * ENGINES : (i + 1) * ENGINES])))
    return runs


def beside(measured: Sequence[Run], kept: Sequence[Run]) -> list[Run]:
    """What was measured, and what is kept of routers and loads that were not."""
    again = {(one.router, one.load) for one in measured}
    return [*measured, *(one for one in kept if (one.router, one.load) not in again)]


def spread(values: Sequence[float | None]) -> str:
    """Median and range."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = report.cell(report.median(known))
    return middle if len(known) == 1 else f"{middle} ({report.cell(min(known))}-{report.cell(max(known))})"


def show(runs: Sequence[Run]) -> None:
    """A table per load."""
    columns = (
        "router", "good/s", "top band p50 ms", "p99 ms", "top good", "completed", "refused", "their p99 ms", "gave up",
        "tokens/s", "Jain",
    )  # fmt: skip
    for load in sorted({one.load for one in runs}):
        rows = []
        for rival in RIVALS:
            mine = [one for one in runs if one.router == rival.name and one.load == load]
            if not mine:
                continue
            fields = (
                "good_per_s", "top_p50_ms", "top_p99_ms", "top_good", "completed", "refused", "refused_p99_ms", "gave_up",
                "tokens_per_s", "jain",
            )  # fmt: skip
            rows.append((rival.name, *(spread([getattr(one, field) for one in mine]) for field in fields)))
        here = [one for one in runs if one.load == load]
        title = f"{load} %: {spread([one.offered_per_s for one in here])} requests/s came"
        late = spread([one.lag_p99_ms for one in here])
        report.table(
            f"{title}; cores busy {spread([one.busy for one in here])}; client late by {late} ms", columns, rows
        )


def arguments() -> argparse.Namespace:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path("peers-env"), help="folder of the virtual environments")
    parser.add_argument("--routers", default="", help="beginnings of names, separated by commas; all if absent")
    parser.add_argument("--loads", type=lambda text: [int(x) for x in text.split(",")], default=list(LOADS))
    parser.add_argument("--seed", type=int, default=1, help="of the first repeat")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--kept", type=Path, help="an earlier run's --json: what is not measured again is taken from it"
    )
    parser.add_argument(
        "--lanes",
        type=int,
        default=2,
        help="routers measured at a time, each with its own engines; those that fill a core come last, one at a time",
    )
    args = parser.parse_args()
    if args.smoke:
        args.routers, args.loads, args.lanes = "Beaconry", [150], 2
    return args


def main() -> None:
    args = arguments()
    begins = tuple(args.routers.split(","))
    rivals = []
    for rival in RIVALS:
        if not rival.name.startswith(begins):
            continue
        missing = rival.missing(args.peers)
        if missing is None:
            rivals.append(rival)
        else:
            print(f"SKIPPED {rival.name}: there is no {missing}", file=sys.stderr)
    seeds = range(args.seed, args.seed + args.repeats)
    cells = [Cell(rival=rival, load=load, seed=seed) for seed in seeds for load in args.loads for rival in rivals]
    times = SMOKE if args.smoke else FULL
    runs: list[Run] = []
    for alone, lanes in ((False, args.lanes), (True, 1)):
        if chosen := [cell for cell in cells if cell.rival.fills_core is alone]:
            runs += uvloop.run(run_all(chosen, lanes, args.peers, times))
    if args.kept is not None:
        runs = beside(runs, msgspec.json.decode(args.kept.read_bytes(), type=list[Run]))
    show(runs)
    report.save(args.json, runs)


if __name__ == "__main__":
    main()
