"""Does the gateway keep its promises when more comes than the engines can serve?

Virtual time: the real router over model engines. Three bands and three tenants, one of which sends twice as much as each other one.
For each workload: how long the top band waits and what is completed at 70, 100 and 150 % of what the fleet can do, in several modes: with
flow control, with it ending running requests of the lowest band, with it before engines that serve by priority themselves, and without. A
request is good if its first token came within `GOOD_S` of its arrival.

Then what flow control costs: CPU per request beside a router without it, CPU per turn and memory with 100,000 requests queued. How fast a
gateway whose queue is full says 429 is told by `benchmarks.refusals`.

    python -m benchmarks.overload
    python -m benchmarks.overload --workload "short chats" --mode on,by-priority --seeds 3
    python -m benchmarks.overload --fleet 1x16 8x64 --mode on,no-recall
"""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product, takewhile
from random import Random
from typing import Any

from msgspec import Struct, structs

from beaconry.config.flow import BandConfig, Flow
from beaconry.config.gateway import GatewayConfig
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.flowcontrol.control import FlowControl
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.router.caches import Caches
from beaconry.router.effects import StartLeg
from beaconry.router.facts import EndpointSeen, LegFinished, LegStarted, RequestArrived
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.sim.conditions import Conditions
from beaconry.sim.fleet import Fleet
from beaconry.values.endpoint import Endpoint, SchedulingPolicy
from beaconry.values.outcome import Outcome
from beaconry.values.request import Api, Request, Usage
from beaconry.workload.arrivals import poisson
from beaconry.workload.distribution import quantile
from beaconry.workload.plan import Plan
from beaconry.workload.request import PlannedRequest
from beaconry.workload.sample import Sample
from beaconry.workload.synthetic import Bounds, Shape, conversations
from benchmarks import report
from benchmarks.backlog import Backlog, Shares, Watched, jain

ENGINES = 4
TIMING = LinearStepTime(fixed_s=0.02, per_seq_s=3e-4, per_context_token_s=2e-8, prefill_tps=32_000)
SETTINGS = EngineSettings(num_blocks=4096, max_num_seqs=32, max_num_batched_tokens=2048)
"""65,536 KV tokens: long prompts fill the memory, long outputs the places."""
WARMUP_S, COUNTED_S, DRAIN_S = 30.0, 60.0, 90.0
"""At the end what still runs is let finish: the longest answers take 60 s."""
GOOD_S = 10.0
LOADS = (70, 100, 150)
FULL_RATE = {"short chats": 37.0, "long prompts": 9.2, "long outputs": 4.7, "shared prefixes": 40.0, "mixed": 5.2}
"""Requests per second that the fleet completes when twice as many come: 100 % load."""
QUEUED = 100_000
BANDS = (("interactive", 10, 0.1), ("standard", 0, 0.8), ("batch", -10, 0.1))
"""Name, priority and share of all requests."""
TENANTS = (("flood", 0.5), ("steady", 0.25), ("quiet", 0.25))
FLOW = Flow(
    bands=tuple(
        BandConfig(name=name, priority=priority, ttl_s=0.8 * GOOD_S, ceiling=1.0 if priority > 0 else 0.2)
        for name, priority, _ in BANDS
    )
)
"""As an operator would set it who knows what the clients wait for; all else is default."""
OFF = Flow(enabled=False)


class Mode(Struct, frozen=True):
    """How the fleet is run."""

    name: str
    flow: Flow
    by_priority: bool = False
    """The engines serve by the priority that the router tells them."""


ON = Mode("on", FLOW)
MODES = {
    mode.name: mode
    for mode in (
        ON,
        Mode("no-recall", structs.replace(FLOW, recall=False)),
        Mode("evicting", structs.replace(FLOW, evict_sheddable=True)),
        Mode("by-priority", FLOW, by_priority=True),
        Mode("off", OFF),
    )
}


DEFAULT_MODES = ("on", "evicting", "by-priority", "off")


def shapes(*shapes: Shape) -> Callable[[float, float, Random], Iterator[PlannedRequest]]:
    """Requests of several kinds, equally many of each, in one stream."""

    def openings(rate: float, until_s: float, rng: Random) -> Iterator[PlannedRequest]:
        clocks = list(takewhile(lambda at_s: at_s <= until_s, poisson(rate, rng)))
        streams = [conversations(shape, clocks, Random(rng.random())) for shape in shapes]
        for requests in zip(*streams, strict=True):
            yield rng.choice(requests)

    return openings


CHAT = Shape(prompt_tokens=Bounds(low=50, high=400), output_tokens=Bounds(low=20, high=200))
WORKLOADS = {
    "short chats": shapes(CHAT),
    "long prompts": shapes(Shape(prompt_tokens=Bounds(low=1000, high=15_000), output_tokens=Bounds(low=10, high=100))),
    "long outputs": shapes(Shape(prompt_tokens=Bounds(low=50, high=400), output_tokens=Bounds(low=300, high=1500))),
    "shared prefixes": shapes(
        Shape(
            prompt_tokens=Bounds(low=32, high=96),
            output_tokens=Bounds(low=48, high=48),
            groups=48,
            prefix_tokens=Bounds(low=4000, high=8000),
            zipf=0.6,
        )
    ),
    "mixed": shapes(
        CHAT,
        Shape(prompt_tokens=Bounds(low=2000, high=40_000), output_tokens=Bounds(low=10, high=100)),
        Shape(prompt_tokens=Bounds(low=20, high=100), output_tokens=Bounds(low=500, high=2000)),
    ),
    "answers": shapes(Shape(prompt_tokens=Bounds(low=50, high=400), output_tokens=Bounds(low=100, high=500))),
    "prompts": shapes(Shape(prompt_tokens=Bounds(low=500, high=4000), output_tokens=Bounds(low=10, high=200))),
}


class Site(Struct, frozen=True, kw_only=True):
    """Engines, what comes to them, and how far they are."""

    workload: str
    full_rate: float
    engines: int = ENGINES
    settings: EngineSettings = SETTINGS
    conditions: Conditions = Conditions()


_BLIND, _FAR = Conditions(scrape_loss=1.0), Conditions(scrape_delay_s=1.0, engine_s=0.01)
_WIDE = structs.replace(SETTINGS, num_blocks=2048, max_num_seqs=256)
FLEETS = {
    "1x16": Site(workload="short chats", full_rate=5.5, engines=1, settings=structs.replace(SETTINGS, max_num_seqs=16)),
    "2x256": Site(workload="answers", full_rate=11.7, engines=2, settings=_WIDE),
    "2x256-blind": Site(workload="answers", full_rate=11.7, engines=2, settings=_WIDE, conditions=_BLIND),
    "8x64": Site(
        workload="prompts",
        full_rate=55.0,
        engines=8,
        settings=structs.replace(SETTINGS, num_blocks=8192, max_num_seqs=64),
    ),
    "16x32": Site(workload="short chats", full_rate=145.0, engines=16),
    "4x32-blind": Site(workload="short chats", full_rate=37.0, conditions=_BLIND),
    "4x32-far": Site(workload="short chats", full_rate=37.0, conditions=_FAR),
}
"""Other fleets, by engines and places; none of them was used to choose a rule but the first. Blind: without metrics. Far: metrics are 1 s
old, and engines 10 ms away."""
SITES = {name: Site(workload=name, full_rate=rate) for name, rate in FULL_RATE.items()} | FLEETS


class Marks:
    """Band and tenant of each request, drawn by its number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.of: dict[int, tuple[str, str]] = {}

    def __call__(self, planned: PlannedRequest, request: Request) -> Request:
        """The request with its marks."""
        rng = Random(self._seed * 1_000_003 + planned.index)
        band, priority, _ = rng.choices(BANDS, [share for *_, share in BANDS])[0]
        tenant, _ = rng.choices(TENANTS, [share for _, share in TENANTS])[0]
        self.of[planned.index] = (band, tenant)
        return structs.replace(request, priority=priority, tenant=tenant)


class Run(Struct, frozen=True, kw_only=True):
    """One run in figures, over the requests that arrived while it counted."""

    workload: str
    """Or the fleet."""
    mode: str
    seed: int
    done_per_s: float
    good_per_s: float
    """Completed, and with the first token in time."""
    good_tokens_per_s: float
    """The prompt and output tokens of those."""
    top_p50_ms: float | None
    top_p99_ms: float | None
    top_good: float
    """Share of the top band that was good."""
    load: int
    shares: Shares
    """Of the tenants in the middle band while all of them had something waiting."""
    jain_good: float | None
    """Jain's index of their good tokens, over the whole time: cached prompts count too, and who wanted no more."""
    refused: int
    evicted: int
    """Of these: sent to an engine, and ended there for a higher band."""
    begun: int
    """Of these: had their first token."""
    lost_s: float
    """For how long these had generated, all together."""


def run(name: str, load: int, mode: Mode, seed: int, counted_s: float = COUNTED_S) -> Run:
    """One virtual run of the site with this name."""
    site, until_s = SITES[name], WARMUP_S + counted_s
    rates, marks = RateBook(), Marks(seed)
    backlog = Backlog([name for name, _ in TENANTS], WARMUP_S, until_s)
    router = Watched(
        GatewayConfig(flow=mode.flow),
        scheduler=make_scheduler("expected-cost", rates, Registry.installed()),
        caches=Caches(ApproximateIndex(), ExactIndex()),
        rates=rates,
        rng=Random(seed),
        backlog=backlog,
        priority=BANDS[1][1],
    )
    settings = structs.replace(site.settings, by_priority=mode.by_priority)
    policy = SchedulingPolicy.PRIORITY if mode.by_priority else SchedulingPolicy.FCFS
    names = [f"engine-{i}" for i in range(site.engines)]
    fleet = Fleet(
        [router],
        {each: Engine(settings, TIMING) for each in names},
        {each: Endpoint(name=each, host="sim", port=1, model="m", scheduling_policy=policy) for each in names},
        conditions=site.conditions,
        mark=marks,
    )
    rate = site.full_rate * load / 100
    plan = Plan(WORKLOADS[site.workload](rate, until_s, Random(seed)), until_s=until_s)
    samples = fleet.run(plan, until_s=until_s + DRAIN_S)
    shares = backlog.shares()
    return summarise(samples, marks, counted_s, shares=shares, workload=name, mode=mode.name, seed=seed, load=load)


def summarise(samples: Sequence[Sample], marks: Marks, counted_s: float, **what: Any) -> Run:
    counted = [s for s in samples if s.planned_s >= WARMUP_S]
    good = [s for s in counted if s.error is None and (s.ttft_s or 0.0) <= GOOD_S]
    evicted = [s for s in counted if s.error == Outcome.EVICTED.value]
    begun = [(s, s.first_s) for s in evicted if s.first_s is not None]
    top = [s for s in counted if marks.of[s.index][0] == BANDS[0][0]]
    good_ones = {s.index for s in good}
    ttft = sorted(s.ttft_s for s in top if s.ttft_s is not None)
    middle = dict.fromkeys((name for name, _ in TENANTS), 0)
    for s in good:
        band, tenant = marks.of[s.index]
        if band == BANDS[1][0]:
            middle[tenant] += s.planned_prompt_tokens + s.planned_output_tokens
    within = [s for s in samples if s.error is None and WARMUP_S <= s.end_s < WARMUP_S + counted_s]
    return Run(
        done_per_s=len(within) / counted_s,
        good_per_s=len(good) / counted_s,
        good_tokens_per_s=sum(s.planned_prompt_tokens + s.planned_output_tokens for s in good) / counted_s,
        top_p50_ms=1e3 * quantile(ttft, 0.5) if ttft else None,
        top_p99_ms=1e3 * quantile(ttft, 0.99) if ttft else None,
        top_good=sum(s.index in good_ones for s in top) / max(len(top), 1),
        jain_good=jain(list(middle.values())),
        refused=sum(s.error is not None for s in counted),
        evicted=len(evicted),
        begun=len(begun),
        lost_s=sum(s.end_s - first_s for s, first_s in begun),
        **what,
    )


def machine(flow: Flow) -> Router:
    """A router over one endpoint, without a world around it."""
    rates = RateBook()
    router = Router(
        GatewayConfig(flow=flow),
        scheduler=make_scheduler("expected-cost", rates, Registry.installed()),
        caches=Caches(ApproximateIndex(), ExactIndex()),
        rates=rates,
        rng=Random(0),
    )
    router.handle(EndpointSeen(Endpoint(name="e", host="sim", port=1, model="m")), 0.0)
    return router


def request(number: int, now_s: float, tenants: int = 100, **fields: Any) -> Request:
    given = {"prompt_tokens": 500, "stream": True, "tenant": f"t{number % tenants}", "priority": number % 3, **fields}
    return Request(id=str(number), model="m", api=Api.CHAT, arrived_s=now_s, **given)


def cpu_us_per_request(flow: Flow, requests: int) -> float:
    """Router CPU of a request's whole life, in microseconds, where nothing has to wait."""
    router = machine(flow)
    usage = Usage(prompt_tokens=500, completion_tokens=50)
    began = time.process_time()
    for number in range(requests):
        now_s = number * 0.01
        start = next(e for e in router.handle(RequestArrived(request(number, now_s)), now_s) if isinstance(e, StartLeg))
        router.handle(LegStarted(start.leg), now_s + 0.004)
        router.handle(LegFinished(start.leg, usage=usage), now_s + 0.008)
    return 1e6 * (time.process_time() - began) / requests


class Queue(Struct, frozen=True, kw_only=True):
    """A long queue in figures."""

    bytes_per_request: float
    """Of flow control alone: the requests themselves are there anyway."""
    offer_us: float
    turn_us: float


def long_queue(queued: int) -> Queue:
    """Offer `queued` requests of 1,000 tenants in three bands, then take turns."""
    control = FlowControl(Flow(queued_requests=queued, queued_tokens=1 << 40))
    requests = [request(number, 0.0, tenants=1000) for number in range(queued)]
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for one in requests:
        control.offer(control.ticket("m", one, 100.0, 0.0), passing=False)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    control = FlowControl(Flow(queued_requests=queued, queued_tokens=1 << 40))
    began = time.process_time()
    for one in requests:
        control.offer(control.ticket("m", one, 100.0, 0.0), passing=False)
    offered = time.process_time()
    turns = queued // 2
    for _ in range(turns):
        ticket = control.next("m", lambda _: True)
        assert ticket is not None
        control.dispatch(ticket, 1.0)
    done = time.process_time()
    return Queue(
        bytes_per_request=(after - before) / queued,
        offer_us=1e6 * (offered - began) / queued,
        turn_us=1e6 * (done - offered) / turns,
    )


COLUMNS = ("load, mode", "done/s", "good/s", "top band p50 ms", "p99 ms", "of each seed", "good", "not served", "evicted/begun/lost s",
           "Jain", "of the time", "Jain of what is good")  # fmt: skip


def row(runs: Sequence[Run]) -> tuple[object, ...]:
    """The medians of runs that differ in their seeds only."""

    def middle(*values: float | None) -> float | None:
        return report.median([value for value in values if value is not None])

    return (
        f"{runs[0].load} %, {runs[0].mode}",
        middle(*(r.done_per_s for r in runs)),
        middle(*(r.good_per_s for r in runs)),
        middle(*(r.top_p50_ms for r in runs)),
        middle(*(r.top_p99_ms for r in runs)),
        ", ".join(report.cell(r.top_p99_ms) for r in runs),
        middle(*(r.top_good for r in runs)),
        middle(*(r.refused for r in runs)),
        ", ".join(f"{r.evicted}/{r.begun}/{r.lost_s:.0f}" for r in runs),
        middle(*(r.shares.jain for r in runs)),
        ", ".join(report.cell(r.shares.covered) for r in runs),
        middle(*(r.jain_good for r in runs)),
    )


def cost(queued: int) -> dict[str, float | None]:
    """What flow control costs."""
    pairs = [(cpu_us_per_request(OFF, 3000), cpu_us_per_request(FLOW, 3000)) for _ in range(3)]
    queue = long_queue(queued)
    return {
        "router CPU per request without flow control, us": report.median([off for off, _ in pairs]),
        "with, us": report.median([on for _, on in pairs]),
        "bytes per queued request": queue.bytes_per_request,
        "CPU to queue one, us": queue.offer_us,
        "CPU per turn, us": queue.turn_us,
    }


def main() -> None:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument("--workload", default=",".join(FULL_RATE), help="names, separated by commas")
    parser.add_argument(
        "--fleet", nargs="+", choices=list(FLEETS), default=[], help="other fleets, with their workloads; no cost"
    )
    parser.add_argument("--mode", default=",".join(DEFAULT_MODES), help=f"of {', '.join(MODES)}; separated by commas")
    parser.add_argument("--load", default=",".join(map(str, LOADS)), help="percent, separated by commas")
    parser.add_argument("--seeds", type=int, default=1, help="how many; medians are shown")
    parser.add_argument("--seconds", type=float, default=COUNTED_S, help="how long each run counts")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    names = ["short chats"] if args.smoke else args.fleet or args.workload.split(",")
    loads = (70, 150) if args.smoke else [int(load) for load in args.load.split(",")]
    modes, seeds = [MODES[name] for name in args.mode.split(",")], range(1, args.seeds + 1)
    cells = [(n, load, mode, seed, args.seconds) for n in names for load in loads for mode in modes for seed in seeds]
    with ProcessPoolExecutor(args.workers) as executor:
        runs = list(executor.map(run, *zip(*cells, strict=True)))
    for name in names:
        alike = [
            [r for r in runs if (r.workload, r.load, r.mode) == (name, load, mode.name)]
            for load, mode in product(loads, modes)
        ]
        report.table(f"{name}: 100 % is {SITES[name].full_rate}/s", COLUMNS, map(row, alike))
    figures = {} if args.fleet else cost(QUEUED // 10 if args.smoke else QUEUED)
    if figures:
        report.table("Cost", ("figure", "value"), figures.items())
    report.save(args.json, {"runs": runs, "cost": figures})


if __name__ == "__main__":
    main()
