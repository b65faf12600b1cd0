"""A straight line learnt from one observation after the other: what times are made of, by the amount of work."""

_GAIN = 0.03
"""Share of an error that one observation corrects, once there are enough: about the last fifty count."""
_LEAST = 1e-9
"""Seconds of either part: a way back from times that were nothing, for only factors are learnt."""
CLIP = 3.0
"""An observation counts as at most so many times what was expected, and at least that part of it."""


class Line:
    """y = base + slope * x, both positive, learnt from one observation after the other.

    Each part takes the share of a relative error that is its share of the expected value: legs with little to prefill teach the base,
    legs with much the slope. So a long run of equal x, as a warm cache brings about, leaves the other part as it was; a fit by least
    squares forgets the slope there, and a prefill believed to be free has every prefix copied everywhere.
    """

    __slots__ = ("base", "base_seen", "slope", "slope_seen")

    def __init__(self, base: float, slope: float) -> None:
        self.base = base
        self.slope = slope
        self.base_seen = 0.0  # observations so far, each by its share in the base
        self.slope_seen = 0.0

    def at(self, x: float) -> float:
        """What is expected at `x`."""
        return self.base + self.slope * x

    def observe(self, x: float, y: float, weight: float = 1.0) -> None:
        """Learn that it was `y`; an error counts `weight` times."""
        expected = self.base + self.slope * x
        error = weight * (min(max(y / expected, 1 / CLIP), CLIP) - 1)
        base_share = self.base / expected
        slope_share = 1 - base_share
        self.base = max(self.base * (1 + error * base_share * max(_GAIN, 1 / (2 + self.base_seen))), _LEAST)
        self.slope = max(self.slope * (1 + error * slope_share * max(_GAIN, 1 / (2 + self.slope_seen))), _LEAST)
        self.base_seen += base_share
        self.slope_seen += slope_share
