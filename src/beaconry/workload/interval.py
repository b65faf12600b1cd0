"""The mean of a few repetitions, and how sure it is: Student's t, since there are never many."""

from collections.abc import Sequence
from math import sqrt

from msgspec import Struct

_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101,
    2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % quantiles for 1 to 30 degrees of freedom."""
_NORMAL_95 = 1.96


class Interval(Struct, frozen=True, kw_only=True):
    """A mean of `count` values; `half` is half the width of its 95 % confidence interval, None from a single value."""

    mean: float
    half: float | None
    count: int


def interval(values: Sequence[float | None]) -> Interval | None:
    """The mean of the values that are there; None if there is none."""
    known = [value for value in values if value is not None]
    count = len(known)
    if not count:
        return None
    mean = sum(known) / count
    if count == 1:
        return Interval(mean=mean, half=None, count=1)
    variance = sum((value - mean) ** 2 for value in known) / (count - 1)
    quantile = _T_95[count - 2] if count - 2 < len(_T_95) else _NORMAL_95
    return Interval(mean=mean, half=quantile * sqrt(variance / count), count=count)
