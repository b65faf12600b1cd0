"""How many sequences an engine runs at once: its places. No engine of today tells.

It shows when requests wait though nothing is ahead of them. Unknown is endless. One late first byte proves nothing, for a hiccup looks the
same, and so does a lack of memory, but then a different number runs each time: it takes several that agree. A number that is seen to run is
proof, and raises the limit at once; lower evidence lowers it slowly.

Who keeps to a limit never learns that it is too low, so now and then one request more is allowed (`allowed`). If that one runs, more are
tried at once, twice as many each time; if it waits, the next trial comes after twice the time. So a wrong limit heals in seconds, and a
right one costs one waiting request a minute.
"""

from math import inf

_AGREEING = 3
_AGREE_WITHIN_S = 30.0
_SPREAD = 0.05
"""Counts agree that differ by so much, or by two: several sequences that start in one step are seen one after the other."""
_DECAY = 0.1
_TRIAL_S = 4.0
"""Before the first trial of a new limit."""
_TRIAL_MAX_S = 60.0


class Places:
    """One engine's. Invariants: `limit` is at least 1; `_step` is at least 1."""

    __slots__ = ("_agreed", "_agreed_s", "_most", "_pause_s", "_step", "_trial_s", "limit")

    def __init__(self) -> None:
        self.limit = inf
        """Sequences that run at once, as far as known."""
        self._agreed = 0
        """Counts in a row that agree."""
        self._agreed_s = -inf
        self._most = 0
        """Of these."""
        self._pause_s = _TRIAL_S
        self._trial_s = inf
        """When more than the limit is tried next."""
        self._step = 1

    def allowed(self, now_s: float) -> float:
        """How many may be there: the limit, and those on trial."""
        return self.limit + self._step if now_s >= self._trial_s else self.limit

    def ran(self, running: int, now_s: float) -> None:
        """So many ran at once."""
        if running > self.limit:
            self.limit = float(running)
            self._step = min(2 * self._step, max(running, 1))
            self._pause_s = _TRIAL_S
            self._trial_s = now_s

    def filled(self, running: int, now_s: float) -> None:
        """So many ran while another one waited, as it seems for nothing but a place."""
        running = max(running, 1)
        if now_s - self._agreed_s > _AGREE_WITHIN_S or abs(running - self._most) > 2 + _SPREAD * self._most:
            self._agreed = self._most = 0
        self._agreed += 1
        self._agreed_s = now_s
        self._most = max(self._most, running)
        if self._agreed < _AGREEING:
            return
        if self.limit == inf:
            self.limit = float(self._most)
        elif self._most > self.limit:
            self.ran(self._most, now_s)
            return
        else:
            self.limit += _DECAY * (self._most - self.limit)
        if now_s >= self._trial_s:
            self._pause_s = min(2 * self._pause_s, _TRIAL_MAX_S)
        self._step = 1
        self._trial_s = now_s + self._pause_s
