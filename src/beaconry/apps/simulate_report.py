"""What `beaconry simulate` prints: a table per load, means over the seeds with their confidence intervals."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from beaconry.sim.report import Report, Row, rows_of
from beaconry.workload.interval import Interval
from beaconry.workload.wording import in_short


def print_report(report: Report, console: Console | None = None) -> None:
    """The table, what went wrong, and how fast it was simulated."""
    console = console or Console()
    rows = rows_of(report)
    for load in dict.fromkeys(row.load for row in rows):
        console.print(_table(report.name, [row for row in rows if row.load == load]))
    for cell in report.cells:
        for kind, number in cell.summary.errors.items():
            console.print(
                Text(
                    f"{cell.cell.policy}, load {cell.cell.load:g}, seed {cell.cell.seed}: {number} x {kind}",
                    style="red",
                )
            )
    for pool, preset in report.engines.items():
        console.print(f"pool {pool}: {preset}", highlight=False)
    virtual_s, cpu_s = sum(cell.virtual_s for cell in report.cells), sum(cell.cpu_s for cell in report.cells)
    console.print(
        f"{virtual_s:,.0f} s simulated in {cpu_s:,.1f} s of CPU ({virtual_s / max(cpu_s, 1e-9):,.0f} x real time)",
        highlight=False,
    )


def _table(name: str, rows: Sequence[Row]) -> Table:
    """The policies of one load side by side."""
    seeds = max(value.count for value in rows[0].figures.values() if value is not None)
    means = f", means of {seeds} seeds ± half of the 95 % interval" if seeds > 1 else ""
    table = Table(
        "", *(Column(Text(row.policy), justify="right") for row in rows), title=f"{name}, load {rows[0].load:g}{means}"
    )
    for figure in rows[0].figures:
        table.add_row(figure, *(_figure(row.figures[figure]) for row in rows))
    return table


def _figure(value: Interval | None) -> str:
    if value is None:
        return "-"
    return in_short(value.mean) + (f" ±{in_short(value.half)}" if value.half is not None else "")
