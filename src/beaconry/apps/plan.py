"""`beaconry plan`: the cheapest fleet that meets its targets, proven by simulation with the routers that run in production."""

import argparse
from pathlib import Path

import msgspec
from rich.console import Console

from beaconry.apps.plan_report import print_plan, spec_text
from beaconry.apps.planner import Planner
from beaconry.io.config_file import read_yaml
from beaconry.sim.planning import Planning, service_of
from beaconry.values.errors import OperatorError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("planning", metavar="PLANNING", type=Path, help="planning YAML file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the ModelService spec there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run(args: argparse.Namespace) -> int:
    """Plan and report. 0: there is a plan; 1: no fleet meets the targets. OperatorError for what cannot be planned."""
    planning = read_yaml(args.planning, Planning)
    for path in (args.out, args.json):
        if path is not None and not path.absolute().parent.is_dir():
            raise OperatorError(f"{path}: there is no folder {path.absolute().parent}; make it first")
    console = Console(stderr=True)
    with console.status("") as status:

        def tell(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(text, highlight=False)

        outcome = Planner(planning, args.planning.absolute().parent, tell).plan()
    spec = None if outcome.plan is None else spec_text(service_of(planning, outcome.plan.counts))
    print_plan(planning, outcome, spec)
    if args.json is not None:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=1) + b"\n")
    if args.out is not None and spec is not None:
        args.out.write_text(spec)
    return 0 if outcome.plan is not None else 1
