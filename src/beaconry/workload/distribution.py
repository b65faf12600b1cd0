"""Percentiles of a set of numbers, and the curve of all of them."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

CURVE_POINTS = 201
POINTS = ("mean", "p50", "p90", "p95", "p99", "max")
"""The figures of a distribution, by field name, in the order in which tables show them."""


class Distribution(Struct, frozen=True, kw_only=True):
    """A set of measured values in one unit (seconds everywhere in this package)."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    curve: tuple[float, ...]
    """Quantiles at 0, 0.005, ... 1: the inverse of the cumulative distribution."""


def distribution(values: Iterable[float]) -> Distribution | None:
    """Describe `values`; None if there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Distribution(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=quantile(ordered, 0.5),
        p90=quantile(ordered, 0.9),
        p95=quantile(ordered, 0.95),
        p99=quantile(ordered, 0.99),
        max=ordered[-1],
        curve=tuple(quantile(ordered, point / (CURVE_POINTS - 1)) for point in range(CURVE_POINTS)),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the sorted, non-empty `ordered` lies, interpolated linearly as numpy does."""
    place = share * (len(ordered) - 1)
    low = int(place)
    if low + 1 >= len(ordered):
        return ordered[-1]
    return ordered[low] + (ordered[low + 1] - ordered[low]) * (place - low)
