"""Does a step time fitted to one run of an engine predict another run of it?

Two runs against one address: other prompts, lengths and rate. `beaconry fit`'s fit of the first is replayed with the second one's
requests, and the latencies of the replay are laid beside those measured. Without `--url` the engine is a simulated one of this repository,
which shows the method's own error: what a real engine adds is the engine's.

    python -m benchmarks.real_engine --url http://127.0.0.1:8000 --model m --block-size 32 --blocks 2048 --max-num-seqs 16
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from random import Random

import uvloop

from beaconry.apps.bench import BenchOptions, run_bench
from beaconry.apps.fit import served
from beaconry.engine_model.fitting import Fit, Served, fit, replay
from beaconry.engine_model.values import EngineSettings
from beaconry.io.load.client import LoadOptions
from beaconry.io.load.target import parse_target
from beaconry.workload.arrivals import gamma
from beaconry.workload.distribution import quantile
from beaconry.workload.plan import Plan
from beaconry.workload.synthetic import Bounds, Shape, conversations
from benchmarks import report
from benchmarks.children import children

BURSTS = 0.6
"""Shape of the arrivals: some alone, some together."""
ENGINE = "fixed_s=0.004,per_seq_s=0.0002,per_context_token_s=2e-7,prefill_tps=20000"
"""Of the simulated engine."""


def measure(args: argparse.Namespace, address: str, number: int) -> list[Served]:
    """Run number 0 or 1; the second one has other prompts, at two thirds of the rate."""
    shape = Shape(prompt_tokens=args.prompt_tokens[number], output_tokens=args.output_tokens[number])
    rng = Random(args.seed + number)
    times = gamma(args.rate * (1.0, 2 / 3)[number], BURSTS, rng)
    plan = Plan(islice(conversations(shape, times, rng), args.requests), size=args.requests)
    options = BenchOptions(load=LoadOptions(chat=False), seed=args.seed + number, chars_per_token=args.chars_per_token)
    result = uvloop.run(run_bench(plan, parse_target(address, args.model), options))
    if result.summary.failed:
        raise SystemExit(f"{result.summary.failed} requests failed: {result.summary.error_examples}")
    return served(result, str(number))


def compare(requests: list[Served], settings: EngineSettings, found: Fit) -> list[dict[str, float | str]]:
    """Percentiles measured and replayed, in ms, and how far they are apart."""
    again = replay(requests, settings, found.step_time, found.request_s)
    rows: list[dict[str, float | str]] = []
    for name in ("ttft", "tpot"):
        measured = sorted(getattr(one.served, f"{name}_s") for one in again)
        replayed = sorted(getattr(one, f"{name}_s") for one in again)
        for share in (0.5, 0.9):
            real, model = quantile(measured, share), quantile(replayed, share)
            name_of = f"{name.upper()} p{100 * share:.0f}"
            error = model / real - 1
            rows.append({"figure": name_of, "measured_ms": 1e3 * real, "replayed_ms": 1e3 * model, "error": error})
    return rows


@contextmanager
def engine(args: argparse.Namespace) -> Iterator[str]:
    """The address to load."""
    if args.url:
        yield args.url
        return
    command = ("-m", "beaconry", "engine", "--model", args.model, "--port", "0", "--step-time", ENGINE,
               "--blocks", str(args.blocks), "--block-size", str(args.block_size))  # fmt: skip
    with children(command) as (child,):
        yield f"http://127.0.0.1:{child.port}"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = report.options("A step time fitted to one run of an engine, against another run of it.")
    parser.add_argument("--url", help="an OpenAI-compatible engine (a simulated one)")
    parser.add_argument("--model", default="m")
    parser.add_argument("--requests", type=int, default=120, help="in each run")
    parser.add_argument("--rate", type=float, default=3.0, help="requests per second of the first run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chars-per-token", type=float, default=4.0)
    parser.add_argument("--blocks", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    return parser


def main() -> None:
    """Measure, fit, measure again, predict."""
    args = arguments().parse_args()
    args.prompt_tokens = (Bounds(low=32, high=1200), Bounds(low=100, high=800))
    args.output_tokens = (Bounds(low=8, high=100), Bounds(low=20, high=120))
    if args.smoke:
        args.requests, args.rate = 30, 15.0
    settings = EngineSettings(
        num_blocks=args.blocks,
        block_tokens=args.block_size,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        prefix_caching=False,
    )
    with engine(args) as address:
        first, second = (measure(args, address, number) for number in (0, 1))
    found = fit(first, settings)
    figures = {"fitted": compare(first, settings, found), "predicted": compare(second, settings, found)}
    for name, rows in figures.items():
        lines = [
            (row["figure"], row["measured_ms"], row["replayed_ms"], f"{100 * float(row['error']):+.1f}") for row in rows
        ]
        report.table(f"{name} run", ("", "measured ms", "replayed ms", "error %"), lines)
    print(f"\n{found.step_time}\nper request {found.request_s:.4g} s, at most {found.most_running} decoding at once")
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    report.save(args.json, figures)


if __name__ == "__main__":
    main()
