"""How often something happens."""

from math import exp, inf

PACE_S = 5.0
"""What happened so long ago counts for a third: requests take seconds each."""
FADE_S = 0.1
"""Within so short a time all count alike, which spares an exponential for each."""


class Pace:
    """Events per second, the recent ones counting most."""

    __slots__ = ("_at_s", "_count", "_span_s", "_window_s")

    def __init__(self, window_s: float = PACE_S) -> None:
        self._window_s = window_s
        self._count = 0.0
        self._span_s = 0.0
        self._at_s = -inf

    def note(self, now_s: float) -> None:
        """One more. The first one only starts the clock."""
        if now_s - self._at_s > FADE_S:
            if self._at_s == -inf:
                self._at_s = now_s
                return
            self._fade(now_s)
        self._count += 1.0

    def per_s(self, now_s: float) -> float:
        """Events per second; 0 before the second one."""
        self._fade(now_s)
        return self._count / self._span_s if self._span_s > 0 else 0.0

    def _fade(self, now_s: float) -> None:
        past_s = now_s - self._at_s
        if 0 < past_s < inf:
            kept = exp(-past_s / self._window_s)
            self._count *= kept
            self._span_s = self._span_s * kept + self._window_s * (1 - kept)
            self._at_s = now_s
