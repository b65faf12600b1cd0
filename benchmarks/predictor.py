"""How well are TTFT and ITL predicted, from how few requests, and at what price?

Virtual time: the real router under its default policy over simulated engines, cold at the start. Every prediction is made at dispatch and
held against its outcome; the first `AFTER` requests are not counted. Side by side on the same requests: the shadow, the closed form, and
gradient-boosted trees on the features that llm-d's predictor uses (LightGBM, trained again every 100 requests on all that ended before).

    python -m benchmarks.predictor [--requests 1500] [--json FILE]
"""

import time
from collections.abc import Iterator
from itertools import islice
from random import Random
from statistics import median

from msgspec import Struct, structs

from beaconry.config.gateway import Deadlines, Health, Retry
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.presets import variant
from beaconry.engine_model.step_time import StepTime
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.router.caches import Caches
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.sim.fleet import Fleet
from beaconry.values.candidate import Candidate, Forecast
from beaconry.values.endpoint import Endpoint
from beaconry.values.request import Request, Usage
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.request import Message, PlannedRequest, Span, Turn
from benchmarks import report

AFTER = 100
"""Requests that only teach."""


class Setup(Struct, frozen=True, kw_only=True):
    """A workload on a fleet."""

    preset: str
    rate: float
    """Conversations opened per second."""
    prompt_tokens: int
    """Median of a log-normal distribution, sigma 1."""
    output_tokens: int
    """Median of a log-normal distribution, sigma 0.8."""
    turns: int = 1
    """Mean number of a conversation's turns; later ones find the earlier ones cached."""
    engines: int = 2
    known: bool = True
    """The endpoints name their variant, so that data sheets give a first guess."""
    budget: int = 8192
    noise: float = 0.03
    slow: float = 1.0
    """Times of the first engine over the others'."""


SETUPS = {
    "8B/H100, light": Setup(preset="llama-3.1-8b/h100", rate=6, prompt_tokens=1000, output_tokens=150),
    "8B/H100, busy": Setup(preset="llama-3.1-8b/h100", rate=18, prompt_tokens=1000, output_tokens=150),
    "8B/H100, near saturation": Setup(preset="llama-3.1-8b/h100", rate=26, prompt_tokens=1000, output_tokens=150),
    "8B/H100, long prompts": Setup(preset="llama-3.1-8b/h100", rate=1.6, prompt_tokens=7000, output_tokens=300),
    "8B/H100, conversations": Setup(preset="llama-3.1-8b/h100", rate=4, prompt_tokens=1500, output_tokens=150, turns=4),
    "32B/2xH100, busy": Setup(preset="qwen3-32b/h100x2", rate=7, prompt_tokens=1000, output_tokens=150),
    "32B/2xH100, unknown": Setup(preset="qwen3-32b/h100x2", rate=7, prompt_tokens=1000, output_tokens=150, known=False),
    "70B FP8/4xH100, conversations": Setup(
        preset="llama-3.1-70b-fp8/h100x4", rate=1.5, prompt_tokens=1500, output_tokens=150, turns=4
    ),
    "8B/L40S, unknown": Setup(preset="llama-3.1-8b/l40s", rate=3, prompt_tokens=800, output_tokens=150, known=False),
    "120B MoE/H200, busy": Setup(preset="gpt-oss-120b/h200", rate=14, prompt_tokens=1000, output_tokens=150),
    "8B/H100, one twice as slow": Setup(
        preset="llama-3.1-8b/h100", rate=10, prompt_tokens=1000, output_tokens=150, slow=2.0, engines=3
    ),
    "8B/A100, budget 2048 not told": Setup(
        preset="llama-3.1-8b/a100", rate=6, prompt_tokens=1000, output_tokens=150, budget=2048
    ),
}


class Row(Struct):
    """One request: what was known at dispatch, what was predicted, what came."""

    features: list[float]
    forecast: Forecast
    closed_ttft_s: float
    closed_itl_s: float
    dispatched_s: float
    first_s: float = 0.0
    ttft_s: float = 0.0
    itl_s: float = 0.0


class Recorder(Forecasts):
    """Notes what is predicted beside what came of it."""

    def __init__(self, rates: RateBook) -> None:
        super().__init__(rates)
        self.rows: dict[int, Row] = {}
        self.forecast_cpu_s = 0.0
        self.events_cpu_s = 0.0

    def dispatched(self, leg: int, request: Request, candidate: Candidate, now_s: float) -> None:
        """Predict and note."""
        began = time.process_time()
        forecast = self.forecast(request, candidate, now_s)
        middle = time.process_time()
        super().dispatched(leg, request, candidate, now_s)
        self.forecast_cpu_s += middle - began
        self.events_cpu_s += time.process_time() - middle
        closed = self.predict(request, candidate)
        self.rows[leg] = Row(_features(request, candidate), forecast, closed.ttft_s, closed.itl_s, now_s)

    def first_byte(self, leg: int, now_s: float) -> None:
        """Note the TTFT."""
        began = time.process_time()
        super().first_byte(leg, now_s)
        self.events_cpu_s += time.process_time() - began
        row = self.rows[leg]
        row.first_s, row.ttft_s = now_s, now_s - row.dispatched_s

    def ended(self, leg: int, usage: Usage | None, now_s: float, *, finished: bool) -> None:
        """Note the mean ITL."""
        began = time.process_time()
        super().ended(leg, usage, now_s, finished=finished)
        self.events_cpu_s += time.process_time() - began
        row = self.rows[leg]
        if usage is not None and usage.completion_tokens > 1:
            row.itl_s = (now_s - row.first_s) / (usage.completion_tokens - 1)


def _features(request: Request, candidate: Candidate) -> list[float]:
    """What llm-d's predictor is told: KV usage and queue as scraped, our own counts, prompt length, and what of it is cached."""
    sample = candidate.sample
    hit = candidate.matched_tokens / max(request.prompt_tokens, 1)
    waiting = 0 if sample is None else sample.waiting or 0
    return [
        float(waiting > 0),
        0.0 if sample is None else sample.kv_usage or 0.0,
        request.prompt_tokens,
        waiting,
        0 if sample is None else sample.running or 0,
        candidate.prefill_tokens,
        candidate.prefilling,
        candidate.decoding,
        hit,
        request.prompt_tokens - candidate.matched_tokens,
        int(4 * hit),
    ]


def openings(setup: Setup, rng: Random) -> Iterator[PlannedRequest]:
    """Conversations of log-normal lengths, each on its own text."""
    spans = iter(range(1, 1 << 40))

    def length(median_tokens: float, sigma: float, most: int) -> int:
        return max(2, min(int(rng.lognormvariate(0.0, sigma) * median_tokens), most))

    def turn() -> Turn:
        user = Span(id=next(spans), tokens=length(setup.prompt_tokens, 1.0, 60_000))
        answer = length(setup.output_tokens, 0.8, 2000)
        return Turn(user=user, output_tokens=answer, reply_id=next(spans), think_s=rng.expovariate(0.5))

    for number, at_s in enumerate(poisson(setup.rate, rng)):
        first, *later = (turn() for _ in range(1 + min(int(rng.expovariate(1.0 / max(setup.turns - 1, 1e-9))), 12)))
        yield PlannedRequest(
            at_s=at_s,
            messages=(Message(role="user", spans=(first.user,)),),
            output_tokens=first.output_tokens,
            reply_id=first.reply_id,
            session=str(number),
            later=tuple(later),
        )


def record(setup: Setup, requests: int, seed: int) -> Recorder:
    """One cold start: `requests` requests and what was predicted for them."""
    rates = RateBook()
    recorder = Recorder(rates)
    router = Router(
        scheduler=make_scheduler("expected-cost", rates, Registry.installed()),
        caches=Caches(ApproximateIndex(), ExactIndex()),
        rates=rates,
        rng=Random(seed),
        deadlines=Deadlines(),
        retry=Retry(),
        health=Health(),
        forecasts=recorder,
    )
    preset = variant(setup.preset)
    settings = structs.replace(preset.settings(), step_noise=setup.noise, max_num_batched_tokens=setup.budget)
    engines, endpoints = {}, {}
    for i in range(setup.engines):
        name = f"engine-{i}"
        timing = _Slower(preset.step_time(), setup.slow if i == 0 else 1.0)
        engines[name] = Engine(settings, timing, rng=Random(seed + i))
        label = setup.preset if setup.known else "default"
        endpoints[name] = Endpoint(name=name, host="sim", port=1, model="m", variant=label)
    plan = Plan(islice(openings(setup, Random(seed)), requests // setup.turns))
    Fleet(router, engines, endpoints).run(plan, until_s=1e6)
    return recorder


class _Slower:
    """A step time, stretched."""

    def __init__(self, inner: StepTime, factor: float) -> None:
        self._inner = inner
        self._factor = factor

    def seconds(self, sequences: int, context: float, prefill: int, attended: float) -> float:
        return self._factor * self._inner.seconds(sequences, context, prefill, attended)


class Accuracy(Struct):
    """One predictor on one workload."""

    setup: str
    predictor: str
    requests: int
    ttft_median: float
    ttft_mape: float
    itl_median: float
    itl_mape: float
    coverage: float | None
    """Share of TTFTs below the upper end of the predicted range."""
    itl_coverage: float | None
    us: float | None
    """CPU per prediction, microseconds."""
    events_us: float | None = None


def errors(predicted: list[float], actual: list[float]) -> tuple[float, float]:
    """Median and mean of |predicted / actual - 1|."""
    all_errors = [abs(p / a - 1.0) for p, a in zip(predicted, actual, strict=True)]
    return median(all_errors), sum(all_errors) / len(all_errors)


def measure(name: str, setup: Setup, requests: int, seed: int) -> list[Accuracy]:
    """All predictors on one workload."""
    recorder = record(setup, requests, seed)
    everything = [row for row in recorder.rows.values() if row.ttft_s and row.itl_s]
    rows = everything[AFTER:]
    ttft, itl = [r.ttft_s for r in rows], [r.itl_s for r in rows]
    found = []
    shadow_ttft, shadow_itl = (
        errors([r.forecast.ttft_s for r in rows], ttft),
        errors([r.forecast.itl_s for r in rows], itl),
    )
    covered = sum(r.ttft_s <= r.forecast.ttft_high_s for r in rows) / len(rows)
    itl_covered = sum(r.itl_s <= r.forecast.itl_high_s for r in rows) / len(rows)
    each = 1e6 / len(recorder.rows)
    found.append(
        Accuracy(name, "shadow", len(rows), *shadow_ttft, *shadow_itl, covered, itl_covered,
                 recorder.forecast_cpu_s * each, recorder.events_cpu_s * each)
    )  # fmt: skip
    closed_ttft, closed_itl = errors([r.closed_ttft_s for r in rows], ttft), errors([r.closed_itl_s for r in rows], itl)
    found.append(Accuracy(name, "closed form", len(rows), *closed_ttft, *closed_itl, None, None, None))
    return found


def main() -> None:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--setup", default="", help="only workloads whose name contains this")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.smoke:
        args.requests, args.setup = 300, "light"
    found: list[Accuracy] = []
    for name, setup in SETUPS.items():
        if args.setup in name:
            found += measure(name, setup, args.requests, args.seed)
    columns = (
        "workload",
        "predictor",
        "TTFT median err",
        "MAPE",
        "ITL median err",
        "MAPE",
        "coverage",
        "ITL cov",
        "us",
        "events us",
    )
    report.table("errors", columns, [
        (a.setup, a.predictor, a.ttft_median, a.ttft_mape, a.itl_median, a.itl_mape, a.coverage, a.itl_coverage, a.us, a.events_us)
        for a in found
    ])  # fmt: skip
    report.save(args.json, found)


if __name__ == "__main__":
    main()
