"""From a predicted time to a range that holds: online conformal quantiles of what past predictions turned out to be.

Kept are the ratios of actual to predicted time of the latest predictions. Their quantiles, times a new prediction, are its range; their
median takes out a lasting bias. Where the past is no guide (load has changed, an engine has slowed down), the level is shifted by every
hit and miss until the share of outcomes below the upper end is the one asked for: adaptive conformal inference (Gibbs and Candès 2021).
Nothing is assumed of how errors are distributed.
"""

from bisect import bisect_left, insort
from collections import deque

from msgspec import Struct

_WINDOW = 200
_FEW = 10
"""Ratios below which a range is a guess."""
_SHIFT = 0.01
"""How far one outcome moves the level. Outcomes come late, and many of them had the same range: larger moves swing to and fro."""
_LEVELS = (0.5, 1.2)
"""Above 1 the range ends beyond the longest of the window."""
_GUESS_FACTOR = 2.0
_BELIEF = 200.0
"""In outcomes: the weight of the belief that predictions are right on average. A few long outcomes move a mean, and so do those of a load
that is over by the time they are known."""


class Range(Struct, frozen=True, gc=False):
    """Factors on a prediction."""

    low: float
    """Undercut by as large a share of outcomes as exceed `high`."""
    middle: float
    high: float
    mean: float
    """On average outcomes are so many times the prediction: above `middle` where few are much longer."""


_GUESS = Range(low=1.0 / _GUESS_FACTOR, middle=1.0, high=_GUESS_FACTOR, mean=1.0)


class Residuals:
    """The latest ratios of actual to predicted time, and the range made of them.

    Invariants: `_sorted` holds the items of `_latest`, in order, at most `_WINDOW`.

    Attributes:
        known: there are enough for a range.
        range: what a new prediction is to be multiplied with; a guess while that is not known.

    """

    __slots__ = ("_coverage", "_latest", "_level", "_sorted", "_sum", "known", "range")

    def __init__(self, coverage: float) -> None:
        """`coverage`: share of outcomes that shall lie below the upper end of the range, 0.5 to below 1."""
        self._coverage = coverage
        self._level = coverage
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []
        self._sum = 0.0
        self.known = False
        self.range = _GUESS

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, ratio: float, *, covered: bool | None) -> None:
        """Note an outcome; `covered`: it was below the upper end stated for it, None if that was not of this making."""
        self._latest.append(ratio)
        insort(self._sorted, ratio)
        self._sum += ratio
        if len(self._latest) > _WINDOW:
            oldest = self._latest.popleft()
            self._sum -= oldest
            del self._sorted[bisect_left(self._sorted, oldest)]
        if covered is not None:
            self._level += _SHIFT * (self._coverage - covered)
            self._level = min(max(self._level, _LEVELS[0]), _LEVELS[1])
        self.known = len(self._latest) >= _FEW
        if self.known:
            self.range = self._make_range()

    def _make_range(self) -> Range:
        ratios = self._sorted
        last = len(ratios) - 1
        # the (n+1) of split conformal prediction: the next outcome is one more of the same kind
        high = ratios[min(int(self._level * (last + 2)), last)]
        low = max(int((1.0 - self._coverage) * (last + 2)) - 1, 0)
        middle = ratios[last // 2]
        if self._level > 1.0:  # further by as much as from the middle to the longest, for each share that may be missed
            high += (high - middle) * (self._level - 1.0) / (1.0 - self._coverage)
        mean = (self._sum + _BELIEF) / (last + 1 + _BELIEF)
        return Range(low=ratios[low], middle=middle, high=high, mean=mean)
