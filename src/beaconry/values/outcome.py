"""How a request can end. Exactly one of these per request, counted and logged."""

from enum import StrEnum


class Outcome(StrEnum):
    """Closed set: who ended the request, and in which phase."""

    COMPLETED = "completed"
    REFUSED = "refused"
    """The caller's fault, found at the door: malformed, too large, unknown model."""
    RATE_LIMITED = "rate-limited"
    """A limit of the caller's tenant has no room for it."""
    ENGINE_REFUSED = "engine-refused"
    """An engine answered 4xx and the answer was relayed."""
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
