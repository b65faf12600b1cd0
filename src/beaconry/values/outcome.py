"""How a request can end. Exactly one of these per request, counted and logged."""

from enum import StrEnum
from typing import Final


class Outcome(StrEnum):
    """Closed set: who ended the request, and in which phase."""

    COMPLETED = "completed"
    REFUSED = "refused"
    """The caller's fault, found at the door: malformed, too large, unknown model."""
    RATE_LIMITED = "rate-limited"
    """A limit of the caller's tenant has no room for it."""
    ENGINE_REFUSED = "engine-refused"
    """An engine answered 4xx and the answer was relayed."""
    QUEUE_FULL = "queue-full"
    """No room in the gateway's queue for it."""
    DISPLACED = "displaced"
    """It gave way in the queue to a request of a higher band or of a tenant with less waiting."""
    EVICTED = "evicted"
    """It was running, and gave its place in an engine to a request of a higher band that starved."""
    QUEUE_EXPIRED = "queue-expired"
    """Not dispatched within its time to live."""
    OBJECTIVE_MISSED = "objective-missed"
    """Refused early: its first token would have come after its objective wherever it went."""
    NO_ENDPOINT = "no-endpoint"
    """Nobody to serve: all draining, ejected or gone."""
    ENGINE_FAILED = "engine-failed"
    """Every attempt failed before the first byte."""
    ENGINE_TIMEOUT = "engine-timeout"
    """No first byte, or no progress, or no end within the deadline."""
    STREAM_BROKEN = "stream-broken"
    """The engine failed after the first byte."""
    CLIENT_GONE = "client-gone"
    SHUTTING_DOWN = "shutting-down"
    """Cut off by the end of the graceful stop."""


COMPLETED: Final = Outcome.COMPLETED
"""How nearly all end; a name of its own for the reason given in `stage.py`."""
DROPPED_REASONS = {
    Outcome.QUEUE_FULL: "rejected-saturated",
    Outcome.DISPLACED: "evicted-queue-pressure",
    Outcome.QUEUE_EXPIRED: "rejected-ttl-expired",
    Outcome.NO_ENDPOINT: "rejected-no-endpoints",
    Outcome.SHUTTING_DOWN: "rejected-shutting-down",
}
"""llm-d's values of `x-llm-d-request-dropped-reason`; where it has none, the code of the answer."""
