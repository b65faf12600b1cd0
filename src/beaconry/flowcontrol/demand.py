"""What higher bands are about to ask for: how often their requests come, and how large they are. What lower bands have to leave them."""

from math import ceil, exp, inf, log

from msgspec import Struct

from beaconry.flowcontrol.pace import Pace

DEMAND_S = 20.0
"""What came so long ago counts for a third."""
MISSES = 0.005
"""Share of a higher band's requests that may find no room: half of what its 99th percentile allows, the rest is for bad luck."""
_MOST = 0.5
"""Share above which higher bands wait for themselves more than for lower ones: no larger reserve helps them."""
_LARGE = 0.05
"""Share of a band's requests that are larger than what counts as large."""
_GAIN = 0.1
_UP, _DOWN = exp(_GAIN * (1 - _LARGE)), exp(-_GAIN * _LARGE)
_CLAIM_S = 0.1
"""For so long a claim stands."""
_STREAMS = 16
"""Bands followed at once: the busiest."""


class Claim(Struct, frozen=True):
    """Room to be left free for higher bands."""

    requests: int
    """Places."""
    tokens: float
    """KV tokens of a usual request."""
    large_tokens: float
    """Of one that few exceed."""

    @property
    def all_tokens(self) -> float:
        """Of all of these."""
        return self.requests * self.tokens + self.large_tokens


class _Stream:
    """One band's arrivals."""

    __slots__ = ("large", "mean", "pace")

    def __init__(self, tokens: int) -> None:
        self.pace = Pace(DEMAND_S)
        self.mean = self.large = float(max(tokens, 1))

    def note(self, tokens: int, now_s: float) -> None:
        self.pace.note(now_s)
        self.mean += _GAIN * (tokens - self.mean)
        self.large *= _UP if tokens > self.large else _DOWN


class Demand:
    """All bands of a lane but the lowest, for which nobody has to leave anything.

    A band that is the only one costs a comparison per request, and leaves no trace.
    """

    __slots__ = ("_claims", "_margin", "_pace", "_streams", "lowest")

    def __init__(self) -> None:
        self.lowest: int | None = None
        """The lowest priority seen so far."""
        self._streams: dict[int, _Stream] = {}
        """By priority, all above `lowest`."""
        self._claims: dict[int, tuple[float, Claim | None]] = {}
        """By priority: until when it stands."""
        self._pace = Pace()
        """Of all that is sent, while there is more than one band."""
        self._margin = 0.0
        """Requests to be kept room for beyond those computed: arrivals come in bursts, completions in steps."""

    def note(self, priority: int, tokens: int, now_s: float) -> None:
        """A request of so many prompt tokens has come."""
        if self.lowest is None or priority < self.lowest:
            self.lowest = priority
        if priority == self.lowest:
            return
        stream = self._streams.get(priority)
        if stream is None:
            self._drop_idle(now_s)
            self._streams[priority] = stream = _Stream(tokens)
        stream.note(tokens, now_s)

    @property
    def contested(self) -> bool:
        """There is more than one band."""
        return bool(self._streams)

    def sent(self, now_s: float) -> None:
        """A request of whichever band has been sent to an engine."""
        if self._streams:
            self._pace.note(now_s)

    def claim(self, priority: int, now_s: float) -> Claim | None:
        """What requests of `priority` have to leave free; None: nothing.

        Each completion gives a place back, each arrival takes one, so with arrivals at a share r of completions, n places or more are
        taken out of a reserve for a share r^n of the time: the reserve is as large as makes that `MISSES`, corrected by what has been found
        (`placed`). A band that sends less than this share of all reserves nothing.
        """
        if not self._streams:
            return None
        until_s, claim = self._claims.get(priority, (-inf, None))
        if now_s >= until_s:
            claim = self._claim(priority, now_s)
            self._claims[priority] = (now_s + _CLAIM_S, claim)
        return claim

    def _claim(self, priority: int, now_s: float) -> Claim | None:
        per_s = self._pace.per_s(now_s)
        rate = mean = large = 0.0
        for own, stream in self._streams.items():
            if own > priority:
                one = stream.pace.per_s(now_s)
                rate += one
                mean += one * stream.mean
                if one > MISSES * per_s:
                    large = max(large, stream.large)
        share = rate / per_s if per_s else 0.0
        if share <= MISSES:
            return None
        requests = log(MISSES) / log(min(share, _MOST))
        margin = max(min(self._margin, requests + 1.0), 1.0 - requests)
        return Claim(ceil(requests + margin), mean / rate, max(large, mean / rate))

    def placed(self, *, found_room: bool) -> None:
        """A request for which room was kept has been placed. So the margin settles where `MISSES` of them find none."""
        self._margin = min(max(self._margin + (0.0 if found_room else 1.0) - MISSES, -8.0), 8.0)

    def _drop_idle(self, now_s: float) -> None:
        """Priorities are few, unless somebody makes them up: make room for one more."""
        if len(self._streams) == _STREAMS:
            idle = min(self._streams, key=lambda priority: self._streams[priority].pace.per_s(now_s))
            del self._streams[idle]
            self._claims.clear()
