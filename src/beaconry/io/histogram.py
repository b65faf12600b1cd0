"""The router's histograms in Prometheus' terms."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import inf

from beaconry.io.exposition import Lines, further, labels, number
from beaconry.router.statistics import Distribution


def histogram(name: str, text: str, names: Sequence[str], rows: Iterable[tuple[Sequence[str], Distribution]]) -> Lines:
    """One family, a row per set of label values."""
    lines: list[str] = []
    for values, distribution in rows:
        label = labels(names, values)
        below = 0
        for bound, below in zip((*distribution.bounds, inf), accumulate(distribution.counts), strict=True):
            lines.append(f"{name}_bucket{further(label, 'le', number(bound))} {number(below)}\n")
        lines.append(f"{name}_count{label} {number(below)}\n")
        lines.append(f"{name}_sum{label} {number(distribution.total)}\n")
    return Lines("histogram", name, text, lines)
