"""A token bucket: it refills steadily up to its capacity, and each use takes its cost out.

A cost above the capacity waits for a full bucket and leaves a debt behind, so nothing is too large for ever and the rate holds all the
same. What turns out cheaper or dearer than it was charged is corrected afterwards.
"""

_ROUNDING = 1e-9
"""Share of the capacity that counts as nothing: after waiting exactly as long as told, arithmetic may be that much short."""


class TokenBucket:
    """Time must not run backwards between calls."""

    __slots__ = ("_at_s", "_level", "capacity", "rate_per_s")

    def __init__(self, rate_per_s: float, capacity: float, now_s: float) -> None:
        """Full. Both above 0."""
        self.rate_per_s = rate_per_s
        self.capacity = capacity
        self._level = capacity
        """As of `_at_s`; at most `capacity`, below 0 while in debt."""
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """What it holds."""
        if now_s > self._at_s:
            self._level = min(self.capacity, self._level + (now_s - self._at_s) * self.rate_per_s)
            self._at_s = now_s
        return self._level

    def wait_s(self, cost: float, now_s: float) -> float:
        """Until `cost` may be taken, if nobody else takes anything; 0 is now."""
        missing = min(cost, self.capacity) - self.level(now_s)
        return missing / self.rate_per_s if missing > _ROUNDING * self.capacity else 0.0

    def take(self, cost: float, now_s: float) -> None:
        """Take it out whatever the level. A negative cost is a return, up to the capacity."""
        self._level = min(self.capacity, self.level(now_s) - cost)

    def full_in_s(self, now_s: float) -> float:
        """Until it is full again, if nobody takes anything."""
        return (self.capacity - self.level(now_s)) / self.rate_per_s

    def resize(self, rate_per_s: float, capacity: float, now_s: float) -> None:
        """Change its size: it stays as full as it is, in proportion."""
        self._level = self.level(now_s) * capacity / self.capacity
        self.rate_per_s = rate_per_s
        self.capacity = capacity
