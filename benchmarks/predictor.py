"""How well are TTFT and ITL predicted, from how few requests, and at what price?

Virtual time: the real router under its default policy over simulated engines, cold at the start. Every prediction is made at dispatch and
held against its outcome; the first `AFTER` requests are not counted, nor those that keep the load up until the counted ones have ended.
Side by side on the same requests: the shadow, the closed form, and gradient-boosted trees on the features that llm-d's predictor uses
(LightGBM with its settings, trained again every 100 requests on all that had ended before; on times as llm-d ships it, and on
their logarithms). The trees need `pip install 'beaconry[bench]'`.

How much of an ITL nobody can tell at dispatch shows beside them: "all arrivals known" are the shadow's step times as of dispatch,
applied to the work that the steps of the reply turned out to have, later arrivals' prompts included.

    python -m benchmarks.predictor [--requests 1500] [--json FILE]
"""

import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from operator import attrgetter, mul
from random import Random
from statistics import median

from msgspec import Struct, structs

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.presets import variant
from beaconry.engine_model.step_time import StepTime
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.rates import RateBook
from beaconry.latency.step_fit import STEPS, Work
from beaconry.plugins.registry import Registry
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.sim.fleet import Fleet
from beaconry.values.candidate import Candidate, Forecast
from beaconry.values.endpoint import Endpoint
from beaconry.values.request import Request, Usage
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.request import Message, PlannedRequest, Span, Turn
from benchmarks import report
from benchmarks.virtual_router import virtual_router

AFTER = 100
"""Requests that only teach."""
LASTING = 1.25
"""Requests sent over those counted."""


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
    step_s: Work
    """The engine's step times as believed at dispatch."""
    dispatched_s: float
    first_s: float = 0.0
    ended_s: float = 0.0
    ttft_s: float = 0.0
    itl_s: float = 0.0
    work: Work = []
    """What the engine had done at the first byte."""
    known_itl_s: float = 0.0
    """Predicted with all later arrivals known."""


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
        shadow, fit = self._open[leg].twin.shadow, self._open[leg].twin.book.fit
        step_s = [shadow.factor * second for second in fit.coefficients]
        self.rows[leg] = Row(_features(request, candidate), forecast, closed.ttft_s, closed.itl_s, step_s, now_s)

    def first_byte(self, leg: int, now_s: float) -> None:
        """Note the TTFT."""
        began = time.process_time()
        super().first_byte(leg, now_s)
        self.events_cpu_s += time.process_time() - began
        row = self.rows[leg]
        row.first_s, row.ttft_s = now_s, now_s - row.dispatched_s
        row.work = self._open[leg].twin.shadow.work.copy()

    def ended(self, leg: int, usage: Usage | None, now_s: float, *, finished: bool) -> None:
        """Note the mean ITL."""
        shadow = self._open[leg].twin.shadow
        began = time.process_time()
        super().ended(leg, usage, now_s, finished=finished)
        self.events_cpu_s += time.process_time() - began
        row = self.rows[leg]
        row.ended_s = now_s
        if usage is not None and usage.completion_tokens > 1:
            row.itl_s = (now_s - row.first_s) / (usage.completion_tokens - 1)
            work = [after - before for after, before in zip(shadow.work, row.work, strict=True)]
            row.known_itl_s = sum(map(mul, row.step_s, work)) / max(work[STEPS], 1.0)


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
    """One cold start: `requests` requests, `LASTING` times as many sent, and what was predicted for them."""
    rates = RateBook()
    recorder = Recorder(rates)
    scheduler = make_scheduler("expected-cost", rates, Registry.installed())
    router = virtual_router(scheduler, rates, seed, forecasts=recorder)
    preset = variant(setup.preset)
    settings = structs.replace(preset.settings(), step_noise=setup.noise, max_num_batched_tokens=setup.budget)
    engines, endpoints = {}, {}
    for i in range(setup.engines):
        name = f"engine-{i}"
        timing = _Slower(preset.step_time(), setup.slow if i == 0 else 1.0)
        engines[name] = Engine(settings, timing, rng=Random(seed + i))
        label = setup.preset if setup.known else "default"
        endpoints[name] = Endpoint(name=name, host="sim", port=1, model="m", variant=label)
    plan = Plan(islice(openings(setup, Random(seed)), int(LASTING * requests) // setup.turns))
    Fleet([router], engines, endpoints).run(plan, until_s=1e6)
    return recorder


class _Slower:
    """A step time, stretched."""

    def __init__(self, inner: StepTime, factor: float) -> None:
        self._inner = inner
        self._factor = factor

    def seconds(self, sequences: int, context: float, prefill: int, attended: float) -> float:
        return self._factor * self._inner.seconds(sequences, context, prefill, attended)


class Accuracy(Struct, kw_only=True):
    """One predictor on one workload."""

    setup: str
    predictor: str
    requests: int
    ttft_median: float | None
    """Median of |predicted / actual - 1|; likewise below."""
    ttft_mape: float | None
    itl_median: float
    itl_mape: float
    mean_itl: float
    """Mean of the predicted ITLs over the mean of the actual ones, less 1; of the shadow's, those that are expected on average."""
    coverage: float | None = None
    """Share of TTFTs below the upper end of the predicted range."""
    itl_coverage: float | None = None
    us: float | None = None
    """CPU per prediction, microseconds."""
    events_us: float | None = None
    """CPU per request for following it and learning from it, a prediction at dispatch included."""


def errors(predicted: list[float], actual: list[float]) -> tuple[float, float]:
    """Median and mean of |predicted / actual - 1|."""
    all_errors = [abs(p / a - 1.0) for p, a in zip(predicted, actual, strict=True)]
    return median(all_errors), sum(all_errors) / len(all_errors)


def trees(everything: list[Row], *, log_target: bool) -> tuple[list[float], list[float], float]:
    """TTFT and ITL predicted by boosted trees for all rows after the first `AFTER`, and the CPU seconds that predicting took."""
    from benchmarks.boosted_trees import Trees  # noqa: PLC0415 an extra: everything else here runs without

    found: tuple[list[float], list[float]] = ([], [])
    cpu_s = 0.0
    for start in range(AFTER, len(everything), 100):
        block = everything[start : start + 100]
        known = [row for row in everything[:start] if row.ended_s <= block[0].dispatched_s]
        for column, read in zip(found, (attrgetter("ttft_s"), attrgetter("itl_s")), strict=True):
            model = Trees([r.features for r in known], [read(r) for r in known], log_target=log_target)
            began = time.process_time()
            column.extend(model.predict([r.features for r in block]))
            cpu_s += time.process_time() - began
    return *found, cpu_s


def measure(name: str, setup: Setup, requests: int, seed: int) -> list[Accuracy]:
    """All predictors on one workload."""
    recorder = record(setup, requests, seed)
    everything = [row for row in recorder.rows.values() if row.ttft_s and row.itl_s][:requests]
    rows = everything[AFTER:]
    each = 1e6 / len(recorder.rows)
    forecasts = [r.forecast for r in rows]
    found = [
        _accuracy(
            name, "shadow", rows, [f.ttft_s for f in forecasts], [f.itl_s for f in forecasts],
            coverage=sum(r.ttft_s <= r.forecast.ttft_high_s for r in rows) / len(rows),
            itl_coverage=sum(r.itl_s <= r.forecast.itl_high_s for r in rows) / len(rows),
            us=recorder.forecast_cpu_s * each,
            events_us=recorder.events_cpu_s * each,
            mean_itl=_bias([f.itl_mean_s for f in forecasts], rows),
        ),
        _accuracy(name, "all arrivals known", rows, None, [r.known_itl_s for r in rows]),
        _accuracy(name, "closed form", rows, [r.closed_ttft_s for r in rows], [r.closed_itl_s for r in rows]),
    ]  # fmt: skip
    if find_spec("lightgbm"):
        for predictor, log_target in (("trees", False), ("trees, log", True)):
            ttft, itl, cpu_s = trees(everything, log_target=log_target)
            found.append(_accuracy(name, predictor, rows, ttft, itl, us=1e6 * cpu_s / len(rows)))
    return found


def _accuracy(
    setup: str, predictor: str, rows: list[Row], ttft: list[float] | None, itl: list[float], **more: float
) -> Accuracy:
    ttft_median, ttft_mape = (None, None) if ttft is None else errors(ttft, [r.ttft_s for r in rows])
    itl_median, itl_mape = errors(itl, [r.itl_s for r in rows])
    measured = {"mean_itl": _bias(itl, rows), **more}
    return Accuracy(
        setup=setup,
        predictor=predictor,
        requests=len(rows),
        ttft_median=ttft_median,
        ttft_mape=ttft_mape,
        itl_median=itl_median,
        itl_mape=itl_mape,
        **measured,
    )


def _bias(itl: list[float], rows: list[Row]) -> float:
    return sum(itl) / sum(r.itl_s for r in rows) - 1.0


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
        "predictor", "TTFT median %", "MAPE %", "ITL median %", "MAPE %", "mean ITL %", "coverage %", "ITL %", "CPU us", "events us",
    )  # fmt: skip
    for name in dict.fromkeys(a.setup for a in found):
        lines = [
            (
                a.predictor,
                *(None if x is None else 100 * x for x in (
                    a.ttft_median, a.ttft_mape, a.itl_median, a.itl_mape, a.mean_itl, a.coverage, a.itl_coverage,
                )),
                a.us,
                a.events_us,
            )
            for a in found if a.setup == name
        ]  # fmt: skip
        report.table(f"{name}: errors of {found[0].requests} predictions or so", columns, lines)
    report.save(args.json, found)


if __name__ == "__main__":
    main()
