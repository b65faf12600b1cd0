"""What is said of a tenant: what is left of its limits, why a request is not let in, what it has taken so far."""

from enum import StrEnum

from msgspec import Struct

from beaconry.values.outcome import Outcome


class LimitKind(StrEnum):
    """What is limited."""

    REQUESTS = "requests"
    INPUT_TOKENS = "input-tokens"
    OUTPUT_TOKENS = "output-tokens"
    CONCURRENCY = "concurrency"


class Allowance(Struct, frozen=True):
    """One limit."""

    kind: LimitKind
    limit: int
    """What may be taken at once after a pause."""
    remaining: int
    """Of it now; at least 0."""
    reset_s: float
    """Until all of it is there again, if nothing more is taken."""


class Refusal(Struct, frozen=True):
    """A request that a limit does not let in."""

    kind: LimitKind
    retry_after_s: float
    """When it would be let in, if nothing else is."""
    message: str


class TenantStatistics(Struct, frozen=True, kw_only=True):
    """One tenant so far."""

    running: int
    outcomes: dict[Outcome, int]
    limited: dict[LimitKind, int]
    """Requests refused, by the limit that had them wait longest."""
    input_tokens: int
    """As engines reported; likewise below."""
    output_tokens: int
