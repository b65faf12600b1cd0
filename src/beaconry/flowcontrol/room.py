"""What waits in one place, and how much may."""

from math import inf

from beaconry.config.flow import BandConfig, Flow
from beaconry.values.request import Request


class Room:
    """Requests, prompt tokens and prompt bytes, each within its bound at any time."""

    __slots__ = ("bounds", "prompt_bytes", "requests", "tokens")

    def __init__(self, bounds: BandConfig | Flow) -> None:
        given = (bounds.queued_requests, bounds.queued_tokens, bounds.queued_bytes)
        self.bounds = tuple(inf if bound is None else bound for bound in given)
        self.requests = self.tokens = self.prompt_bytes = 0

    def add(self, request: Request, sign: int = 1) -> None:
        """Count one in, or out."""
        self.requests += sign
        self.tokens += sign * request.prompt_tokens
        self.prompt_bytes += sign * request.prompt_bytes

    def lacks(self, request: Request, leaving: tuple[int, int, int] = (0, 0, 0)) -> bool:
        """One more does not fit, even if those `leaving` were gone."""
        requests, tokens, size = self.bounds
        return (
            self.requests + 1 - leaving[0] > requests
            or self.tokens + request.prompt_tokens - leaving[1] > tokens
            or self.prompt_bytes + request.prompt_bytes - leaving[2] > size
        )

    @property
    def sums(self) -> tuple[int, int, int]:
        """All three."""
        return (self.requests, self.tokens, self.prompt_bytes)
