"""How fast a variant prefills and decodes, learnt from the legs it has served; and from that, predicted latencies.

Two straight lines per variant, each fitted with forgetting: TTFT against the tokens to prefill (its own and those ahead of it),
and inter-token time against the batch. A third figure, how many sequences an engine runs at once, comes from scraped
running/waiting counts, or from legs that queued. The lines are the mean over a variant's endpoints; a factor per endpoint follows
single slow or fast ones.

Robust by construction: an observation counts as at most three times, at least a third, of what was expected, so an outlier moves
little and a real change is followed geometrically; waiting only ever adds to TTFT, so what comes late counts for less than what comes
early. Deterministic, with constant memory per variant and endpoint.
"""

from msgspec import Struct

from beaconry.latency.line import CLIP, Line
from beaconry.values.candidate import Candidate, Prediction
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.request import Request

_LATE_WEIGHT = 0.25
"""Weight of a TTFT above the expected one: part of it may be waiting that the model does not know of."""
_FACTOR_GAIN = 0.05
_YOUNG = 32
"""Completed legs until which first bytes are learnt from as they come, with the uncached tokens believed at dispatch."""


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
    """Sequences from which on others wait, be it for places or for memory; infinite until seen otherwise. A guess for predictions: what has
    to be sure is in `places.py`."""
    decode_s: float
    """Mean time from first token to last."""
    output_tokens: float
    """Mean output length."""


class _Variant:
    """What is learnt of one variant."""

    __slots__ = ("decode_s", "decoding", "ended", "output_tokens", "prefill", "slots")

    def __init__(self) -> None:
        self.prefill = Line(0.04, 1e-4)  # 10,000 tokens/s: an 8-30 B model on one recent GPU
        self.decoding = Line(0.015, 2e-4)
        self.slots = float("inf")
        self.decode_s = 2.0
        self.output_tokens = 256.0  # the conversation traces have medians of 130 to 350
        self.ended = 0

    def learn_slots(self, running: int, *, queued: bool) -> None:
        """So many ran at once; `queued`: while others waited, so that no more can."""
        if running > self.slots or (queued and self.slots == float("inf")):
            self.slots = float(running)
        elif queued:
            self.slots += 0.1 * (running - self.slots)


class RateBook:
    """The rates of all variants, and how endpoints deviate from theirs. A PredictorSource."""

    def __init__(self) -> None:
        self._variants: dict[str, _Variant] = {}
        self._factors: dict[str, float] = {}  # endpoint -> its times over its variant's, 0.25..8; absent = 1

    def rates(self, variant: str) -> Rates:
        """What is believed of `variant` now."""
        known = self._variant(variant)
        return Rates(
            base_s=known.prefill.base,
            token_s=known.prefill.slope,
            itl_s=known.decoding.base,
            itl_batch_s=known.decoding.slope,
            slots=known.slots,
            decode_s=known.decode_s,
            output_tokens=known.output_tokens,
        )

    def output_tokens(self, variant: str) -> float:
        """Mean output length."""
        return self._variant(variant).output_tokens

    def factor(self, endpoint: str) -> float:
        """How much slower (above 1) or faster this endpoint is than its variant."""
        return self._factors.get(endpoint, 1.0)

    def predict(self, request: Request, candidate: Candidate) -> Prediction:
        """TTFT and ITL of `request` on `candidate`, in seconds.

        The wait before its prefill is what the tokens or the places ahead of it take, but not less than the oldest request there has
        waited already: engines serve in order of arrival, and one that hangs shows in nothing else.
        """
        endpoint = candidate.endpoint
        known = self._variants.get(endpoint.variant) or self._variant(endpoint.variant)
        factor = self._factors.get(endpoint.name, 1.0)
        running = candidate.prefilling + candidate.decoding + 1
        token_s = factor * known.prefill.slope
        wait_s = candidate.prefill_tokens * token_s
        if running > known.slots:
            wait_s = factor * _ahead_s(known, running, candidate.prefill_tokens)
            running = int(known.slots)
        if candidate.oldest_wait_s > wait_s:
            wait_s = candidate.oldest_wait_s
        uncached = request.prompt_tokens - candidate.matched_tokens - candidate.fetched_tokens
        itl_s = factor * (known.decoding.base + known.decoding.slope * running)
        output = known.output_tokens
        if request.output_tokens is not None and request.output_tokens < output:
            output = request.output_tokens
        return Prediction(
            ttft_s=wait_s
            + candidate.load_s
            + factor * known.prefill.base
            + (uncached if uncached > 1 else 1) * token_s,
            wait_s=wait_s,
            itl_s=itl_s,
            decode_s=itl_s * output,
            token_s=token_s,
        )

    def wait_s(self, endpoint: Endpoint, running: int, prefill_tokens: int) -> float:
        """How long what is there already keeps the `running`-th request on `endpoint` from its prefill."""
        known = self._variants.get(endpoint.variant) or self._variant(endpoint.variant)
        return self._factors.get(endpoint.name, 1.0) * _ahead_s(known, running, prefill_tokens)

    def prefill_s(self, endpoint: Endpoint, tokens: float) -> float:
        """Engine time that computing `tokens` prompt tokens takes on `endpoint`, in seconds."""
        return self._factors.get(endpoint.name, 1.0) * self._variant(endpoint.variant).prefill.slope * tokens

    def itl_s(self, endpoint: Endpoint, batch: int) -> float:
        """Time between tokens in a batch of so many."""
        return self._factors.get(endpoint.name, 1.0) * self._variant(endpoint.variant).decoding.at(batch)

    def next_end_s(self, endpoint: Endpoint, decoding: int) -> float:
        """How long it takes until one of so many sequences ends, where they are in the midst of it."""
        return self._variant(endpoint.variant).decode_s / max(decoding, 1)

    def is_late(self, endpoint: Endpoint, ttft_s: float, tokens: int) -> bool:
        """A first byte that comes so long after its dispatch, or has not come by then, is not explained by `tokens` of prefill."""
        return ttft_s > CLIP * self._factors.get(endpoint.name, 1.0) * self._variant(endpoint.variant).prefill.at(
            tokens
        )

    def observe_first_token(
        self, endpoint: Endpoint, *, ttft_s: float, tokens: int, in_flight: int, decoding: int
    ) -> None:
        """Learn from a stream's first byte.

        `tokens`: its own uncached ones, as believed, and those ahead of it at dispatch; `in_flight`: requests there at dispatch, itself
        not included; `decoding`: requests in decode there now, itself included. The prefill line learns from it only while the variant
        is young: a leg's end tells what really was uncached, but may be a minute away.
        """
        known = self._variant(endpoint.variant)
        expected_s = self._factors.get(endpoint.name, 1.0) * known.prefill.at(tokens)
        known.learn_slots(decoding, queued=in_flight >= decoding and ttft_s > CLIP * expected_s)
        if known.ended < _YOUNG:
            self._learn_prefill(endpoint.name, known, ttft_s, tokens, in_flight)

    def observe_end(self, endpoint: Endpoint, leg: LegTimes) -> None:
        """Learn from a leg that completed on `endpoint`."""
        known = self._variant(endpoint.variant)
        if leg.ttft_s is not None and known.ended >= _YOUNG:
            tokens = leg.tokens_ahead + leg.uncached_tokens
            self._learn_prefill(endpoint.name, known, leg.ttft_s, tokens, leg.in_flight)
        if leg.output_tokens > 1:
            self._learn_decoding(endpoint.name, known, leg)
        known.ended += 1

    def _learn_prefill(self, name: str, known: _Variant, ttft_s: float, tokens: int, in_flight: int) -> None:
        if in_flight >= known.slots:
            return  # most of its TTFT was waiting for a place in the batch
        in_time = ttft_s <= self._factors.get(name, 1.0) * known.prefill.at(tokens)
        known.prefill.observe(tokens, ttft_s, 1.0 if in_time else _LATE_WEIGHT)

    def _learn_decoding(self, name: str, known: _Variant, leg: LegTimes) -> None:
        factor = self._factors.get(name, 1.0)
        stalled_s = factor * known.prefill.slope * leg.prefilled_tokens
        itl_s = max(leg.decode_s - stalled_s, 0.3 * leg.decode_s) / (leg.output_tokens - 1)
        ratio = itl_s / max(known.decoding.at(leg.batch), 1e-6)
        known.decoding.observe(leg.batch, itl_s)
        self._learn_factor(name, factor, ratio)
        known.decode_s += 0.02 * (min(leg.decode_s, known.decode_s * 10) - known.decode_s)
        known.output_tokens += 0.02 * (leg.output_tokens - known.output_tokens)

    def observe_prefill(self, endpoint: Endpoint, *, ttft_s: float, tokens: int, in_flight: int) -> None:
        """Learn from a leg that only prefilled, at its end.

        `tokens`: its own, as the engine counted those that were not cached, and those ahead of it at dispatch; `in_flight`: requests there
        at dispatch, itself not included. One that met nobody tells how fast its endpoint is.
        """
        known = self._variant(endpoint.variant)
        if not in_flight:
            factor = self._factors.get(endpoint.name, 1.0)
            ratio = ttft_s / known.prefill.at(tokens)
            self._learn_factor(endpoint.name, factor, ratio)
        self._learn_prefill(endpoint.name, known, ttft_s, tokens, in_flight)
        known.ended += 1

    def observe_sample(self, endpoint: Endpoint, sample: LoadSample) -> None:
        """Learn the slot limit: an engine that lets requests wait runs as many as it can."""
        if sample.running:
            self._variant(endpoint.variant).learn_slots(sample.running, queued=sample.queued > 0)

    def _learn_factor(self, name: str, factor: float, ratio: float) -> None:
        """An endpoint took `ratio` times what its variant takes."""
        factor += _FACTOR_GAIN * (min(max(ratio, factor / CLIP), factor * CLIP) - factor)
        self._factors[name] = min(max(factor, 0.25), 8.0)

    def forget(self, endpoint: str) -> None:
        """The endpoint is gone."""
        self._factors.pop(endpoint, None)

    def _variant(self, name: str) -> _Variant:
        known = self._variants.get(name)
        if known is None:
            known = self._variants[name] = _Variant()
        return known


def _ahead_s(known: _Variant, running: int, prefill_tokens: int) -> float:
    """What the tokens or the places ahead of the `running`-th request take."""
    ahead_s = prefill_tokens * known.prefill.slope
    if running > known.slots:
        for_place_s = (running - known.slots) * known.decode_s / known.slots
        if for_place_s > ahead_s:
            ahead_s = for_place_s
    return ahead_s
