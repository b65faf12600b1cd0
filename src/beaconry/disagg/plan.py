"""Whether a request runs whole on one engine, or its prompt on a prefill engine and its answer on a decode engine.

Two legs keep long prompts from stalling the answers that an engine is in the middle of. They cost the transfer of the prompt's KV and a
second engine's step before the first token. So what decides is the prompt work that the decode engines would be spared: the tokens that
the one best off would have to compute. A short prompt, or one that is mostly cached there, is quicker whole.
"""

from enum import StrEnum

from msgspec import Struct

from beaconry.config.disaggregation import Disaggregation
from beaconry.values.request import Api, Request
from beaconry.values.stage import Stage

_APIS = frozenset({Api.CHAT, Api.COMPLETIONS, Api.RESPONSES})
"""Those that generate, and whose bodies can name KV to fetch."""


class Reason(StrEnum):
    """Why a request runs in as many legs as it does."""

    UNCACHED = "uncached-prompt"
    """Split: the decode endpoints are spared at least as much as the thresholds ask for."""
    BUSY = "decode-busy"
    """Split: too little to compute for that, but a prefill endpoint can begin so much sooner that the detour is worth it."""
    ALWAYS = "always"
    """Split: the mode says so."""
    NEVER = "never"
    """Whole, and so all below: the mode says so."""
    KIND = "kind-of-request"
    """Nothing is generated, or by an API that cannot name KV to fetch, or the body asks for what only one engine can give."""
    SEQUENCES = "several-sequences"
    """Several answers to one prompt: engines hand over one."""
    SHORT = "short-prompt"
    """Too few tokens to compute, whatever is cached."""
    CACHED = "cached-prompt"
    """Too few tokens to compute, because the rest is cached."""
    NO_PREFILL = "no-prefill-endpoint"
    """None that is well has the prefill role."""
    PREFILL_FULL = "prefill-full"
    """The prefill endpoints have as much as they can use."""
    PREFILL_FAILED = "prefill-failed"
    """It was split, and no prefill endpoint has computed it."""
    PREFILL_REFUSED = "prefill-refused"
    """It was split, and the engine refused the request as it stands: whoever would answer it shall say so."""
    HANDOVER_FAILED = "handover-failed"
    """It was split, and the engine that was to answer could not take the KV over."""

    __hash__ = str.__hash__


LITTLE = frozenset({Reason.SHORT, Reason.CACHED})
"""Whole for want of something to compute: unless two legs are sooner even so."""


class Plan(Struct, frozen=True):
    """The first leg's stage, and why."""

    stage: Stage
    reason: Reason

    @property
    def splits(self) -> bool:
        """There are to be two legs."""
        return self.stage is Stage.PREFILL


class Prefill(StrEnum):
    """How the prefill endpoints are."""

    OPEN = "open"
    """One of them can use a request."""
    FULL = "full"
    """One of them may get a request, but none can use one."""
    NONE = "none"
    """None of them may get any."""


def plan(
    knobs: Disaggregation, request: Request, *, cached_tokens: int, prefill: Prefill, sooner_apart: bool = False
) -> Plan:
    """In how many legs `request` is to run.

    `cached_tokens`: prompt tokens cached at the endpoint of role decode or both that has most of them; `sooner_apart`: even so, its first
    token would come sooner in two legs.
    """
    reason = _whole(knobs, request, cached_tokens, prefill)
    if reason in LITTLE and prefill is Prefill.OPEN and sooner_apart:
        return Plan(Stage.PREFILL, Reason.BUSY)
    if reason is not None:
        return Plan(Stage.WHOLE, reason)
    return Plan(Stage.PREFILL, Reason.ALWAYS if knobs.mode == "always" else Reason.UNCACHED)


def _whole(knobs: Disaggregation, request: Request, cached_tokens: int, prefill: Prefill) -> Reason | None:
    """Why a request runs whole; None if it does not."""
    if knobs.mode == "never":
        return Reason.NEVER
    if request.api not in _APIS or not request.divisible:
        return Reason.KIND
    if request.sequences > 1:
        return Reason.SEQUENCES
    if knobs.mode == "auto" and (little := _little(knobs, request.prompt_tokens, cached_tokens)) is not None:
        return little
    if prefill is Prefill.NONE:
        return Reason.NO_PREFILL
    return Reason.PREFILL_FULL if prefill is Prefill.FULL and knobs.mode == "auto" else None


def _little(knobs: Disaggregation, prompt_tokens: int, cached_tokens: int) -> Reason | None:
    """Why there is too little to compute; None if there is enough."""
    if prompt_tokens < knobs.min_uncached_tokens:
        return Reason.SHORT
    least = max(knobs.min_uncached_tokens, knobs.min_uncached_ratio * prompt_tokens)
    return Reason.CACHED if prompt_tokens - cached_tokens < least else None
