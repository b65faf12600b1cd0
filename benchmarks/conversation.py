"""Does the default policy serve a production trace better than the others, through real HTTP?

Each policy gets a fresh `beaconry up` fleet of simulated engines and the same requests: a window of a Mooncake trace (its time compressed),
or without `--trace` a made-up workload of the same kind. Repeats take later windows, so that no policy is judged on one stretch of traffic.
Engines may run faster than real (`--speed`); latencies are given in the engines' own seconds.

    python -m benchmarks.conversation --trace conversation_trace.jsonl --limit 2000 --repeats 3
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import uvloop

from beaconry.apps.bench import BenchOptions, run_bench
from beaconry.io.load.client import LoadOptions
from beaconry.io.load.target import parse_target
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.request import PlannedRequest
from beaconry.workload.sample import Slo
from beaconry.workload.summary import Summary
from beaconry.workload.synthetic import Bounds, Shape, conversations
from beaconry.workload.traces import Replay, read_trace, replay
from benchmarks.report import cell, median, options, save, table
from benchmarks.up import up

POLICIES = ("expected-cost", "round-robin", "least-requests", "prefix-only", "llm-d-weighted", "sticky")
SPEC = """\
apiVersion: beaconry/v1alpha1
kind: ModelService
metadata: {{name: conversation}}
spec:
  model: {{uri: "hf://meta-llama/Llama-3.1-8B-Instruct", name: m}}
  engine: {{type: sim, preset: {preset}, speed: {speed}, blocks: {blocks}, kvEvents: {events}}}
  pools:
  - {{name: engine, replicas: {engines}}}
  router: {{policy: {policy}}}
"""
Row = dict[str, float | str | int | None]


def plan_of(args: argparse.Namespace, repeat: int) -> Plan:
    """The requests of one repeat."""
    openings: Iterator[PlannedRequest]
    if args.trace is None:
        shape = Shape(
            prompt_tokens=Bounds(low=50, high=400), output_tokens=Bounds(low=20, high=120), turns=4, think_s=1.0, groups=12,
            prefix_tokens=Bounds(low=1000, high=3000), zipf=0.6,
        )  # fmt: skip
        rng = Random(repeat)
        openings = conversations(shape, poisson(args.rate, rng), rng)
        return Plan(islice(openings, args.limit), size=args.limit)
    lines = args.trace.read_text().splitlines()
    how = Replay(speedup=args.compress * args.speed, skip=repeat * args.limit, limit=args.limit)
    return Plan(replay(read_trace(lines, str(args.trace)), how), size=args.limit)


def spec_of(args: argparse.Namespace, policy: str) -> str:
    """The fleet under one policy. With "/approximate" behind its name the engines tell no KV events."""
    policy, _, view = policy.partition("/")
    return SPEC.format(**vars(args), policy=policy, events="false" if view == "approximate" else "true")


async def measure(args: argparse.Namespace, policy: str, repeat: int) -> Row:
    """One policy, one window."""
    slo = Slo(ttft_s=args.slo_ttft_ms / 1e3 / args.speed, itl_s=args.slo_itl_ms / 1e3 / args.speed)
    options = BenchOptions(label=policy, load=LoadOptions(), slo=slo, seed=repeat)
    async with up(spec_of(args, policy)) as address:
        result = await run_bench(plan_of(args, repeat), parse_target(address, "m"), options)
    return row_of(result.summary, policy, repeat, args.speed)


def row_of(summary: Summary, policy: str, repeat: int, speed: float) -> Row:
    """The figures of one run, latencies in the engines' own seconds."""
    ttft, itl, lag = summary.ttft_s, summary.tpot_s, summary.lag_s
    return {
        "policy": policy,
        "repeat": repeat,
        "requests": summary.requests,
        "failed": summary.failed,
        "hit_rate": summary.hit_rate,
        "ideal_hit_rate": summary.ideal_hit_rate,
        "ttft_p50_s": None if ttft is None else ttft.p50 * speed,
        "ttft_p90_s": None if ttft is None else ttft.p90 * speed,
        "ttft_p99_s": None if ttft is None else ttft.p99 * speed,
        "itl_p50_s": None if itl is None else itl.p50 * speed,
        "goodput_per_s": None if summary.goodput is None else summary.goodput / speed,
        "attainment": summary.attainment,
        "client_lag_p99_s": None if lag is None else lag.p99,
    }


def show(rows: list[Row]) -> None:
    """Medians over the repeats, with their ranges."""
    columns = (
        "hit_rate",
        "ideal_hit_rate",
        "ttft_p50_s",
        "ttft_p90_s",
        "ttft_p99_s",
        "goodput_per_s",
        "attainment",
        "failed",
    )
    lines = []
    for policy in dict.fromkeys(str(row["policy"]) for row in rows):
        mine = [row for row in rows if row["policy"] == policy]
        lines.append([policy, *(_spread([float(row[column] or 0.0) for row in mine]) for column in columns)])
    table("The same requests under each policy: median (least-most) of the repeats", ("policy", *columns), lines)


def _spread(values: list[float]) -> str:
    spread = f" ({cell(min(values))}-{cell(max(values))})" if len(values) > 1 else ""
    return cell(median(values)) + spread


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of this module, for others that run the same matrix."""
    parser = options(description)
    parser.add_argument("--trace", type=Path, help="Mooncake JSONL")
    parser.add_argument("--limit", type=int, default=2000, help="requests per run; conversations without --trace")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compress", type=float, default=2.0, help="the trace's time, by this factor")
    parser.add_argument("--rate", type=float, default=4.0, help="conversations per second, without --trace")
    parser.add_argument("--speed", type=float, default=4.0, help="engines this much faster than real")
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument(
        "--blocks", type=int, default=27_000, help="KV blocks of 16 tokens per engine; 27,000 fit beside 8B on 80 GB"
    )
    parser.add_argument("--preset", default="llama-3.1-8b/h100")
    parser.add_argument("--policies", type=lambda text: text.split(","), default=list(POLICIES))
    parser.add_argument("--slo-ttft-ms", type=float, default=2000.0)
    parser.add_argument("--slo-itl-ms", type=float, default=50.0)
    return parser


def run_matrix(args: argparse.Namespace) -> list[Row]:
    """Every policy on every window, each on a fresh fleet."""
    rows: list[Row] = []
    for repeat in range(args.repeats):
        for policy in args.policies:
            rows.append(uvloop.run(measure(args, policy, repeat)))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Run the matrix."""
    args = arguments("The default policy against the others on a production trace, through real HTTP.").parse_args()
    if args.smoke:
        args.limit, args.rate, args.repeats, args.policies = 40, 10.0, 1, ["expected-cost", "round-robin"]
    rows = run_matrix(args)
    show(rows)
    save(args.json, rows)


if __name__ == "__main__":
    main()
