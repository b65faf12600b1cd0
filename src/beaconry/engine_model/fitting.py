"""The step time of an engine nobody can look into, from when its requests were sent, began and ended.

The requests are replayed against the engine model, with step times guessed at first. Each replayed latency is then a sum of known features
(`exposure.py`): so many steps, so many prompt tokens, so much context read. Setting these sums equal to the measured latencies gives linear
equations for the coefficients, and better coefficients a better replay; after a few rounds neither changes any more. Errors count
relative to the latency, and those far beyond the usual one (a collector, a foreign load) count less (Huber).

What a run cannot tell stays unknown: if all prompts are equally long, the time per prompt token and that per prompt are one. `Fit.terms`
has each coefficient with its standard error, and `warnings` says what to vary.
"""

import math
from collections.abc import Sequence
from statistics import median

from msgspec import Struct

from beaconry.engine_model.exposure import Exposure, Rig
from beaconry.engine_model.least_squares import Equation, Solution, solve
from beaconry.engine_model.sequence import Sequence as EngineSequence
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.values.errors import OperatorError

ROUNDS = 24
FEWEST = 20
"""Requests, below which seven unknowns cannot be expected to be found."""
TTFT_DEVIATION, DECODE_DEVIATION = 0.10, 0.05
"""Relative deviations that the equations start from: a TTFT is one step or two, a decode phase the mean of many."""
HUBER = 1.5
"""Usual deviations beyond which an error counts linearly and not squared."""
TERMS = (
    "per step",
    "per sequence",
    "per context token",
    "per prompt token",
    "per step with prompts",
    "per attended token",
    "per request",
)
"""As `LinearStepTime.features`, and the time per request last."""
REMEDIES = (
    "",
    "vary the rate, so that few and many requests run at once",
    "vary the lengths of prompts and answers, with many running at once",
    "vary the lengths of prompts",
    "vary the lengths of prompts, and let some arrive alone and some together",
    "send some long prompts (thousands of tokens)",
    "send some requests with short prompts to an idle engine",
)
"""By term: what makes a run tell it."""
VAGUE, MOST = 0.1, 0.9
"""A term is not known if its standard error would change more than a tenth of the latencies by more than a tenth."""


class Served(Struct, frozen=True, kw_only=True):
    """One request as seen from outside. Times in seconds from any one origin."""

    engine: str
    """Which of several equal engines served it."""
    sent_s: float
    first_s: float
    end_s: float
    prompt_tokens: int
    """Prompt tokens to be computed: without those found in a cache."""
    output_tokens: int

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_s - self.sent_s

    @property
    def streamed(self) -> bool:
        """Its tokens came one after the other, so that their pace says something."""
        return self.output_tokens > 1 and self.end_s > self.first_s

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first; 0 for a single token."""
        return (self.end_s - self.first_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


class Term(Struct, frozen=True, kw_only=True):
    """One coefficient."""

    name: str
    value: float
    error: float
    """Standard error; infinite where nothing in the run depends on it."""


class Fit(Struct, frozen=True, kw_only=True):
    """What was found, and how good it is. Errors are relative."""

    step_time: LinearStepTime
    request_s: float
    """Per request, outside of steps."""
    terms: tuple[Term, ...]
    requests: int
    most_running: int
    """Decoding at once, as replayed."""
    longest_prompt: int
    ttft_error: float
    """Median absolute error of single TTFTs in a replay."""
    tpot_error: float
    """The same of times per output token."""
    warnings: tuple[str, ...] = ()


class Replayed(Struct, frozen=True, kw_only=True):
    """A request, and what the engine model made of it."""

    served: Served
    exposure: Exposure
    request_s: float

    @property
    def ttft_s(self) -> float:
        """Time to first token, as replayed."""
        return self.exposure.first_s - self.exposure.arrived_s + self.request_s

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first, as replayed."""
        after_first = self.served.output_tokens - 1
        return (self.exposure.end_s - self.exposure.first_s) / after_first if after_first else 0.0


def fit(requests: Sequence[Served], settings: EngineSettings) -> Fit:
    """Return the step time that explains the requests best. OperatorError for too few of them, or if one cannot fit into the engine."""
    _validate(requests, settings)
    step_time, request_s = _first_guess(requests), 0.0
    best: tuple[float, list[Replayed], LinearStepTime, float] | None = None
    for _ in range(ROUNDS):
        replayed = replay(requests, settings, step_time, request_s)
        loss = _loss(replayed)
        if best is None or loss < best[0]:
            best = (loss, replayed, step_time, request_s)
        found = _refine(replayed).coefficients
        # Half way only: in a busy run a step time that is a little off makes queues that are far off.
        *coefficients, request_s = (
            (old + new) / 2 for old, new in zip((*step_time.coefficients, request_s), found, strict=True)
        )
        step_time = LinearStepTime.of(coefficients)
    assert best is not None
    _, replayed, step_time, request_s = best
    return _judge(replayed, step_time, request_s)


def replay(
    requests: Sequence[Served], settings: EngineSettings, step_time: LinearStepTime, request_s: float
) -> list[Replayed]:
    """Run the requests against engine models, each at its time and on its engine; they come back in the order of `requests`."""
    exposures: dict[str, Exposure] = {}
    by_engine: dict[str, list[tuple[float, int, Served]]] = {}
    for number, served in enumerate(requests):
        by_engine.setdefault(served.engine, []).append((served.sent_s + request_s, number, served))
    for arrivals in by_engine.values():
        rig = Rig(settings, step_time, lambda one: exposures.update({one.id: one}))
        for at_s, number, served in sorted(arrivals, key=lambda arrival: arrival[:2]):
            rig.advance(at_s)
            rig.submit(EngineSequence(str(number), served.prompt_tokens, served.output_tokens))
        rig.finish()
    return [
        Replayed(served=served, exposure=exposures[str(number)], request_s=request_s)
        for number, served in enumerate(requests)
    ]


def _validate(requests: Sequence[Served], settings: EngineSettings) -> None:
    streamed = sum(one.streamed and one.ttft_s > 0.0 for one in requests)
    if streamed < FEWEST:
        raise OperatorError(
            f"{streamed} streamed answers are too few to tell what a step is made of; give runs with {FEWEST} or more"
        )
    longest = max(one.prompt_tokens + one.output_tokens for one in requests)
    memory = settings.num_blocks * settings.block_tokens
    if longest > memory:
        raise OperatorError(
            f"a request of {longest} tokens was served, and {settings.num_blocks} blocks of {settings.block_tokens} tokens hold "
            f"{memory}: give the engine's own --blocks and --block-size"
        )


def _first_guess(requests: Sequence[Served]) -> LinearStepTime:
    """A step as long as the quickest tokens came, and prompts as fast as the quickest first tokens."""
    paces = sorted(served.tpot_s for served in requests if served.streamed)
    fixed_s = paces[len(paces) // 20]
    rates = sorted(served.ttft_s / served.prompt_tokens for served in requests)
    return LinearStepTime(fixed_s=fixed_s, prefill_tps=1.0 / max(1e-9, rates[len(rates) // 20]))


def _equations(replayed: Sequence[Replayed]) -> list[tuple[Equation, float]]:
    """Per latency the equation, and the relative error that the replay has in it, in the deviations given."""
    found = []
    for one in replayed:
        served, exposure = one.served, one.exposure
        if served.ttft_s > 0.0:
            equation = Equation((*exposure.to_first, 1.0), served.ttft_s, TTFT_DEVIATION * served.ttft_s)
            found.append((equation, (one.ttft_s / served.ttft_s - 1.0) / TTFT_DEVIATION))
        if served.streamed:
            decode_s = served.end_s - served.first_s
            equation = Equation((*exposure.to_end, 0.0), decode_s, DECODE_DEVIATION * decode_s)
            found.append((equation, (one.tpot_s / served.tpot_s - 1.0) / DECODE_DEVIATION))
    return found


def _refine(replayed: Sequence[Replayed]) -> Solution:
    """Coefficients under which the replayed schedules would give the measured latencies."""
    found = _equations(replayed)
    usual = max(1e-6, 1.48 * median(abs(error) for _, error in found))
    weighted = []
    for equation, error in found:
        beyond = max(1.0, abs(error) / (HUBER * usual))
        weighted.append(Equation(equation.features, equation.value, equation.deviation * usual * math.sqrt(beyond)))
    return solve(weighted)


def _loss(replayed: Sequence[Replayed]) -> float:
    """Mean absolute error in deviations: what rounds are compared by."""
    errors = [abs(error) for _, error in _equations(replayed)]
    return sum(errors) / len(errors)


def _judge(replayed: Sequence[Replayed], step_time: LinearStepTime, request_s: float) -> Fit:
    solution = _refine(replayed)
    values = (*step_time.coefficients, request_s)
    terms = tuple(
        Term(name=name, value=value, error=error)
        for name, value, error in zip(TERMS, values, solution.errors, strict=True)
    )
    return Fit(
        step_time=step_time,
        request_s=request_s,
        terms=terms,
        requests=len(replayed),
        most_running=_most_running(replayed),
        longest_prompt=max(one.served.prompt_tokens for one in replayed),
        ttft_error=median(abs(one.ttft_s / one.served.ttft_s - 1.0) for one in replayed if one.served.ttft_s > 0.0),
        tpot_error=median(abs(one.tpot_s / one.served.tpot_s - 1.0) for one in replayed if one.served.streamed),
        warnings=tuple(_warnings(replayed, terms)),
    )


def _warnings(replayed: Sequence[Replayed], terms: Sequence[Term]) -> list[str]:
    """Terms whose error matters for the latencies of this run, and what would tell them."""
    found = []
    equations = [equation for equation, _ in _equations(replayed)]
    for column, (term, remedy) in enumerate(zip(terms, REMEDIES, strict=True)):
        shares = sorted(abs(equation.features[column]) / equation.value for equation in equations)
        never = not any(shares)
        if never or term.error * shares[int(MOST * len(shares))] > VAGUE:
            reason = "nothing depends on it" if never else "it cannot be told from the others"
            found.append(f"the time {term.name} is not known: {reason} in this run" + (f"; {remedy}" if remedy else ""))
    return found


def _most_running(replayed: Sequence[Replayed]) -> int:
    """On one engine, as replayed."""
    changes: dict[str, list[tuple[float, int]]] = {}
    for one in replayed:
        changes.setdefault(one.served.engine, []).extend([(one.exposure.first_s, 1), (one.exposure.end_s, -1)])
    most = 0
    for of_engine in changes.values():
        running = 0
        for _, change in sorted(of_engine):
            running += change
            most = max(most, running)
    return most
