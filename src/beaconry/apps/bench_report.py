"""What `beaconry bench` shows in the terminal: progress while it runs, tables at the end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from beaconry.io.load.client import LoadStatistics
from beaconry.workload.distribution import POINTS
from beaconry.workload.result import Result, Row, figures, latencies, spreads
from beaconry.workload.summary import Summary
from beaconry.workload.wording import change_in_short, in_short, remarks

PLAIN_EVERY_S = 5.0
"""Between two progress lines where there is no terminal."""


@contextmanager
def progress_display(size: int | None) -> Iterator[Callable[[LoadStatistics], None]]:
    """A function that shows how far a run of `size` requests has come: a bar in a terminal, else a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainProgress(console, size).show
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[in_flight]} in flight, {task.fields[failed]} failed"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=size, in_flight=0, failed=0)

        def show(now: LoadStatistics) -> None:
            bar.update(task, completed=now.sent - now.in_flight, in_flight=now.in_flight, failed=now.failed)

        yield show


class _PlainProgress:
    """Prints at most one line per `PLAIN_EVERY_S`."""

    def __init__(self, console: Console, size: int | None) -> None:
        self._console = console
        self._of = "" if size is None else f"/{size}"
        self._next_s = PLAIN_EVERY_S

    def show(self, now: LoadStatistics) -> None:
        """Print how far the run has come, if it is time."""
        if now.elapsed_s < self._next_s:
            return
        self._next_s = now.elapsed_s + PLAIN_EVERY_S
        self._console.print(
            f"{now.elapsed_s:.0f} s: sent {now.sent}{self._of}, {now.in_flight} in flight, {now.failed} failed",
            highlight=False,
        )


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """One result in full, or several side by side, with what casts doubt on them."""
    console = console or Console()
    if len(results) == 1:
        _print_one(results[0], console)
    else:
        console.print(_side_by_side([*figures(results), *latencies(results)], [result.label for result in results]))
    for result in results:
        for remark in remarks(result):
            console.print(
                Text(f"note: {remark}" if len(results) == 1 else f"note: {result.label}: {remark}", style="yellow")
            )


def _print_one(result: Result, console: Console) -> None:
    summary = result.summary
    console.print(Text(f"{result.label}: {result.model} at {result.target}", style="bold"))
    console.print(_latency_table(summary))
    console.print(_side_by_side(figures([result]), ["value"]))
    for kind, number in summary.errors.items():
        example = summary.error_examples.get(kind)
        console.print(Text(f"{number} x {kind}" + (f", such as: {example}" if example else ""), style="red"))


def _latency_table(summary: Summary) -> Table:
    table = Table(
        "", *(Column(name, justify="right") for name in POINTS), title="latencies in ms, from the planned send time"
    )
    for name, spread in spreads(summary).items():
        table.add_row(name, *(in_short(1000 * getattr(spread, point)) for point in POINTS))
    return table


def _side_by_side(rows: Sequence[Row], labels: Sequence[str]) -> Table:
    """A row per figure. The best of several values is bold; the others say how far they are from the first one."""
    table = Table("", "unit", *(Column(Text(label), justify="right") for label in labels))
    for row in rows:
        best = row.best()
        cells = []
        for value, change in zip(row.values, row.changes(), strict=True):
            cell = Text(
                "-" if value is None else in_short(value),
                style="bold green" if value is not None and value == best else "",
            )
            if change is not None:
                cell.append(f" {change_in_short(change)}", style="dim")
            cells.append(cell)
        table.add_row(row.name, row.unit, *cells)
    return table
