"""What completed legs teach: the index what was cached, the rate book how fast it went, and us how many tokens a byte makes."""

from msgspec.structs import replace

from beaconry.kvindex.approximate import Placement
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.rates import LegTimes, RateBook
from beaconry.latency.variant_book import VariantStatistics
from beaconry.router.caches import Caches
from beaconry.router.exchange import Leg
from beaconry.values.endpoint import Endpoint, LoadSample, Role
from beaconry.values.request import Request, Usage
from beaconry.values.stage import DECODE, PREFILL, WHOLE, Stage

TOKENS_PER_BYTE = 0.25
"""Until usage reports tell better: English text under common vocabularies."""
DENSITY_BYTES = 1024
"""Shorter prompts say more about the chat template than about the text."""
DENSITY_GAIN = 0.1


class Learning:
    """Passes on what is learnt, and keeps the text density per model."""

    def __init__(self, caches: Caches, rates: RateBook, forecasts: Forecasts) -> None:
        self._caches = caches
        self._index = caches.approximate
        self._rates = rates
        self._forecasts = forecasts
        self._densities: dict[str, float] = {}
        """Prompt tokens per byte of text, by model; only models that an engine has answered for."""

    def tokens_per_byte(self, model: str) -> float:
        """How many prompt tokens a byte of text makes."""
        return self._densities.get(model, TOKENS_PER_BYTE)

    def routed(self, name: str, request: Request) -> Placement | None:
        """A request goes to an endpoint: what the index notes of it; None for a prompt without blocks."""
        return self._index.routed(name, request.prefix) if request.prefix else None

    def dispatched(self, leg: Leg) -> None:
        """A leg has just been placed."""
        self._forecasts.dispatched(leg.id, leg.request, leg.candidate, leg.dispatched_s)

    def first_byte(self, leg: Leg) -> None:
        """The first byte of a leg that streams has just come."""
        member, candidate, sample = leg.member, leg.candidate, leg.member.sample
        assert leg.first_byte_s is not None
        self._forecasts.first_byte(leg.id, leg.first_byte_s)
        if leg.stage is WHOLE:  # a prefill leg's end says more; a decode leg's first byte tells of the transfer
            self._rates.observe_first_token(
                member.endpoint,
                ttft_s=max(leg.first_byte_s - leg.dispatched_s - candidate.load_s, 0.0),
                tokens=candidate.prefill_tokens + leg.uncached_tokens,
                in_flight=candidate.in_flight,
                decoding=leg.batch_at_first,
            )
        if sample is not None and sample.kv_blocks and sample.block_tokens:
            blocks = sample.kv_blocks * sample.block_tokens / leg.request.block_tokens
            self._index.sized(member.endpoint.name, blocks)

    def finished(self, leg: Leg, usage: Usage | None, batch_at_end: int, now_s: float) -> None:
        """A leg ended well; `usage` is None if the engine did not report it or refused the request."""
        request, member, stage = leg.request, leg.member, leg.stage
        cached_blocks: float | None = None
        if usage is not None and usage.prompt_tokens:
            if stage is not PREFILL:
                member.output_tokens += usage.completion_tokens
            if stage is not DECODE:  # its engine reports what the prefilling one had cached
                cached_blocks = self._learn_prompt(leg, usage)
            if request.stream:  # the first byte of a whole answer is its last: it tells neither TTFT nor ITL
                self._learn_times(leg, usage, batch_at_end, now_s)
        if leg.placement is not None:
            self._index.confirmed(leg.placement, cached_blocks)
        self._forecasts.ended(leg.id, usage, now_s, finished=True)

    def _learn_prompt(self, leg: Leg, usage: Usage) -> float | None:
        """Learn from what the engine says of the prompt. Returns how much of it was cached, in blocks; None if it does not say."""
        request, member = leg.request, leg.member
        member.prompt_tokens += usage.prompt_tokens
        if request.prompt_bytes >= DENSITY_BYTES:
            seen = usage.prompt_tokens / request.prompt_bytes
            old = self.tokens_per_byte(request.model)
            self._densities[request.model] = (1 - DENSITY_GAIN) * old + DENSITY_GAIN * seen
        if usage.cached_tokens is None:
            return None
        member.cached_tokens += usage.cached_tokens
        member.predicted_cached_tokens += leg.candidate.matched_tokens
        # in blocks of the router's text: an engine's token count corrects a wrong estimate of the prompt's length
        return usage.cached_tokens * request.prompt_tokens / (request.block_tokens * usage.prompt_tokens)

    def _learn_times(self, leg: Leg, usage: Usage, batch_at_end: int, now_s: float) -> None:
        """Learn how fast the engine is, at what the leg had it do."""
        endpoint, candidate = leg.member.endpoint, leg.candidate
        times = _times(leg, usage, batch_at_end, now_s)
        assert times.ttft_s is not None
        assert leg.first_byte_s is not None
        seen_s = leg.first_byte_s - leg.dispatched_s
        tokens = times.tokens_ahead + times.uncached_tokens
        match leg.stage:
            case Stage.WHOLE:
                self._rates.observe_end(endpoint, times)
            case Stage.PREFILL:
                self._rates.observe_prefill(endpoint, ttft_s=times.ttft_s, tokens=tokens, in_flight=times.in_flight)
            case Stage.DECODE:
                self._rates.observe_end(endpoint, replace(times, ttft_s=None))
                self._caches.links.observe(endpoint, candidate.fetched_tokens, seen_s)
                return
        if candidate.loads and (usage.cached_tokens or 0) >= candidate.matched_tokens:
            self._caches.loads.observe(endpoint, candidate.loads, seen_s, tokens)

    def cut_short(self, leg: Leg, now_s: float, there_tokens: int = 0) -> None:
        """A leg failed or was cancelled: its prompt is there only if it got as far as a first byte, else the first `there_tokens` of it."""
        self._forecasts.ended(leg.id, None, now_s, finished=False)
        if leg.placement is None:
            return
        if leg.first_byte_s is None:
            self._index.abandoned(leg.placement, int(there_tokens / leg.block_tokens))
        else:
            self._index.confirmed(leg.placement, None)

    def sampled(self, endpoint: Endpoint, sample: LoadSample) -> None:
        """An engine's metrics were read."""
        if endpoint.role is not Role.PREFILL:  # what waits there waits for tokens, not for places
            self._rates.observe_sample(endpoint, sample)
        self._forecasts.sampled(endpoint, sample)

    def forget(self, name: str) -> None:
        """The endpoint is gone, or somebody else by now."""
        self._caches.forget(name)
        self._rates.forget(name)
        self._forecasts.forget(name)

    def statistics(self) -> dict[str, VariantStatistics]:
        """How right the forecasts have been, by variant."""
        return self._forecasts.statistics()

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        self._forecasts.check()


def _times(leg: Leg, usage: Usage, batch_at_end: int, now_s: float) -> LegTimes:
    candidate, cached = leg.candidate, usage.cached_tokens
    assert leg.first_byte_s is not None
    return LegTimes(
        now_s=now_s,
        ttft_s=max(leg.first_byte_s - leg.dispatched_s - candidate.load_s, 0.0),
        decode_s=now_s - leg.first_byte_s,
        uncached_tokens=leg.uncached_tokens if cached is None else usage.prompt_tokens - cached,
        tokens_ahead=candidate.prefill_tokens,
        in_flight=candidate.in_flight,
        batch=(leg.batch_at_first + batch_at_end) / 2,
        output_tokens=usage.completion_tokens,
        prefilled_tokens=leg.member.prefilled_tokens - leg.prefilled_mark,
    )
