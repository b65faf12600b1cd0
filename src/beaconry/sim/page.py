"""A scenario's report as one self-contained HTML page: figures, distributions, and the fleet over time. Shares the bench's charts."""

from collections.abc import Callable, Iterator, Sequence
from html import escape

from beaconry.sim.recorder import Look
from beaconry.sim.report import CellResult, Report, Row, first_seeds, hit_rates, rows_of
from beaconry.workload.charts import Chart, Line, draw
from beaconry.workload.interval import Interval
from beaconry.workload.page import page
from beaconry.workload.report import COLOURS, charts_of, table
from beaconry.workload.result import Result
from beaconry.workload.wording import in_short

OVER_LOADS = ("TTFT p50 ms", "TTFT p90 ms", "TPOT p90 ms", "goodput/s", "hit %", "failed")
"""Figures that are drawn against the load, where there are several loads."""


def render(report: Report) -> str:
    """The whole page."""
    title = f"Beaconry simulation: {report.name}"
    rows = rows_of(report)
    parts = [f"<h1>{escape(title)}</h1>", _engines(report), _figures(rows)]
    if len({row.load for row in rows}) > 1:
        parts.append(_section("Against the load", _over_loads(rows)))
    for load, results in first_seeds(report).items():
        seed = results[0].cell.seed
        parts.append(_section(f"Load {load:g}, seed {seed}: latencies", charts_of([_result(one) for one in results])))
        parts.append(_section(f"Load {load:g}, seed {seed}: the fleet over time", _over_time(results)))
    return page(title, "".join(parts))


def _engines(report: Report) -> str:
    items = (f"<li>pool <b>{escape(pool)}</b>: {escape(preset)}</li>" for pool, preset in report.engines.items())
    return f'<ul class="runs">{"".join(items)}</ul>'


def _section(title: str, charts: Iterator[Chart]) -> str:
    return f'<h2>{escape(title)}</h2><section class="charts">{"".join(map(draw, charts))}</section>'


def _figures(rows: Sequence[Row]) -> str:
    """A line per policy and load."""
    cells = [
        f"<td>{escape(row.policy)}</td><td>{row.load:g}</td>" + "".join(map(_cell, row.figures.values()))
        for row in rows
    ]
    return table("Means over the seeds, ± half of the 95 % interval", ["policy", "load", *rows[0].figures], cells)


def _cell(value: Interval | None) -> str:
    if value is None:
        return "<td>-</td>"
    spread = f"<small> ±{in_short(value.half)}</small>" if value.half is not None else ""
    return f"<td>{in_short(value.mean)}{spread}</td>"


def _over_loads(rows: Sequence[Row]) -> Iterator[Chart]:
    policies = list(dict.fromkeys(row.policy for row in rows))
    for name in OVER_LOADS:
        if name not in rows[0].figures:
            continue
        lines = []
        for number, policy in enumerate(policies):
            mine = sorted((row for row in rows if row.policy == policy), key=lambda row: row.load)
            points = [(row.load, value.mean if (value := row.figures[name]) else None) for row in mine]
            lines.append(Line(label=policy, points=points, colour=number % COLOURS))
        yield Chart(title=name, x_unit="load", y_unit="", lines=lines)


def _over_time(results: Sequence[CellResult]) -> Iterator[Chart]:
    for title, unit, value in SERIES:
        lines = [
            Line(
                label=result.cell.policy,
                points=[(look.at_s, value(look)) for look in result.looks],
                colour=number % COLOURS,
            )
            for number, result in enumerate(results)
        ]
        yield Chart(title=title, x_unit="s", y_unit=unit, lines=lines)
    hits = [
        Line(
            label=result.cell.policy,
            points=[(look.at_s, rate) for look, rate in zip(result.looks[1:], hit_rates(result.looks), strict=True)],
            colour=number % COLOURS,
        )
        for number, result in enumerate(results)
    ]
    yield Chart(title="Prefix cache hits", x_unit="s", y_unit="%", lines=hits)


def _result(cell: CellResult) -> Result:
    return Result(
        label=cell.cell.policy,
        target="virtual time",
        model="",
        started_at="",
        workload={"load": cell.cell.load, "seed": cell.cell.seed},
        summary=cell.summary,
    )


SERIES: tuple[tuple[str, str, Callable[[Look], float]], ...] = (
    ("Requests that wait in engines", "", lambda look: look.waiting),
    ("Requests that run", "", lambda look: look.running),
    ("KV memory in use by requests", "%", lambda look: 100 * look.kv_usage),
    ("Engines that serve", "", lambda look: look.replicas),
)
"""What is drawn of the fleet over time: title, unit, value."""
