"""How fast a variant prefills and decodes, learnt from the legs it has served; and from that, predicted latencies.

Two straight lines per variant, each fitted with forgetting: TTFT against the tokens to prefill (its own and those ahead of it),
and inter-token time against the batch. A third figure, how many sequences an engine runs at once, comes from scraped
running/waiting counts, or from legs that queued. A per-endpoint factor follows single slow or fast engines.

Robust by construction: every line starts from a prior worth a few observations; an observation counts as at most three times, at
least a third, of what was expected, so an outlier moves little and a real change is followed geometrically; waiting only ever adds to
TTFT, so what comes late counts for less than what comes early. Deterministic, with constant memory per variant and endpoint.
"""

from msgspec import Struct

from beaconry.values.candidate import Candidate, Prediction
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.request import Request

_FORGET = 0.99
"""Weight of the past per observation: about the last hundred legs count."""
_CLIP = 3.0
_LATE_WEIGHT = 0.25
"""Weight of a TTFT above the expected one: part of it may be waiting that the model does not know of."""
_FACTOR_GAIN = 0.05


class LegTimes(Struct, frozen=True, kw_only=True):
    """What one completed leg tells about its engine."""

    now_s: float
    """When it ended."""
    ttft_s: float | None
    """Dispatch to first byte; None if the answer was not a stream, whose first byte says nothing about prefill."""
    decode_s: float
    """First byte to end."""
    uncached_tokens: int
    """Prompt tokens that the engine computed."""
    tokens_ahead: int
    """Uncached tokens of other requests in prefill there at dispatch."""
    in_flight: int
    """Requests there at dispatch, this one not included."""
    batch: float
    """Mean number of requests in decode during the leg's own decode, itself included."""
    output_tokens: int
    prefilled_tokens: int
    """Uncached prompt tokens of others that were prefilled there during the leg's decode."""


class Rates(Struct, frozen=True, kw_only=True):
    """The learnt figures of one variant."""

    base_s: float
    """TTFT of an empty prompt on an idle engine."""
    token_s: float
    """Seconds of prefill per uncached token."""
    itl_s: float
    """Inter-token time of a batch of none."""
    itl_batch_s: float
    """What each sequence in the batch adds to it."""
    slots: float
    """Sequences that run at once; infinite until seen otherwise."""
    decode_s: float
    """Mean time from first token to last."""
    output_tokens: float
    """Mean output length."""


class _Line:
    """y = intercept + slope * x over decaying sums, both kept non-negative; starts as a prior of `weight` observations."""

    __slots__ = ("_n", "_x", "_xx", "_xy", "_y", "intercept", "slope")

    def __init__(self, intercept: float, slope: float, spread: float, weight: float) -> None:
        """`spread`: the prior is worth `weight` observations, evenly at x = 0 and x = spread."""
        self.intercept, self.slope = intercept, slope
        self._n, self._x, self._xx = weight, weight * spread / 2, weight * spread * spread / 2
        self._y = weight * (intercept + slope * spread / 2)
        self._xy = self._x * (intercept + slope * spread)

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x

    def observe(self, x: float, y: float, weight: float = 1.0) -> None:
        expected = self.at(x)
        y = min(max(y, expected / _CLIP), expected * _CLIP)
        self._n = self._n * _FORGET + weight
        self._x = self._x * _FORGET + weight * x
        self._xx = self._xx * _FORGET + weight * x * x
        self._y = self._y * _FORGET + weight * y
        self._xy = self._xy * _FORGET + weight * x * y
        mean_x, mean_y = self._x / self._n, self._y / self._n
        variance = self._xx / self._n - mean_x * mean_x
        if variance > 1e-9 * (1 + mean_x * mean_x):
            slope = (self._xy / self._n - mean_x * mean_y) / variance
            most = mean_y / mean_x if mean_x > 0 else 0.0  # a steeper line would begin below zero
            self.slope = min(max(slope, 0.0), most)
        self.intercept = max(mean_y - self.slope * mean_x, 0.0)


class _Variant:
    """What is learnt of one variant."""

    __slots__ = ("decode_s", "decoding", "output_tokens", "prefill", "slots")

    def __init__(self) -> None:
        self.prefill = _Line(0.04, 1e-4, 4000.0, 4.0)  # 10,000 tokens/s: an 8-30 B model on one recent GPU
        self.decoding = _Line(0.015, 2e-4, 32.0, 4.0)
        self.slots = float("inf")
        self.decode_s = 2.0
        self.output_tokens = 128.0


class RateBook:
    """The rates of all variants, and how endpoints deviate from theirs. A PredictorSource."""

    def __init__(self) -> None:
        self._variants: dict[str, _Variant] = {}
        self._factors: dict[str, float] = {}  # endpoint -> its times over its variant's, 0.25..8; absent = 1

    def rates(self, variant: str) -> Rates:
        """What is believed of `variant` now."""
        known = self._variant(variant)
        return Rates(
            base_s=known.prefill.intercept,
            token_s=known.prefill.slope,
            itl_s=known.decoding.intercept,
            itl_batch_s=known.decoding.slope,
            slots=known.slots,
            decode_s=known.decode_s,
            output_tokens=known.output_tokens,
        )

    def factor(self, endpoint: str) -> float:
        """How much slower (above 1) or faster this endpoint is than its variant."""
        return self._factors.get(endpoint, 1.0)

    def predict(self, request: Request, candidate: Candidate) -> Prediction:
        """TTFT and ITL of `request` on `candidate`, in seconds."""
        known = self._variant(candidate.endpoint.variant)
        factor = self._factors.get(candidate.endpoint.name, 1.0)
        running = candidate.prefilling + candidate.decoding + 1
        token_s = known.prefill.slope
        ahead_s = candidate.prefill_tokens * token_s
        if running > known.slots:
            ahead_s = max(ahead_s, (running - known.slots) * known.decode_s / known.slots)
            running = int(known.slots)
        uncached = max(request.prompt_tokens - candidate.matched_tokens, 1)
        return Prediction(
            ttft_s=factor * (known.prefill.intercept + ahead_s + uncached * token_s),
            itl_s=factor * (known.decoding.intercept + known.decoding.slope * running),
        )

    def prefill_s(self, endpoint: Endpoint, tokens: float) -> float:
        """Engine time that computing `tokens` prompt tokens takes on `endpoint`, in seconds."""
        return self._factors.get(endpoint.name, 1.0) * self._variant(endpoint.variant).prefill.slope * tokens

    def observe_end(self, endpoint: Endpoint, leg: LegTimes) -> None:
        """Learn from a leg that completed on `endpoint`."""
        known = self._variant(endpoint.variant)
        factor = self._factors.get(endpoint.name, 1.0)
        if leg.ttft_s is not None:
            tokens = leg.tokens_ahead + leg.uncached_tokens
            ttft_s = leg.ttft_s / factor
            expected = known.prefill.at(tokens)
            if leg.in_flight < known.slots:
                known.prefill.observe(tokens, ttft_s, 1.0 if ttft_s <= expected else _LATE_WEIGHT)
        if leg.output_tokens > 1:
            self._learn_decoding(endpoint.name, known, leg)

    def _learn_decoding(self, name: str, known: _Variant, leg: LegTimes) -> None:
        factor = self._factors.get(name, 1.0)
        stalled_s = factor * known.prefill.slope * leg.prefilled_tokens
        itl_s = max(leg.decode_s - stalled_s, 0.3 * leg.decode_s) / (leg.output_tokens - 1)
        ratio = itl_s / max(known.decoding.at(leg.batch), 1e-6)
        known.decoding.observe(leg.batch, itl_s / factor)
        factor += _FACTOR_GAIN * (min(max(ratio, factor / _CLIP), factor * _CLIP) - factor)
        self._factors[name] = min(max(factor, 0.25), 8.0)
        known.decode_s += 0.02 * (min(leg.decode_s / factor, known.decode_s * 10) - known.decode_s)
        known.output_tokens += 0.02 * (leg.output_tokens - known.output_tokens)

    def observe_sample(self, endpoint: Endpoint, sample: LoadSample) -> None:
        """Learn the slot limit: an engine that lets requests wait runs as many as it can."""
        if not sample.running:
            return
        known = self._variant(endpoint.variant)
        if sample.running > known.slots:
            known.slots = float(sample.running)
        elif sample.waiting:
            if known.slots == float("inf"):
                known.slots = float(sample.running)
            else:
                known.slots += 0.2 * (sample.running - known.slots)

    def forget(self, endpoint: str) -> None:
        """The endpoint is gone."""
        self._factors.pop(endpoint, None)

    def _variant(self, name: str) -> _Variant:
        known = self._variants.get(name)
        if known is None:
            known = self._variants[name] = _Variant()
        return known
