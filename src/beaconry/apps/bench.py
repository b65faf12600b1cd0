"""`beaconry bench`: load any OpenAI-compatible address by a plan, and say how it answered. Also `--compare` of earlier results."""

import argparse
import asyncio
import gc
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from msgspec import Struct

from beaconry.apps.bench_options import add_options
from beaconry.apps.bench_plan import describe, make_load_options, make_plan, make_slo, make_target
from beaconry.apps.bench_report import print_results, progress_display
from beaconry.io.load.client import LoadClient, LoadOptions, LoadStatistics
from beaconry.io.load.target import Target
from beaconry.values.errors import OperatorError
from beaconry.workload.plan import Plan
from beaconry.workload.prompts import PromptText
from beaconry.workload.report import render_html
from beaconry.workload.result import Result, decode_result, encode_result, timings
from beaconry.workload.sample import Slo
from beaconry.workload.summary import summarise

PROGRESS_EVERY_S = 0.25


class BenchOptions(Struct, frozen=True, kw_only=True):
    """How to load, what to count and how to name the result."""

    label: str = "bench"
    load: LoadOptions = LoadOptions()
    slo: Slo | None = None
    warmup_s: float = 0.0
    """Requests planned earlier are sent, but not counted."""
    seed: int = 0
    """Of the prompts' words; the plan has its own."""
    chars_per_token: float = 4.0
    workload: dict[str, str | int | float | None] = {}
    """Description of the plan for the result."""


async def run_bench(
    plan: Plan,
    target: Target,
    options: BenchOptions,
    *,
    stop: asyncio.Event | None = None,
    progress: Callable[[LoadStatistics], None] | None = None,
) -> Result:
    """Send `plan` to `target` and summarise. Setting `stop` ends the run early with what has come so far."""
    client = LoadClient(plan, PromptText(options.seed, options.chars_per_token), target, options.load)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        shown = tasks.create_task(_show(client, progress)) if progress is not None else None
        try:
            samples = await client.run(stop)
        finally:
            if shown is not None:
                shown.cancel()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Result(
        label=options.label,
        target=target.url,
        model=target.model,
        started_at=started_at,
        workload=options.workload,
        summary=summarise(samples, slo=options.slo, warmup_s=options.warmup_s),
        client_cpu=cpu_s / wall_s,
        timings=timings(samples),
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Bench or compare. 0: some request succeeded; 1: none did; 130: stopped by hand. Raises OperatorError for bad input."""
    if args.compare:
        results = [_read(path) for path in args.compare]
        print_results(results)
        _write(args.html, render_html(results).encode())
        return 0
    result = _bench(args)
    print_results([result])
    _write(args.json, encode_result(result))
    _write(args.html, render_html([result]).encode())
    if result.summary.interrupted:
        return 130
    return 0 if result.summary.succeeded else 1


def _bench(args: argparse.Namespace) -> Result:
    plan = make_plan(args)
    target = make_target(args)
    options = BenchOptions(
        label=args.label or target.authority,
        load=make_load_options(args),
        slo=make_slo(args),
        warmup_s=args.warmup_s,
        seed=args.seed,
        chars_per_token=args.chars_per_token,
        workload=describe(args),
    )
    for path in (args.json, args.html):
        _check_writable(path)
    gc.freeze()  # the plan's thousands of objects are there to stay: a full collection would look like a stall of the server
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_bench_until_interrupted(plan, target, options))


async def _bench_until_interrupted(plan: Plan, target: Target, options: BenchOptions) -> Result:
    """The first Ctrl-C ends the run with a partial result, the second one is not waited for."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def interrupted() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        with progress_display(plan.size) as progress:
            return await run_bench(plan, target, options, stop=stop, progress=progress)
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _show(client: LoadClient, progress: Callable[[LoadStatistics], None]) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        progress(client.statistics())


def _read(path: Path) -> Result:
    try:
        return decode_result(path.read_bytes(), str(path))
    except OSError as error:
        raise OperatorError(
            f"--compare {path}: {error.strerror}; give files written by `beaconry bench --json`"
        ) from error


def _check_writable(path: Path | None) -> None:
    """Find out before the run, not after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise OperatorError(f"{path}: there is no folder {path.absolute().parent}; make it first")


def _write(path: Path | None, content: bytes) -> None:
    if path is None:
        return
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OperatorError(f"{path}: cannot write: {error.strerror}") from error
