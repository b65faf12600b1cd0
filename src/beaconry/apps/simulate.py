"""`beaconry simulate`: a scenario in virtual time, with the routers that run in production; policies and loads side by side."""

import argparse
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from beaconry.apps.explanation import print_explanation
from beaconry.apps.simulate_report import print_report
from beaconry.apps.virtual_fleet import cells, provenance, run_cell
from beaconry.io.config_file import read_yaml
from beaconry.sim.page import render
from beaconry.sim.report import Cell, CellResult, Report
from beaconry.sim.scenario import Scenario
from beaconry.values.errors import OperatorError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add = parser.add_argument
    add("scenario", metavar="SCENARIO", type=Path, help="scenario YAML file")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--html", type=Path, metavar="FILE", help="write a page with plots there: one file, no network needed")
    add("--jobs", type=int, default=1, metavar="N", help="processes that simulate side by side (default: %(default)s)")
    add(
        "--explain",
        type=int,
        metavar="REQUEST_ID",
        help="print how this request was placed, in the first cell, and nothing else; ids count requests from 0 as they are sent",
    )


def run(args: argparse.Namespace) -> int:
    """Simulate and report. 0: done; 1: nothing to explain, or no request succeeded. OperatorError for what cannot be simulated."""
    scenario = read_yaml(args.scenario, Scenario)
    folder = args.scenario.absolute().parent
    if args.explain is not None:
        return _explain(scenario, folder, args.explain)
    if args.jobs < 1:
        raise OperatorError(f"--jobs {args.jobs}: at least one is needed")
    for path in (args.json, args.html):
        if path is not None and not path.absolute().parent.is_dir():
            raise OperatorError(f"{path}: there is no folder {path.absolute().parent}; make it first")
    report = Report(
        name=scenario.metadata.name, engines=provenance(scenario), cells=simulate(scenario, folder, args.jobs)
    )
    print_report(report)
    if args.json is not None:
        _write(args.json, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if args.html is not None:
        _write(args.html, render(report).encode())
    return 0 if any(cell.summary.succeeded for cell in report.cells) else 1


def simulate(scenario: Scenario, folder: Path, jobs: int) -> tuple[CellResult, ...]:
    """All cells, in their order, with a progress bar in a terminal."""
    every = cells(scenario)
    with _progress(len(every)) as shown:
        if jobs == 1:
            results = []
            for cell in every:
                result, _ = run_cell(scenario, cell, folder, progress=shown(cell))
                results.append(result)
            return tuple(results)
        with ProcessPoolExecutor(min(jobs, len(every))) as pool:
            futures = {pool.submit(run_cell, scenario, cell, folder): cell for cell in every}
            found: dict[Cell, CellResult] = {}
            for future in as_completed(futures):
                found[futures[future]], _ = future.result()
                shown(futures[future])
            return tuple(found[cell] for cell in every)


def _explain(scenario: Scenario, folder: Path, request: int) -> int:
    cell = cells(scenario)[0]
    result, explained = run_cell(scenario, cell, folder, explain=request)
    if not explained:
        sent = result.summary.requests + result.summary.warming
        print(f"request {request} was never placed: {sent} requests were sent, counted from 0", file=sys.stderr)
        return 1
    for one in explained:
        print_explanation(one, request)
    return 0


Shown = Callable[[Cell], Callable[[float, int], None]]


@contextmanager
def _progress(cells_in_all: int) -> Iterator[Shown]:
    """A function that notes the begin of a cell, and returns one that notes how far it has come."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=cells_in_all, what="", completed=-1)

        def begin(cell: Cell) -> Callable[[float, int], None]:
            name = f"{cell.policy}, load {cell.load:g}, seed {cell.seed}"
            bar.update(task, advance=1, what=name)

            def come(at_s: float, ended: int) -> None:
                bar.update(task, what=f"{name}: {at_s:,.0f} s, {ended:,} requests")

            return come

        yield begin


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OperatorError(f"{path}: cannot write: {error.strerror}") from error
