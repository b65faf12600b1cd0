"""What the scheduler knows of one endpoint for one request: a snapshot made by the router at the moment of the decision."""

from enum import StrEnum

from msgspec import Struct

from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.kv_events import Tier
from beaconry.values.stage import Stage

TierTokens = tuple[Tier, int]
"""Tokens, and the tier they are in."""


class Candidate(Struct, frozen=True, kw_only=True, gc=False):
    """An endpoint that may serve the request.

    The in-flight figures are the router's own counters, exact and instant; `sample` is the last scrape (a correction with an age).
    "In prefill" means dispatched and without first byte; "in decode" means first byte seen, end not seen.
    """

    endpoint: Endpoint
    prefilling: int = 0
    """Requests in prefill."""
    prefill_tokens: int = 0
    """Their uncached prompt tokens, as believed at dispatch."""
    decoding: int = 0
    """Requests in decode."""
    context_tokens: int = 0
    """Prompt tokens of all requests in flight: what their KV takes."""
    matched_tokens: int = 0
    """Prompt tokens of this request believed to be cached here, prefixes still being prefilled included."""
    loads: tuple[TierTokens, ...] = ()
    """Those of the matched tokens that lie beside the GPU and have to be loaded first."""
    load_s: float = 0.0
    """How long that takes, and the fetching."""
    fetched_tokens: int = 0
    """Prompt tokens that come from the endpoint that prefilled, of a decode leg: all but the last one and those matched here."""
    stage: Stage = Stage.WHOLE
    """What the leg is to compute."""
    displaced_tokens: float = 0.0
    """Expected tokens to be computed again later because this request's new blocks evict others here."""
    known_tokens: int = 0
    """Matched tokens and the following ones that were cached here before: where the prompt is at home."""
    exact: bool = False
    """The matched tokens are what the engine's own events say; else what our routing history suggests."""
    sharers: int = 0
    """Requests in flight here whose prompts share the known tokens."""
    oldest_wait_s: float = 0.0
    """Age of the oldest request in prefill, 0 if there is none: shows a slow or hung engine before any counter does."""
    sample: LoadSample | None = None

    @property
    def in_flight(self) -> int:
        """Requests dispatched and not ended."""
        return self.prefilling + self.decoding


class Prediction(Struct, frozen=True, kw_only=True, gc=False):
    """Expected latencies of one placement."""

    ttft_s: float
    wait_s: float
    """Its first part: until the prefill begins."""
    itl_s: float
    decode_s: float
    """First token to last, at the output length to be expected."""
    token_s: float
    """Engine time that one more prompt token to compute takes there."""


class Source(StrEnum):
    """Where a forecast comes from: best first."""

    SHADOW = "shadow"
    """A twin of the engine, run ahead."""
    CLOSED_FORM = "closed-form"
    """Straight lines through past latencies."""
    TOKEN_LOAD = "token-load"  # noqa: S105 no secret
    """Neither has been right of late: only tokens in flight are compared."""


class Forecast(Struct, frozen=True, kw_only=True, gc=False):
    """What a request would meet on one endpoint, with ranges that have held for past forecasts. Times count from now."""

    source: Source
    ttft_s: float
    ttft_low_s: float
    """Very likely not sooner."""
    ttft_high_s: float
    """Very likely not later."""
    itl_s: float
    """As likely more as less; so a long prompt that may come and stall the stream for a while counts for little."""
    itl_mean_s: float
    """On average: what a sum over many requests is made of."""
    itl_low_s: float
    itl_high_s: float
    tail: float
    """Share of past outcomes beyond either end of the ranges."""
    strictest_itl_s: float | None = None
    """The strictest objective for time between tokens among the requests in flight there."""
