"""What `beaconry plan` prints: the fleets that were looked at, the plan, what it bears, what breaks first, and the spec."""

from enum import Enum
from typing import Any

import msgspec
import yaml
from rich.console import Console
from rich.table import Column, Table

from beaconry.apps.planner import Outcome, Trial
from beaconry.manifests.model_service import ModelService
from beaconry.sim.planning import Planning, fleet_name
from beaconry.workload.wording import in_short

_FULL = 0.95
"""KV memory in use, above which it is what requests wait for."""
_OFTEN = 0.1
"""Share of the time with more than one request waiting per engine."""


def print_plan(planning: Planning, outcome: Outcome, spec: str | None, console: Console | None = None) -> None:
    """All of it, for people."""
    console = console or Console()
    demand = outcome.demand
    console.print(
        f"Traffic: {demand.requests_per_s:.3g} requests/s of {demand.prompt_tokens:,.0f} prompt tokens"
        f" ({demand.uncached_tokens:,.0f} never seen before) and {demand.output_tokens:,.0f} output tokens, on average.",
        highlight=False,
    )
    for (preset, bound), how in zip(outcome.bounds_per_s.items(), outcome.provenance.values(), strict=True):
        console.print(f"  {preset} ({how}): {_limit(bound)}", highlight=False)
    for pool, bound in outcome.apart_per_s.items():
        console.print(f"  {pool}: {_limit(bound)}", highlight=False)
    console.print(_table(planning, outcome))
    if outcome.exhausted:
        console.print(f"All {planning.simulations} simulations were used: there may be a cheaper fleet.")
    if outcome.plan is None:
        console.print("No fleet meets the targets: allow more replicas (most), faster variants, or looser targets.")
        return
    spare = f", of which any {planning.spare} may be lost" if planning.spare else ""
    console.print(
        f"Plan: {fleet_name(planning, outcome.plan.counts)} at {outcome.plan.price:,.2f} an hour{spare}."
        f" It bears {outcome.margin:.2f} x the planned traffic.",
        highlight=False,
    )
    if outcome.breaking is not None:
        console.print(f"At {outcome.breaking.load:.2f} x: {breaks_first(outcome.breaking)}.", highlight=False)
    if spec is not None:
        console.print("\n" + spec, highlight=False, markup=False, soft_wrap=True)


def breaks_first(trial: Trial) -> str:
    """Which target is missed, and for want of what."""
    summary = trial.worst
    if summary is None:
        return "nobody is left to answer"
    misses = {
        "answers fail": summary.failed,
        "first tokens come late": summary.missed.get("ttft", 0),
        "tokens follow too slowly": summary.missed.get("itl", 0),
    }
    first = max(misses, key=lambda name: misses[name])
    share = 100 * misses[first] / max(summary.requests, 1)
    fullest = max((look.fullest_kv_usage for look in trial.looks), default=0.0)
    queueing = sum(look.waiting > look.replicas for look in trial.looks) / max(len(trial.looks), 1)
    if fullest >= _FULL:
        cause = "KV memory is full"
    elif queueing >= _OFTEN:
        cause = "prompts queue at the engines"
    else:
        cause = "batches, and the prompts computed between their steps, are too large for it"
    return (
        f"{first} ({share:.0f} % of the requests); {cause}"
        f" (KV memory at most {100 * fullest:.0f} % full, queues in {100 * queueing:.0f} % of the time)"
    )


def spec_text(service: ModelService) -> str:
    """A ModelService as YAML, without what is at its default."""
    return yaml.safe_dump(_lean(service), sort_keys=False, width=120)


def _lean(value: object) -> Any:
    """Structs as mappings of what differs from the defaults."""
    if isinstance(value, tuple | list):
        return [_lean(one) for one in value]
    if isinstance(value, Enum):
        return value.value
    if not isinstance(value, msgspec.Struct):
        return value
    config = value.__struct_config__
    tree: dict[str, Any] = {} if config.tag is None else {str(config.tag_field): config.tag}
    for field in msgspec.structs.fields(value):
        mine = getattr(value, field.name)
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if mine != default:
            tree[field.encode_name] = _lean(mine)
    return tree


def _limit(bound_per_s: float) -> str:
    if not bound_per_s:
        return "too slow for the target between tokens"
    return f"at most {bound_per_s:.3g} requests/s and replica"


def _table(planning: Planning, outcome: Outcome) -> Table:
    """The fleets that were simulated at the planned load, cheapest first."""
    table = Table(
        "fleet",
        *(Column(name, justify="right") for name in ("an hour", "within SLO %", "TTFT p50/p95 s", "TPOT p50/p95 ms")),
        title=f"{planning.metadata.name}: {100 * planning.slo.attainment:g} % within {_targets(planning)}",
    )
    trials = [*outcome.runners_up, *([outcome.plan] if outcome.plan else [])]
    for trial in sorted(trials, key=lambda one: (one.price, one.counts)):
        table.add_row(*_cells(planning, trial), style="bold" if trial is outcome.plan else None)
    return table


def _cells(planning: Planning, trial: Trial) -> tuple[str, ...]:
    name, price, summary = fleet_name(planning, trial.counts), f"{trial.price:,.2f}", trial.worst
    if summary is None:
        return name, price, "0", "-", "-"
    ttft, tpot = summary.ttft_s, summary.tpot_s
    return (
        name,
        price,
        f"{100 * (summary.attainment or 0.0):.1f}",
        "-" if ttft is None else f"{in_short(ttft.p50)} / {in_short(ttft.p95)}",
        "-" if tpot is None else f"{in_short(1e3 * tpot.p50)} / {in_short(1e3 * tpot.p95)}",
    )


def _targets(planning: Planning) -> str:
    ttft_s, itl_s = planning.slo.ttft_s, planning.slo.itl_s
    named = [] if ttft_s is None else [f"TTFT {ttft_s:g} s"]
    return ", ".join(named + ([] if itl_s is None else [f"{1e3 * itl_s:g} ms between tokens"]))
