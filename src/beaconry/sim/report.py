"""What a scenario gave: a result per cell, and figures per policy and load with their confidence intervals over the seeds."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from msgspec import Struct

from beaconry.sim.recorder import Look
from beaconry.workload.interval import Interval, interval
from beaconry.workload.summary import Summary

VERSION = 1


class Cell(Struct, frozen=True, kw_only=True):
    """One combination of what a scenario compares."""

    policy: str
    load: float
    seed: int


class CellResult(Struct, frozen=True, kw_only=True):
    """What came of a cell."""

    cell: Cell
    summary: Summary
    looks: tuple[Look, ...]
    virtual_s: float
    """Simulated seconds."""
    cpu_s: float
    """CPU seconds it took."""
    events: int


class Report(Struct, frozen=True, kw_only=True):
    """All cells of a scenario: the file of `--json`. `version` rises when a field changes its meaning."""

    version: int = VERSION
    name: str
    engines: dict[str, str]
    """By pool: preset, and how well it is known."""
    cells: tuple[CellResult, ...]


class Row(Struct, frozen=True, kw_only=True):
    """A policy at a load, over all seeds."""

    policy: str
    load: float
    figures: dict[str, Interval | None]
    """By name, with its unit."""


def rows_of(report: Report) -> list[Row]:
    """A row per load and policy, in the order of the cells; figures that no cell has are left out."""
    groups: dict[tuple[float, str], list[Summary]] = {}
    for result in report.cells:
        groups.setdefault((result.cell.load, result.cell.policy), []).append(result.summary)
    wanted = [name for name, figure in FIGURES.items() if any(figure(one.summary) is not None for one in report.cells)]
    return [
        Row(
            policy=policy,
            load=load,
            figures={name: interval([FIGURES[name](summary) for summary in summaries]) for name in wanted},
        )
        for (load, policy), summaries in groups.items()
    ]


def first_seeds(report: Report) -> dict[float, list[CellResult]]:
    """The cells of the first seed, by load: what is drawn over time."""
    by_load: dict[float, list[CellResult]] = {}
    for result in report.cells:
        if result.cell.seed == report.cells[0].cell.seed:
            by_load.setdefault(result.cell.load, []).append(result)
    return by_load


def hit_rates(looks: Sequence[Look]) -> list[float | None]:
    """Cached share of the prompt tokens between each look and the one before it, in %."""
    rates: list[float | None] = []
    for before, after in pairwise(looks):
        tokens = after.prompt_tokens - before.prompt_tokens
        rates.append(100 * (after.cached_tokens - before.cached_tokens) / tokens if tokens > 0 else None)
    return rates


def _at(spread: str, point: str, factor: float, summary: Summary) -> float | None:
    values = getattr(summary, spread)
    return None if values is None else factor * float(getattr(values, point))


FIGURES: dict[str, Callable[[Summary], float | None]] = {
    "requests": lambda s: s.requests,
    "failed": lambda s: s.failed,
    "TTFT p50 ms": partial(_at, "ttft_s", "p50", 1000.0),
    "TTFT p90 ms": partial(_at, "ttft_s", "p90", 1000.0),
    "TTFT p99 ms": partial(_at, "ttft_s", "p99", 1000.0),
    "TPOT p50 ms": partial(_at, "tpot_s", "p50", 1000.0),
    "TPOT p90 ms": partial(_at, "tpot_s", "p90", 1000.0),
    "E2E p50 s": partial(_at, "e2e_s", "p50", 1.0),
    "output tokens/s": lambda s: s.output_tokens_per_s,
    "goodput/s": lambda s: s.goodput,
    "within SLO %": lambda s: None if s.attainment is None else 100 * s.attainment,
    "hit %": lambda s: None if s.hit_rate is None else 100 * s.hit_rate,
    "ideal hit %": lambda s: None if s.ideal_hit_rate is None else 100 * s.ideal_hit_rate,
}
"""What is compared, by name and unit."""
