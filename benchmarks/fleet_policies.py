"""Which policy serves a production trace best, on 8, 64 and 512 engines, from half load to overload?

Virtual time: the real router over model engines. A fleet of n engines gets n / 8 copies of the trace at once, each with texts of its
own and rotated in time, sped up to the load. 100 % is what eight engines complete per second under round robin when they are flooded:
a yardstick that no cache-aware policy has a part in. All caches are cold at the start; what arrives in the first fifth is not counted.

    python -m benchmarks.fleet_policies --trace conversation_trace.jsonl --engines 8,64 --json figures.json
"""

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from msgspec import Struct

from beaconry.apps.virtual_fleet import cells, run_cell
from beaconry.config.loading import load_yaml
from beaconry.sim.scenario import Scenario
from beaconry.workload.summary import Summary
from benchmarks import report

POLICIES = (
    "expected-cost",
    "sticky",
    "llm-d-weighted",
    "least-requests",
    "power-of-two",
    "prefix-only",
    "round-robin",
    "random",
)
BLIND = ("round-robin", "random")
"""They ignore what a shortlist goes by, so they get the whole fleet."""
LOADS = (50, 70, 90, 100, 120)
COPIED = 8
"""Engines that one copy of the trace is for."""
REQUESTS = {8: 12_031, 64: 3000, 512: 1000}
"""Of each copy, by engines: fewer where there are more copies."""
FLOOD_REQUESTS, FLOOD_SPEEDUP = 3000, 40.0
EQUAL = 0.01
"""Goodput within this share of the best counts as equal."""
SCENARIO = """\
apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {{name: policies}}
service:
  model: {{uri: "hf://meta-llama/Llama-3.1-8B-Instruct"}}
  engine: {{type: sim, preset: llama-3.1-8b/h100}}
  pools: [{{name: engine, replicas: {engines}}}]
  router:
    policy: {policy}
    shortlistAbove: {shortlist_above}
    deadlines: {{firstByteS: 1e6, totalS: 1e6, idleS: 1e6}}
    flow: {{ttlS: 1e6, queuedRequests: 1000000000, queuedTokens: 1000000000000}}  # nothing is refused
fleet: {{blockTokens: {block_tokens}}}
slo: {{ttftS: 2, itlS: 0.05}}
warmupS: {warmup_s}
workloads:
- {workload}
"""
MADE_UP = (
    "{{type: sessions, arrivals: {{rate: {rate}}}, turns: 6, thinkS: 20, promptTokens: [200, 8000], outputTokens: [50, 600],"
    " groups: 1, prefixTokens: 512, requests: {requests}}}"
)


class Setting(Struct, frozen=True, kw_only=True):
    """One cell. `rate`: arrivals per second; `limit`: requests of each copy."""

    policy: str
    engines: int
    load: int
    rate: float
    limit: int
    trace: str | None
    trace_rate: float
    """Of the trace itself, over its first `limit` requests."""
    block_tokens: int
    shortlist: bool = True


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of it."""

    policy: str
    engines: int
    load: int
    rate: float
    requests: int
    failed: int
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    goodput: float
    attainment: float
    hit_rate: float
    ideal_hit_rate: float
    cpu_s: float


def simulate(setting: Setting) -> tuple[Summary, float]:
    """Run one cell; returns its figures and the CPU seconds taken."""
    copies = max(setting.engines // COPIED, 1)
    if setting.trace is None:
        workload = MADE_UP.format(rate=setting.rate / 6, requests=setting.limit * copies // 6)
    else:
        speedup = setting.rate / (setting.trace_rate * copies)
        workload = (
            f"{{type: trace, file: {setting.trace}, limit: {setting.limit}, copies: {copies}, speedup: {speedup}}}"
        )
    text = SCENARIO.format(
        engines=setting.engines,
        policy=setting.policy,
        shortlist_above=16 if setting.shortlist and setting.policy not in BLIND else 1_000_000,
        block_tokens=setting.block_tokens,
        warmup_s=0.2 * setting.limit * copies / setting.rate,
        workload=workload,
    )
    scenario = load_yaml(text, Scenario, "benchmark")
    result, _ = run_cell(scenario, cells(scenario)[0], Path.cwd())
    return result.summary, result.cpu_s


def judge(setting: Setting) -> Outcome:
    """One cell in figures."""
    summary, cpu_s = simulate(setting)
    ttft, tpot = summary.ttft_s, summary.tpot_s
    return Outcome(
        policy=setting.policy,
        engines=setting.engines,
        load=setting.load,
        rate=setting.rate,
        requests=summary.requests,
        failed=summary.failed,
        ttft_p50_s=ttft.p50 if ttft else 0.0,
        ttft_p90_s=ttft.p90 if ttft else 0.0,
        ttft_p99_s=ttft.p99 if ttft else 0.0,
        tpot_p50_s=tpot.p50 if tpot else 0.0,
        goodput=(summary.attainment or 0.0) * setting.rate,
        attainment=summary.attainment or 0.0,
        hit_rate=summary.hit_rate or 0.0,
        ideal_hit_rate=summary.ideal_hit_rate or 0.0,
        cpu_s=cpu_s,
    )


def trace_rate(trace: str | None, limit: int) -> float:
    """Requests per second of the first `limit` rows of a trace."""
    if trace is None:
        return 1.0
    with Path(trace).open() as file:
        times = [float(json.loads(line)["timestamp"]) for line, _ in zip(file, range(limit), strict=False)]
    return 1000 * (len(times) - 1) / (times[-1] - times[0])


def full_rate(trace: str | None, limit: int, block_tokens: int) -> float:
    """What one engine completes per second when eight are flooded under round robin."""
    known = trace_rate(trace, limit)
    flood = Setting(
        policy="round-robin", engines=8, load=0, rate=known * FLOOD_SPEEDUP, limit=limit, trace=trace, trace_rate=known,
        block_tokens=block_tokens,
    )  # fmt: skip
    summary, _ = simulate(flood)
    return summary.requests_per_s / 8


def misses(outcomes: Sequence[Outcome], ours: str = "expected-cost") -> Iterator[tuple[object, ...]]:
    """The cells where another policy has a higher goodput by more than `EQUAL`."""
    for engines, load in dict.fromkeys((one.engines, one.load) for one in outcomes):
        mine = [one for one in outcomes if (one.engines, one.load) == (engines, load)]
        best = max(mine, key=lambda one: one.goodput)
        own = next((one for one in mine if one.policy == ours), best)
        if own.goodput < best.goodput * (1 - EQUAL):
            yield engines, load, best.policy, best.goodput, own.goodput, f"{own.goodput / best.goodput - 1:.1%}"


def show(outcomes: Sequence[Outcome]) -> None:
    columns = (
        "policy",
        "TTFT p50 s",
        "p90 s",
        "p99 s",
        "TPOT p50 ms",
        "goodput/s",
        "within SLO %",
        "hit %",
        "ideal %",
        "failed",
    )
    for engines, load in dict.fromkeys((one.engines, one.load) for one in outcomes):
        mine = [one for one in outcomes if (one.engines, one.load) == (engines, load)]
        title = f"{engines} engines, {load} % load: {mine[0].rate:.3g} requests/s, {mine[0].requests} counted"
        rows = [
            (
                one.policy, one.ttft_p50_s, one.ttft_p90_s, one.ttft_p99_s, 1000 * one.tpot_p50_s, one.goodput,
                100 * one.attainment, 100 * one.hit_rate, 100 * one.ideal_hit_rate, one.failed,
            )
            for one in mine
        ]  # fmt: skip
        report.table(title, columns, rows)
    worse = list(misses(outcomes))
    if worse:
        report.table(
            "Cells where expected-cost is not best or equal",
            ("engines", "load", "best", "its goodput/s", "ours", "by"),
            worse,
        )
    else:
        print("\nexpected-cost is best or equal in goodput in every cell")


def main() -> None:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument(
        "--trace", type=lambda name: str(Path(name).absolute()), help="Mooncake JSONL; made-up sessions without"
    )
    parser.add_argument("--engines", default="8,64,512")
    parser.add_argument("--load", default=",".join(map(str, LOADS)), help="percent of what blind routing just serves")
    parser.add_argument("--policy", default=",".join(POLICIES))
    parser.add_argument("--limit", type=int, help="requests of each copy (default: by engines)")
    parser.add_argument("--block-tokens", type=int, default=128, help="per simulated KV block")
    parser.add_argument("--no-shortlist", action="store_true", help="every policy judges the whole fleet")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args()
    engines, loads = [int(n) for n in args.engines.split(",")], [int(n) for n in args.load.split(",")]
    policies, flood = args.policy.split(","), FLOOD_REQUESTS
    if args.smoke:
        engines, loads, policies, args.limit, flood = [8, 24], [70], ["expected-cost", "round-robin"], 200, 200
    per_engine = full_rate(args.trace, flood, args.block_tokens)
    settings = []
    for n in engines:
        limit = args.limit or REQUESTS.get(n, 1000)
        known = trace_rate(args.trace, limit)
        settings += [
            Setting(
                policy=policy, engines=n, load=load, rate=per_engine * n * load / 100, limit=limit, trace=args.trace, trace_rate=known,
                block_tokens=args.block_tokens, shortlist=not args.no_shortlist,
            )
            for load in loads
            for policy in policies
        ]  # fmt: skip
    outcomes = []
    with ProcessPoolExecutor(args.workers) as pool:
        for outcome in pool.map(judge, settings):
            outcomes.append(outcome)
            print(
                f"{outcome.engines} {outcome.load} {outcome.policy}: goodput {outcome.goodput:.4g}, {outcome.cpu_s:.1f} s",
                file=sys.stderr,
                flush=True,
            )
            figures = {"full_rate_per_engine": per_engine, "outcomes": outcomes, "misses": list(misses(outcomes))}
            report.save(args.json, figures)  # after each cell: a run of hours may be cut short
    show(outcomes)


if __name__ == "__main__":
    main()
