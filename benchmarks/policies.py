"""Does the default policy beat the others, and never fall below stickiness, from a cold start at any load?

Virtual time: the real router and scheduler over model engines (`beaconry.sim`), the same requests for every policy. All caches are cold at
the start; what arrives after the warm-up is counted. `pinned` is no policy but a yardstick: a client that knows the groups and pins each to
an engine by number. Loads are in percent of what the fleet serves with warm caches and perfect balance.

    python -m benchmarks.policies                          # the main workloads, all policies, five seeds
    python -m benchmarks.policies --workload prefixes --load 95 --seeds 20 --policy expected-cost,sticky
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from random import Random
from typing import Any

from msgspec import Struct, structs

from beaconry.config.flow import Flow
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.scheduling.scheduler import Scheduler, make_scheduler
from beaconry.sim.fleet import Fleet
from beaconry.values.candidate import Candidate
from beaconry.values.decision import Ranking
from beaconry.values.endpoint import Endpoint
from beaconry.values.request import Request
from beaconry.workload.arrivals import poisson
from beaconry.workload.distribution import quantile
from beaconry.workload.plan import Plan
from beaconry.workload.request import Message, PlannedRequest, Span, Turn
from beaconry.workload.sample import Sample
from beaconry.workload.synthetic import Bounds, Shape, conversations
from benchmarks import report
from benchmarks.virtual_router import virtual_router

LOADS = (50, 70, 95, 120)
POLICIES = ("expected-cost", "sticky", "pinned", "prefix-only", "llm-d-weighted", "least-requests", "round-robin")
COUNTED_S, DRAIN_S = 20.0, 15.0
TIMING = LinearStepTime(fixed_s=0.02, per_seq_s=5e-4, per_context_token_s=2e-8, prefill_tps=32_000)
SETTINGS = EngineSettings(num_blocks=3200, max_num_seqs=16, max_num_batched_tokens=2048)
"""51,200 KV tokens and 16 places: small, so that caches overflow within seconds."""


class Setup(Struct, frozen=True, kw_only=True):
    """A workload on a fleet. `full_rate`: arrivals per second that warm, balanced engines just serve."""

    openings: Callable[[float, Random], Iterator[PlannedRequest]]
    full_rate: float
    engines: int = 4
    warmup_s: float = 8.0
    settings: EngineSettings = SETTINGS
    timing: LinearStepTime = TIMING
    slow: int = 0
    """Engines, counted from the first, that take twice the time."""


def prefixes(groups: int, low: int, high: int, zipf: float) -> Callable[[float, Random], Iterator[PlannedRequest]]:
    """Shared system prompts of `low` to `high` tokens with short questions of their own."""

    def openings(rate: float, rng: Random) -> Iterator[PlannedRequest]:
        shape = Shape(
            prompt_tokens=Bounds(low=32, high=96),
            output_tokens=Bounds(low=48, high=48),
            groups=groups,
            prefix_tokens=Bounds(low=low, high=high),
            zipf=zipf,
        )
        return conversations(shape, poisson(rate, rng), rng)

    return openings


def talks(rate: float, rng: Random) -> Iterator[PlannedRequest]:
    """Conversations: one system prompt of 800 tokens for all, a document of 500-2000 each, about four short questions on it."""
    spans = iter(range(1, 1 << 40))

    def turn(low: int, high: int) -> Turn:
        user = Span(id=next(spans), tokens=rng.randint(low, high))
        return Turn(user=user, output_tokens=48, reply_id=next(spans), think_s=rng.expovariate(1.0))

    system = Message(role="system", spans=(Span(id=0, tokens=800),))
    for number, at_s in enumerate(poisson(rate, rng)):
        first = turn(500, 2000)
        later = tuple(turn(40, 120) for _ in range(1 + min(int(rng.expovariate(1 / 3)), 20)))
        user = Message(role="user", spans=(first.user,))
        yield PlannedRequest(
            at_s=at_s,
            messages=(system, user),
            output_tokens=48,
            reply_id=first.reply_id,
            session=str(number),
            later=later,
        )


SETUPS = {
    "prefixes": Setup(openings=prefixes(24, 4000, 8000, 0.6), full_rate=46),
    "prefixes, 8 engines": Setup(openings=prefixes(24, 4000, 8000, 0.6), full_rate=92, engines=8),
    "more prefixes than fit": Setup(openings=prefixes(32, 4000, 8000, 0.6), full_rate=44),
    "skewed prefixes": Setup(openings=prefixes(24, 4000, 8000, 1.6), full_rate=46),
    "long prefixes": Setup(openings=prefixes(9, 12_000, 24_000, 0.6), full_rate=42),
    "slow prefill": Setup(
        openings=prefixes(24, 4000, 8000, 0.6), full_rate=36, timing=structs.replace(TIMING, prefill_tps=8000)
    ),
    "one engine half as fast": Setup(openings=prefixes(24, 4000, 8000, 0.6), full_rate=40, slow=1),
    "conversations": Setup(openings=talks, full_rate=9.3, warmup_s=14.0),
    "nothing shared": Setup(openings=prefixes(100_000, 1000, 5000, 0.0), full_rate=24),
}


class Pinned:
    """The yardstick: each group or conversation on one engine, by number. It reads what no gateway could know."""

    def __init__(self) -> None:
        self.group = 0

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """The engine of the group."""
        return Ranking(winner=self.group % len(candidates), why="pinned")


class PinnedPlan(Plan):
    """Tells the yardstick which group the request now sent belongs to."""

    pinned: Pinned

    def take(self) -> PlannedRequest:
        """Remove the next request and note its group."""
        request = super().take()
        first = request.messages[0].spans[0].id
        self.pinned.group = int(request.session) if request.session is not None else first
        return request


class Outcome(Struct, frozen=True, kw_only=True):
    """One run in figures, over the requests that arrived while it counted."""

    workload: str
    load: int
    policy: str
    seed: int
    ttft_p50_ms: float
    ttft_p90_ms: float
    hit_percent: float
    done_per_s: float
    e2e_s: float
    unfinished: int


def run(workload: str, load: int, policy: str, seed: int) -> Outcome:
    """One cold start."""
    setup = SETUPS[workload]
    until_s = setup.warmup_s + COUNTED_S
    rates = RateBook()
    plan = PinnedPlan(setup.openings(setup.full_rate * load / 100, Random(seed)), until_s=until_s)
    plan.pinned = Pinned()
    scheduler = (
        Scheduler(policy, plan.pinned) if policy == "pinned" else make_scheduler(policy, rates, Registry.installed())
    )
    flow = Flow(enabled=policy != "pinned")  # who pins by itself has no queue before the engines
    router = virtual_router(scheduler, rates, seed, flow=flow)
    engines, endpoints = {}, {}
    for i in range(setup.engines):
        name, slow = f"engine-{i}", 2.0 if i < setup.slow else 1.0
        timing = structs.replace(
            setup.timing,
            fixed_s=setup.timing.fixed_s * slow,
            per_seq_s=setup.timing.per_seq_s * slow,
            prefill_tps=setup.timing.prefill_tps / slow,
        )
        engines[name] = Engine(setup.settings, timing)
        endpoints[name] = Endpoint(name=name, host="sim", port=1, model="m")
    samples = Fleet([router], engines, endpoints).run(plan, until_s=until_s + DRAIN_S)
    return outcome(samples, setup.warmup_s, workload=workload, load=load, policy=policy, seed=seed)


def outcome(samples: Sequence[Sample], warmup_s: float, **what: Any) -> Outcome:
    counted = [s for s in samples if s.planned_s >= warmup_s]
    done = [s for s in counted if s.error is None]
    ttft = sorted((s.first_s or s.end_s) - s.planned_s for s in done)
    prompt = sum(s.prompt_tokens or 0 for s in done)
    return Outcome(
        ttft_p50_ms=1e3 * quantile(ttft, 0.5) if ttft else 0.0,
        ttft_p90_ms=1e3 * quantile(ttft, 0.9) if ttft else 0.0,
        hit_percent=100 * sum(s.cached_tokens or 0 for s in done) / max(prompt, 1),
        done_per_s=sum(s.error is None and warmup_s <= s.end_s < warmup_s + COUNTED_S for s in samples) / COUNTED_S,
        e2e_s=sum(s.end_s - s.planned_s for s in done) / max(len(done), 1),
        unfinished=len(counted) - len(done),
        **what,
    )


def rows(outcomes: Sequence[Outcome]) -> Iterator[tuple[object, ...]]:
    """One row per policy, median and range over the seeds."""
    for policy in dict.fromkeys(o.policy for o in outcomes):
        mine = [o for o in outcomes if o.policy == policy]
        yield (
            policy,
            _range([o.ttft_p50_ms for o in mine]),
            _range([o.ttft_p90_ms for o in mine]),
            _range([o.hit_percent for o in mine], 1),
            _range([o.done_per_s for o in mine], 1),
            _range([o.e2e_s for o in mine], 2),
            sum(o.unfinished for o in mine),
        )


def _range(values: Sequence[float], digits: int = 0) -> str:
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    return f"{middle:,.{digits}f} ({ordered[0]:,.{digits}f}-{ordered[-1]:,.{digits}f})"


def main() -> None:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument("--workload", default=",".join(SETUPS), help="names, separated by commas where they have none")
    parser.add_argument("--load", default=",".join(map(str, LOADS)), help="percent of the warm capacity")
    parser.add_argument("--policy", default=",".join(POLICIES))
    parser.add_argument("--seeds", type=int, default=5, help="cold starts per cell")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    workloads = [name for name in SETUPS if name in args.workload]
    loads = [int(load) for load in args.load.split(",")]
    policies = args.policy.split(",")
    seeds = range(1, 1 + args.seeds)
    if args.smoke:
        workloads, loads, policies, seeds = ["prefixes"], [70, 95], ["expected-cost", "sticky", "pinned"], range(1, 2)
    cells = [(w, load, p, seed) for w in workloads for load in loads for p in policies for seed in seeds]
    with ProcessPoolExecutor(args.workers) as executor:
        outcomes = list(executor.map(run, *zip(*cells, strict=True)))
    columns = ("policy", "TTFT p50 ms", "p90 ms", "hit %", "done/s", "e2e s", "unfinished")
    for workload in workloads:
        for load in loads:
            mine = [o for o in outcomes if o.workload == workload and o.load == load]
            report.table(f"{workload}, {load} % load: median (range) of {len(seeds)} cold starts", columns, rows(mine))
    report.save(args.json, outcomes)


if __name__ == "__main__":
    main()
