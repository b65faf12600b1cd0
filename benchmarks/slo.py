"""Do objectives in the request make more requests meet them, and is it never worse than a rule that needs no prediction?

Virtual time: the real router over simulated engines, cold at the start, the same requests for every policy: a window of a production trace
(its time compressed), or without `--trace` a made-up workload of the same kind. Each request belongs to one of three classes, by chance:
strict, standard and relaxed. Attainment is the share of requests that met all objectives of their class, from arrival, unfinished ones
counting as missed; goodput is their number per second. No policy is told output lengths.

`token-load` is llm-d's default: the prefix holder until its queue is 286,720 tokens longer than another's, else the fewest uncached tokens
in flight. The objectives are also tried with every prediction wrong by a factor of three either way, and with metrics a second old.

    python -m benchmarks.slo --trace conversation_trace.jsonl --limit 1500 --seeds 3
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from msgspec import Struct, structs

from beaconry.config.gateway import Profile
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.presets import variant
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.rates import RateBook
from beaconry.latency.variant_book import Raw
from beaconry.plugins.registry import Registry
from beaconry.router.effects import Effect
from beaconry.router.facts import Fact, LoadSampled, RequestArrived
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.sim.fleet import Fleet
from beaconry.values.candidate import Candidate, Prediction
from beaconry.values.endpoint import Endpoint
from beaconry.values.request import Request
from beaconry.workload.arrivals import poisson
from beaconry.workload.distribution import quantile
from beaconry.workload.plan import Plan
from beaconry.workload.request import PlannedRequest
from beaconry.workload.sample import Sample, Slo
from beaconry.workload.synthetic import Bounds, Shape, conversations
from beaconry.workload.traces import Replay, read_trace, replay
from benchmarks import report
from benchmarks.virtual_router import virtual_router

CLASSES = {
    "strict": (0.3, Slo(ttft_s=1.0, itl_s=0.03)),
    "standard": (0.5, Slo(ttft_s=3.0, itl_s=0.06)),
    "relaxed": (0.2, Slo(ttft_s=12.0, itl_s=0.15)),
}
"""Share of the requests, and what they are promised."""
POLICIES = ("objectives", "expected-cost", "token-load", "least-requests")
HARDENED = ("objectives/wrong x3", "objectives/stale 1 s", "objectives/both")
TOKEN_LOAD = Profile(policy="weighted", filters=("prefix-cache-affinity-filter",), scorers={"token-load-scorer": 1.0})
BLOCK_TOKENS = 64
DRAIN_S = 30.0


class Case(Struct, frozen=True, kw_only=True):
    """What is run: picklable, so that processes can share the work."""

    policy: str
    seed: int
    load: float
    """The trace's time compressed by this factor; conversations per second without a trace."""
    preset: str
    engines: int
    limit: int
    trace: str | None


class Outcome(Struct, frozen=True, kw_only=True):
    """One run in figures."""

    policy: str
    load: float
    seed: int
    requests: int
    attainment: float
    goodput: float
    classes: dict[str, float]
    """Attainment by class."""
    ttft_p50_s: float
    ttft_p90_s: float
    hit: float
    source: str
    """Whose forecasts were believed at the end."""


def class_of(index: int, seed: int) -> str:
    """The class of the request with this number: by chance, the same for every policy."""
    drawn = Random(index * 1_000_003 + seed).random()
    for name, (share, _) in CLASSES.items():
        drawn -= share
        if drawn < 0:
            return name
    return name


class Door:
    """Before the router: gives each request its objectives and takes away its length; holds samples back if they shall be stale."""

    def __init__(self, router: Router, seed: int, *, stale: bool) -> None:
        self._router = router
        self._seed = seed
        self._stale = stale
        self._held: dict[str, LoadSampled] = {}

    def handle(self, fact: Fact, now_s: float) -> list[Effect]:
        """As the router's."""
        if isinstance(fact, RequestArrived):
            slo = CLASSES[class_of(int(fact.request.id), self._seed)][1]
            request = structs.replace(fact.request, slo_ttft_s=slo.ttft_s, slo_itl_s=slo.itl_s, output_tokens=None)
            fact = RequestArrived(request)
        elif isinstance(fact, LoadSampled) and self._stale:
            before = self._held.get(fact.name)
            self._held[fact.name] = fact
            if before is None:
                return []
            fact = before
        return self._router.handle(fact, now_s)

    def check(self) -> None:
        """As the router's."""
        self._router.check()


class WrongRates(RateBook):
    """Predictions a third or three times of what they should be."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng

    def predict(self, request: Request, candidate: Candidate) -> Prediction:
        """Wrong."""
        right, by = super().predict(request, candidate), 3.0 ** self._rng.choice((-1, 1))
        return structs.replace(
            right,
            ttft_s=right.ttft_s * by,
            wait_s=right.wait_s * by,
            itl_s=right.itl_s * by,
            decode_s=right.decode_s * by,
        )


class WrongForecasts(Forecasts):
    """The same with a shadow."""

    def __init__(self, rates: RateBook, rng: Random) -> None:
        super().__init__(rates)
        self._rng = rng

    def _ask(self, *placement: Any) -> Raw:
        right, by = super()._ask(*placement), 3.0 ** self._rng.choice((-1, 1))
        return Raw(by * right.ttft_s, right.regime, by * right.itl_now_s, by * right.itl_average_s, right.uncached)


def plan_of(case: Case) -> Plan:
    """The requests: the same for every policy."""
    rng = Random(case.seed)
    openings: Iterator[PlannedRequest]
    if case.trace is None:
        shape = Shape(
            prompt_tokens=Bounds(low=100, high=12_000), output_tokens=Bounds(low=20, high=700), turns=3, think_s=20.0,
            groups=30, prefix_tokens=Bounds(low=500, high=8000), zipf=0.8,
        )  # fmt: skip
        openings = conversations(shape, poisson(case.load, rng), rng)
        return Plan(islice(openings, max(case.limit // 3, 1)))
    lines = Path(case.trace).read_text().splitlines()
    how = Replay(speedup=case.load, skip=(case.seed - 1) * case.limit, limit=case.limit)
    return Plan(replay(read_trace(lines, case.trace), how))


def run(case: Case) -> Outcome:
    """One cold start."""
    name, _, hardened = case.policy.partition("/")
    wrong, stale = hardened in {"wrong x3", "both"}, hardened in {"stale 1 s", "both"}
    rates = WrongRates(Random(case.seed)) if wrong else RateBook()
    forecasts = WrongForecasts(rates, Random(-case.seed)) if wrong else Forecasts(rates)
    profiles: dict[str, str | Profile] = {"objectives": "expected-cost", "token-load": TOKEN_LOAD}
    asked = forecasts if name == "objectives" else None
    scheduler = make_scheduler(profiles.get(name, name), rates, Registry.installed(), asked)
    router = virtual_router(scheduler, rates, case.seed, forecasts=forecasts)
    preset = variant(case.preset)
    settings = structs.replace(preset.settings(BLOCK_TOKENS), step_noise=0.03)
    engines, endpoints = {}, {}
    for i in range(case.engines):
        engines[f"engine-{i}"] = Engine(settings, preset.step_time(), rng=Random(case.seed + i))
        endpoints[f"engine-{i}"] = Endpoint(name=f"engine-{i}", host="sim", port=1, model="m", variant=case.preset)
    plan = plan_of(case)
    fleet = Fleet([Door(router, case.seed, stale=stale)], engines, endpoints)  # type: ignore[list-item]
    samples = fleet.run(plan, until_s=1e5)
    source = forecasts.statistics()[case.preset].source.value
    return outcome(case, samples, source)


def outcome(case: Case, samples: Sequence[Sample], source: str) -> Outcome:
    """Figures over all requests of a run."""
    met: dict[str, list[bool]] = {name: [] for name in CLASSES}
    for sample in samples:
        name = class_of(sample.index, case.seed)
        met[name].append(CLASSES[name][1].met_by(sample))
    everything = [m for each in met.values() for m in each]
    ttft = sorted(s.ttft_s for s in samples if s.ttft_s is not None)
    span_s = max(s.planned_s for s in samples) + DRAIN_S
    prompt = sum(s.prompt_tokens or 0 for s in samples)
    return Outcome(
        policy=case.policy,
        load=case.load,
        seed=case.seed,
        requests=len(samples),
        attainment=sum(everything) / len(everything),
        goodput=sum(everything) / span_s,
        classes={name: sum(each) / max(len(each), 1) for name, each in met.items()},
        ttft_p50_s=quantile(ttft, 0.5),
        ttft_p90_s=quantile(ttft, 0.9),
        hit=sum(s.cached_tokens or 0 for s in samples) / max(prompt, 1),
        source=source,
    )


def rows(outcomes: Iterable[Outcome], policies: Iterable[str]) -> Iterator[tuple[object, ...]]:
    """A line per policy: medians over the seeds."""
    found = list(outcomes)
    for policy in policies:
        mine = [o for o in found if o.policy == policy]
        figures = [(o.attainment, o.goodput, *o.classes.values(), o.ttft_p50_s, o.ttft_p90_s, o.hit) for o in mine]
        medians = (report.median(column) for column in zip(*figures, strict=True))
        yield (policy, *medians, ",".join(sorted({o.source for o in mine})))


def arguments() -> argparse.Namespace:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument("--trace", help="Mooncake JSONL or Azure CSV")
    parser.add_argument("--limit", type=int, default=1200, help="requests per run")
    parser.add_argument("--loads", type=lambda text: [float(x) for x in text.split(",")], default=None)
    parser.add_argument("--preset", default="llama-3.1-8b/h100")
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3, help="cold starts, each on another window")
    parser.add_argument("--policies", type=lambda text: text.split(","), default=[*POLICIES, *HARDENED])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.loads is None:
        args.loads = [1.0, 1.5, 2.0] if args.trace else [1.5, 2.5, 3.5]
    if args.smoke:
        args.limit, args.loads, args.seeds, args.policies = 240, args.loads[1:2], 1, ["objectives", "token-load"]
    return args


def main() -> None:
    args = arguments()
    cases = [
        Case(
            policy=policy, seed=seed, load=load, preset=args.preset, engines=args.engines, limit=args.limit,
            trace=args.trace,
        )
        for load in args.loads for policy in args.policies for seed in range(1, 1 + args.seeds)
    ]  # fmt: skip
    with ProcessPoolExecutor(args.workers) as executor:
        outcomes = list(executor.map(run, cases))
    columns = ("policy", "attainment", "goodput/s", *CLASSES, "TTFT p50 s", "p90 s", "hit", "believed at the end")
    for load in args.loads:
        title = f"{args.engines} x {args.preset}, load {load:g}: medians of {args.seeds} cold starts"
        report.table(title, columns, rows((o for o in outcomes if o.load == load), args.policies))
    report.save(args.json, outcomes)


if __name__ == "__main__":
    main()
