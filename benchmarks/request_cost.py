"""What do flow control and prediction together add to a request's CPU time in the router?

Virtual time: the real router over eight model engines, the same requests for each way, in one process and in turns. CPU time is taken
around the router's `handle` alone, for every fact of a request's life, from arrival to end (scrapes left out). Four ways: with neither
(flow control off, and nobody has an objective, so nothing is forecast), with flow control alone, with both (every request has objectives
for TTFT and ITL, so engines are forecast for it, as many as can matter, and its leg is followed by a shadow), and with both where the
objectives are so tight that three engines have to be forecast for each. The first third of each run is not counted.

    python -m benchmarks.request_cost
    python -m benchmarks.request_cost --profile 64
"""

import cProfile
import gc
import pstats
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from random import Random

from msgspec import Struct, structs

from beaconry.apps.assemble import GC_THRESHOLDS, make_router
from beaconry.config.flow import Flow
from beaconry.config.gateway import GatewayConfig
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.presets import variant
from beaconry.router.effects import Effect
from beaconry.router.facts import Fact, HealthChecked, LoadSampled, RequestArrived
from beaconry.router.router import Router
from beaconry.sim.fleet import Fleet
from beaconry.values.endpoint import Endpoint
from beaconry.values.request import Request
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.request import PlannedRequest
from beaconry.workload.synthetic import Bounds, Shape, conversations
from benchmarks import report

ENGINES = 8
PRESET = "llama-3.1-8b/h100"
SHAPE = Shape(prompt_tokens=Bounds(low=200, high=1000), output_tokens=Bounds(low=50, high=250))
RATES = {1: 0.95, 64: 56.0, 256: 150.0}
"""Arrivals per second, by the number in flight that they lead to, roughly."""
OBJECTIVES: dict[str, dict[str, float]] = {
    "neither": {},
    "flow control": {},
    "both": {"slo_ttft_s": 5.0, "slo_itl_s": 0.1},
    "tight": {"slo_ttft_s": 0.05, "slo_itl_s": 0.008},
}
"""Of each request, by way."""
TARGET_US = 60.0


class Cost(Struct, frozen=True, kw_only=True):
    """CPU time of a request's whole life in the router, in microseconds: medians over the turns."""

    in_flight: float
    """On average, as it was."""
    neither_us: float
    flow_us: float
    both_us: float
    added_us: float
    """By flow control and prediction: median of the differences in each turn."""
    tight_added_us: float
    """The same where objectives are tight."""
    ratio: float
    """Of both to neither."""


class Meter:
    """Before the router: what its work on requests costs, once `counting`."""

    def __init__(self, router: Router, profile: cProfile.Profile | None = None) -> None:
        self._router = router
        self._profile = profile
        self.counting = False
        self.requests = 0
        self.seconds = 0.0

    def handle(self, fact: Fact, now_s: float) -> list[Effect]:
        """As the router's."""
        if not self.counting or isinstance(fact, LoadSampled | HealthChecked):
            return self._router.handle(fact, now_s)
        self.requests += isinstance(fact, RequestArrived)
        with self._profile or nullcontext():
            began = time.process_time()
            effects = self._router.handle(fact, now_s)
            self.seconds += time.process_time() - began
        return effects

    def check(self) -> None:
        """As the router's."""
        self._router.check()


def run(way: str, in_flight: int, requests: int, profile: cProfile.Profile | None = None) -> tuple[float, float]:
    """Microseconds per request, and how many were in flight on average."""
    meter = Meter(make_router(GatewayConfig(flow=Flow(enabled=way != "neither"))), profile)

    def mark(planned: PlannedRequest, request: Request) -> Request:
        meter.counting = planned.index >= requests // 3
        number = planned.index
        return structs.replace(request, tenant=f"t{number % 10}", priority=number % 3 - 1, **OBJECTIVES[way])

    preset = variant(PRESET)
    names = [f"engine-{i}" for i in range(ENGINES)]
    fleet = Fleet(
        [meter],  # type: ignore[list-item]
        {name: Engine(preset.settings(16), preset.step_time(), rng=Random(i)) for i, name in enumerate(names)},
        {name: Endpoint(name=name, host="sim", port=1, model="m", variant=PRESET) for name in names},
        mark=mark,
    )
    plan = Plan(islice(conversations(SHAPE, poisson(RATES[in_flight], Random(1)), Random(2)), requests))
    gc.collect()
    samples = fleet.run(plan, until_s=1e6)
    span_s = max(sample.planned_s for sample in samples)
    return 1e6 * meter.seconds / meter.requests, sum(sample.e2e_s for sample in samples) / span_s


def measure(in_flight: int, requests: int, turns: int) -> Cost:
    """Each way in each turn."""
    each = [{way: run(way, in_flight, requests) for way in OBJECTIVES} for _ in range(turns)]

    def middle(read: Callable[[dict[str, tuple[float, float]]], float]) -> float:
        return report.median(map(read, each)) or 0.0

    return Cost(
        in_flight=middle(lambda turn: turn["both"][1]),
        neither_us=middle(lambda turn: turn["neither"][0]),
        flow_us=middle(lambda turn: turn["flow control"][0]),
        both_us=middle(lambda turn: turn["both"][0]),
        added_us=middle(lambda turn: turn["both"][0] - turn["neither"][0]),
        tight_added_us=middle(lambda turn: turn["tight"][0] - turn["neither"][0]),
        ratio=middle(lambda turn: turn["both"][0] / turn["neither"][0]),
    )


def main() -> None:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument(
        "--profile", type=int, choices=RATES, help="show where the time goes with so many in flight, and stop"
    )
    args = parser.parse_args()
    gc.set_threshold(*GC_THRESHOLDS)  # as in a gateway
    if args.profile is not None:
        profile = cProfile.Profile()
        run("both", args.profile, 3000, profile)
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    costs = [measure(in_flight, 300 if args.smoke else 2000, 1 if args.smoke else 5) for in_flight in RATES]
    columns = ("in flight", "neither, us", "flow control", "and prediction", "added, us", "ratio", "added where tight")
    rows = [(c.in_flight, c.neither_us, c.flow_us, c.both_us, c.added_us, c.ratio, c.tight_added_us) for c in costs]
    report.table(f"Router CPU per request; {TARGET_US:g} us may be added", columns, rows)
    report.save(args.json, costs)


if __name__ == "__main__":
    main()
