"""What is exact knowledge of the engines' caches worth? In virtual time, under cache pressure.

The caches together hold about a third of what is asked for again, so each placement decides what is evicted. The default policy sees them
by the engines' KV events (`exact`), or by its own routing history and the cached tokens that engines report (`approximate`); round robin
does not look. The same requests for all, several seeds. What a gateway does not see by itself makes the difference, so each workload is run
in several situations:

    one gateway       sees every request
    2, 4 gateways     share the requests, as worker processes do; none sees the others'
    half bypass       every second request reaches the engines by another way, in turn; the others are counted
    restarted         the gateway is replaced by a new one when half the time is over; what comes after is counted

    python -m benchmarks.kv_views [--trace conversation_trace.jsonl] [--seeds 5] [--workload prefixes] [--smoke] [--json FILE]
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from msgspec import Struct

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.sim.conditions import Conditions
from beaconry.sim.fleet import Fleet
from beaconry.values.endpoint import Endpoint
from beaconry.workload.arrivals import poisson
from beaconry.workload.distribution import quantile
from beaconry.workload.plan import Plan
from beaconry.workload.request import Message, PlannedRequest, Span, Turn
from beaconry.workload.sample import Sample
from beaconry.workload.traces import Replay, read_trace, replay
from benchmarks.policies import SETTINGS, TIMING, prefixes
from benchmarks.report import options, save, table
from benchmarks.virtual_router import virtual_router

ENGINES = 4
EVENT_DELAY_S = 0.002
DRAIN_S = 30.0
VIEWS = {"exact": "expected-cost", "approximate": "expected-cost", "round-robin": "round-robin"}
SITUATIONS = {"one gateway": 1, "2 gateways": 2, "4 gateways": 4, "half bypass": 2, "restarted": 2}
"""With the number of routers."""
BYPASS, RESTART = "half bypass", "restarted"


class Workload(Struct, frozen=True, kw_only=True):
    """Requests, the engines they go to, and the stretch of time that is counted."""

    openings: Callable[[Random], Iterator[PlannedRequest]]
    counted_s: tuple[float, float]
    settings: EngineSettings = SETTINGS
    timing: LinearStepTime = TIMING


def talks(rate: float, think_s: float, rng: Random) -> Iterator[PlannedRequest]:
    """Conversations that come back after long pauses: most of what is cached belongs to somebody who is thinking."""
    spans = iter(range(1, 1 << 40))

    def turn(low: int, high: int) -> Turn:
        user = Span(id=next(spans), tokens=rng.randint(low, high))
        return Turn(user=user, output_tokens=48, reply_id=next(spans), think_s=rng.expovariate(1 / think_s))

    system = Message(role="system", spans=(Span(id=0, tokens=800),))
    for number, at_s in enumerate(poisson(rate, rng)):
        first = turn(500, 2000)
        user = Message(role="user", spans=(first.user,))
        later = tuple(turn(40, 120) for _ in range(1 + min(int(rng.expovariate(1 / 3)), 20)))
        yield PlannedRequest(
            at_s=at_s,
            messages=(system, user),
            output_tokens=48,
            reply_id=first.reply_id,
            session=str(number),
            later=later,
        )


def window(path: Path, size: int, rng: Random) -> Iterator[PlannedRequest]:
    """A stretch of a trace, beginning somewhere."""
    lines = path.read_text().splitlines()
    skip = rng.randrange(max(len(lines) - size, 1))
    return replay(read_trace(lines, str(path)), Replay(skip=skip, limit=size))


def workloads(trace: Path | None, size: int) -> dict[str, Workload]:
    """By name. Sizes are such that four engines hold a third: of 96 prefixes, of 180 conversations, of what a stretch of the trace has."""
    found = {
        "prefixes": Workload(openings=partial(prefixes(96, 4000, 8000, 0.6), 14.0), counted_s=(20.0, 80.0)),
        "conversations": Workload(openings=partial(talks, 6.0, 15.0), counted_s=(60.0, 120.0)),
    }
    if trace is not None:
        large = EngineSettings(num_blocks=78_000)
        timing = LinearStepTime(fixed_s=0.007, per_seq_s=5e-5, per_context_token_s=4e-8, prefill_tps=20_000)
        found["trace"] = Workload(
            openings=partial(window, trace, size), counted_s=(60.0, 360.0), settings=large, timing=timing
        )
    return found


class Restarted(Fleet):
    """Its second router takes over from the first one at `restart_s`."""

    restart_s: float

    def _send(self, planned: PlannedRequest) -> None:
        kept = self._fronts
        self._fronts = kept[1:] if self.now_s >= self.restart_s else kept[:1]
        super()._send(planned)
        self._fronts = kept


class Outcome(Struct, frozen=True, kw_only=True):
    """One run in figures, over the requests counted."""

    workload: str
    situation: str
    view: str
    seed: int
    hit_percent: float
    ideal_percent: float
    """Of one endless cache."""
    predicted_percent: float
    """Of all prompt tokens, what the gateway expected to be cached when it placed them; compare with `reported_percent`."""
    reported_percent: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    unfinished: int


def router(policy: str, seed: int) -> Router:
    rates = RateBook()
    return virtual_router(make_scheduler(policy, rates, Registry.installed()), rates, seed)


def run(trace: Path | None, size: int, case: tuple[str, str, str, int]) -> Outcome:
    """One workload in one situation under one view, from cold caches."""
    name, situation, view, seed = case
    work = workloads(trace, size)[name]
    begin_s, end_s = work.counted_s
    policies = [VIEWS[view]] * SITUATIONS[situation]
    if situation == BYPASS:
        policies[1] = "round-robin"
    routers = [router(policy, 10 * seed + number) for number, policy in enumerate(policies)]
    exact = view == "exact"
    engines = {f"engine-{i}": Engine(work.settings, work.timing, record_events=exact) for i in range(ENGINES)}
    endpoints = {engine: Endpoint(name=engine, host="sim", port=1, model="m") for engine in engines}
    conditions = Conditions(kv_events=exact, event_delay_s=EVENT_DELAY_S if exact else 0.0)
    kind = Restarted if situation == RESTART else Fleet
    fleet = kind(routers, engines, endpoints, conditions=conditions, seed=seed)
    if isinstance(fleet, Restarted):
        begin_s = fleet.restart_s = (begin_s + end_s) / 2
    plan = Plan(work.openings(Random(seed)), until_s=end_s)
    samples = fleet.run(plan, until_s=end_s + DRAIN_S)
    counted = [s for s in samples if s.planned_s >= begin_s and not (situation == BYPASS and s.index % 2)]
    endings = [e for one in routers for e in one.statistics(fleet.now_s).endpoints]
    prompt = max(sum(e.prompt_tokens for e in endings), 1)
    return Outcome(
        workload=name,
        situation=situation,
        view=view,
        seed=seed,
        predicted_percent=100 * sum(e.predicted_cached_tokens for e in endings) / prompt,
        reported_percent=100 * sum(e.cached_tokens for e in endings) / prompt,
        **figures(counted),
    )


def figures(counted: Sequence[Sample]) -> dict[str, Any]:
    done = [s for s in counted if s.error is None]
    ttft = sorted((s.first_s or s.end_s) - s.planned_s for s in done)
    return {
        "hit_percent": 100 * sum(s.cached_tokens or 0 for s in done) / max(sum(s.prompt_tokens or 0 for s in done), 1),
        "ideal_percent": 100
        * sum(s.ideal_cached_tokens for s in done)
        / max(sum(s.planned_prompt_tokens for s in done), 1),
        "ttft_p50_ms": 1e3 * quantile(ttft, 0.5) if ttft else 0.0,
        "ttft_p90_ms": 1e3 * quantile(ttft, 0.9) if ttft else 0.0,
        "unfinished": len(counted) - len(done),
    }


def show(outcomes: Sequence[Outcome]) -> None:
    """A table per workload: median and range over the seeds."""
    columns = (
        "situation, view",
        "hit %",
        "ideal %",
        "predicted %",
        "reported %",
        "TTFT p50 ms",
        "p90 ms",
        "unfinished",
    )
    fields = ("hit_percent", "ideal_percent", "predicted_percent", "reported_percent", "ttft_p50_ms", "ttft_p90_ms")
    for workload in dict.fromkeys(o.workload for o in outcomes):
        rows = []
        for situation, view in dict.fromkeys((o.situation, o.view) for o in outcomes):
            mine = [o for o in outcomes if (o.workload, o.situation, o.view) == (workload, situation, view)]
            spreads = (_spread([getattr(o, field) for o in mine]) for field in fields)
            rows.append((f"{situation}, {view}", *spreads, sum(o.unfinished for o in mine)))
        table(f"{workload}: median (least-most) of the seeds", columns, rows)


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    digits = 1 if ordered[-1] < 100 else 0
    middle = ordered[len(ordered) // 2]
    return f"{middle:,.{digits}f} ({ordered[0]:,.{digits}f}-{ordered[-1]:,.{digits}f})"


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, help="Mooncake JSONL: a third workload")
    parser.add_argument("--limit", type=int, default=1500, help="requests of the trace in each run")
    parser.add_argument("--workload", default="", help="only this one")
    parser.add_argument("--situation", default="", help="only this one")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    names = [name for name in workloads(args.trace, args.limit) if args.workload in ("", name)]
    situations = [name for name in SITUATIONS if args.situation in ("", name)]
    if args.smoke:
        names, situations, args.seeds = ["prefixes"], ["2 gateways"], 1
    cases = [(n, s, v, seed) for n in names for s in situations for v in VIEWS for seed in range(1, 1 + args.seeds)]
    with ProcessPoolExecutor(args.workers) as executor:
        outcomes = list(executor.map(partial(run, args.trace, args.limit), cases))
    show(outcomes)
    save(args.json, outcomes)


if __name__ == "__main__":
    main()
