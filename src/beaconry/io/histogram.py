"""The router's histograms in Prometheus' terms."""

from collections.abc import Iterable
from itertools import accumulate
from math import inf

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from beaconry.router.statistics import Distribution


def histogram(
    name: str, text: str, labels: list[str], rows: Iterable[tuple[list[str], Distribution]]
) -> HistogramMetricFamily:
    """One family, a row per set of label values."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, distribution in rows:
        bounds, below = (*distribution.bounds, inf), accumulate(distribution.counts)
        buckets = [(floatToGoString(b), float(n)) for b, n in zip(bounds, below, strict=True)]  # type: ignore[no-untyped-call]
        family.add_metric(values, buckets, distribution.total)
    return family
