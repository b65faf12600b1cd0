"""A placement's decision trace in the terminal: every candidate, what it would have cost, and why it lost."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beaconry.sim.fleet import Explained
from beaconry.values.decision import Decision, Verdict
from beaconry.values.stage import Stage

SHOWN = 24
"""Candidates, the best ones; more are only counted."""


def print_explanation(explained: Explained, request: int, console: Console | None = None) -> None:
    """One decision as a table, the winner first."""
    console = console or Console()
    decision = explained.decision
    replica = f" by router {explained.front}" if explained.front else ""
    console.print(
        Text(
            f"request {request} at {explained.at_s:.3f} s{replica}: {decision.endpoint.name} ({decision.policy}{_leg(decision)})",
            style="bold",
        )
    )
    verdicts = decision.verdicts
    terms = decision.ranking.terms
    table = Table("endpoint", "prefill", "decode", "cached", "TTFT ms", *terms, "total", "verdict")
    for verdict in verdicts[:SHOWN]:
        table.add_row(*_cells(verdict, terms))
    console.print(table)
    if len(verdicts) > SHOWN:
        console.print(f"and {len(verdicts) - SHOWN} more", highlight=False)


def _leg(decision: Decision) -> str:
    """Which leg it is of how many, and why; nothing where there is only one kind of endpoint."""
    if not decision.plan:
        return ""
    if decision.stage is Stage.DECODE:
        return f"; decode, prefilled by {decision.source} in {1000 * decision.prefill_s:,.1f} ms: {decision.plan}"
    return f"; {decision.stage.value}: {decision.plan}"


def _cells(verdict: Verdict, terms: tuple[str, ...]) -> list[str]:
    candidate, prediction = verdict.candidate, verdict.prediction
    return [
        candidate.endpoint.name,
        f"{candidate.prefilling} ({candidate.prefill_tokens:,} tokens)",
        str(candidate.decoding),
        f"{candidate.matched_tokens:,}",
        "-" if prediction is None else f"{1000 * prediction.ttft_s:,.1f}",
        *(f"{verdict.terms[name]:.4g}" if name in verdict.terms else "-" for name in terms),
        f"{verdict.total:.4g}",
        verdict.reason,
    ]
