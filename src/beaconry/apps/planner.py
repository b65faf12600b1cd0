"""A planning worked out: bounds, search and margin over simulated fleets. `plan.py` is the verb."""

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, structs

from beaconry.apps.virtual_fleet import TraceFiles, cells, run_cell
from beaconry.sim.bounds import Demand, decodes_per_s, demand_of, most_per_s, prefills_per_s
from beaconry.sim.planning import Counts, Kind, Planning, fleet_name, kinds, scenario_of, without
from beaconry.sim.recorder import Look
from beaconry.sim.search import Choice, Search
from beaconry.sim.workloads import openings
from beaconry.values.endpoint import Role
from beaconry.values.errors import OperatorError
from beaconry.workload.plan import Plan
from beaconry.workload.summary import Summary

_LOAD_STEP = 0.05
_MOST_LOAD = 4.0


class Trial(Struct, frozen=True, kw_only=True):
    """A fleet that was simulated."""

    counts: Counts
    """By pool."""
    load: float
    """Factor on the planned traffic."""
    price: float
    """Per hour, spare replicas included."""
    met: bool
    worst: Summary | None = None
    """Of all seeds and losses simulated the one with the least share of good answers; None if nobody was left to answer."""
    looks: tuple[Look, ...] = ()


class Outcome(Struct, frozen=True, kw_only=True):
    """The whole plan: the file of `--json`."""

    demand: Demand
    bounds_per_s: dict[str, float]
    """By preset: requests per second that a replica cannot exceed."""
    apart_per_s: dict[str, float]
    """By pool of prefill or decode engines, the same; empty unless they were looked at."""
    provenance: dict[str, str]
    """By preset: how well its speed is known."""
    pools: tuple[str, ...]
    """Names of the pools that fleets were made of, in the order of their counts."""
    plan: Trial | None
    """None: no fleet met the targets."""
    runners_up: tuple[Trial, ...]
    """Other fleets at the planned load, in the order in which they were simulated."""
    margin: float
    """The largest factor on the traffic under which the plan meets its targets still."""
    breaking: Trial | None
    """The plan under a little more than that."""
    exhausted: bool


class Planner:
    """One planning: simulates fleets and remembers what came of them."""

    def __init__(self, planning: Planning, folder: Path, tell: Callable[[str], None]) -> None:
        """`folder` is where trace files are looked for; `tell` is given a line before each simulation."""
        self._planning = planning
        self._folder = folder
        self._tell = tell
        self._trials: dict[tuple[Counts, float], Trial] = {}

    def plan(self) -> Outcome:
        """Search, then find out how much more the plan bears. OperatorError for presets that do not exist."""
        planning = self._planning
        demand = self._demand()
        variants = [choice.what() for choice in planning.variants]
        bounds = [most_per_s(demand, v.settings(), v.step_time(), planning.slo.itl_s) for v in variants]
        choices = [self._choice(kind, demand) for kind in kinds(planning)]
        needed = demand.requests_per_s * planning.slo.attainment
        search = Search(choices, needed, self._meets, simulations=planning.simulations, mix=planning.mix)
        found = search.run()
        margin, breaking = (0.0, None) if found.counts is None else self._margin(found.counts)
        at_load = [trial for (_, load), trial in self._trials.items() if load == 1.0]
        return Outcome(
            demand=demand,
            bounds_per_s={section.preset: bound for section, bound in zip(planning.variants, bounds, strict=True)},
            apart_per_s={
                kind.pool: choice.bound_per_s
                for kind, choice in zip(kinds(planning), choices, strict=True)
                if choice.role is not Role.BOTH
            },
            provenance={v.name: v.provenance.value for v in variants},
            pools=tuple(kind.pool for kind in kinds(planning)),
            plan=None if found.counts is None else self._trials[found.counts, 1.0],
            runners_up=tuple(trial for trial in at_load if trial.counts != found.counts),
            margin=margin,
            breaking=breaking,
            exhausted=found.exhausted,
        )

    def _choice(self, kind: Kind, demand: Demand) -> Choice:
        """What the search has to know of a kind of replica."""
        what, section, itl_s = kind.section.what(), kind.section, self._planning.slo.itl_s
        settings, step_time = what.settings(), what.step_time()
        prefills = prefills_per_s(demand, settings, step_time)
        decodes = decodes_per_s(demand, settings, step_time, itl_s)
        bound_per_s = {Role.PREFILL: prefills, Role.DECODE: decodes}.get(kind.role, min(prefills, decodes))
        return Choice(
            price=section.replica_price(),
            most=section.most,
            bound_per_s=bound_per_s,
            role=kind.role,
            prefill_per_s=prefills,
        )

    def _demand(self) -> Demand:
        planning = self._planning
        stream = openings(planning.workloads, 1.0, 1, TraceFiles(self._folder))
        try:
            return demand_of(Plan(stream, until_s=planning.duration_s))
        except ValueError as error:
            raise OperatorError(f"workloads: {error}") from None

    def _meets(self, counts: Counts) -> bool:
        return self._trial(counts, 1.0).met

    def _margin(self, counts: Counts) -> tuple[float, Trial | None]:
        """The largest load factor that the fleet bears, to `_LOAD_STEP`, and how it fails a step above."""
        good, bad, breaking = 1.0, 1.0, None
        while breaking is None and bad < _MOST_LOAD:
            bad = min(1.0 + 2 * max(bad - 1.0, _LOAD_STEP / 2), _MOST_LOAD)
            trial = self._trial(counts, bad)
            if trial.met:
                good = bad
            else:
                breaking = trial
        while breaking is not None and bad - good > _LOAD_STEP * 1.5:
            middle = round((good + bad) / 2 / _LOAD_STEP) * _LOAD_STEP
            trial = self._trial(counts, middle)
            if trial.met:
                good = middle
            else:
                bad, breaking = middle, trial
        return good, breaking

    def _trial(self, counts: Counts, load: float) -> Trial:
        known = self._trials.get((counts, load))
        if known is None:
            known = self._trials[counts, load] = self._simulate(counts, load)
        return known

    def _simulate(self, counts: Counts, load: float) -> Trial:
        """All seeds, and all losses of spare replicas, until one misses the targets."""
        planning = self._planning
        price = sum(kind.section.replica_price() * n for kind, n in zip(kinds(planning), counts, strict=True))
        self._tell(f"simulating {fleet_name(planning, counts)} at {price:,.2f} an hour, load {load:.2f}")
        blank = Trial(counts=counts, load=load, price=price, met=False)
        worst: tuple[float, Trial] | None = None
        for left in without(counts, planning.spare):
            if not any(left):
                return blank
            scenario = scenario_of(planning, left, load)
            for cell in cells(scenario):
                result, _ = run_cell(scenario, cell, self._folder)
                attained = result.summary.attainment or 0.0
                met = attained >= planning.slo.attainment
                trial = structs.replace(blank, met=met, worst=result.summary, looks=result.looks)
                if not met:
                    return trial
                if worst is None or attained < worst[0]:
                    worst = attained, trial
        assert worst is not None, "there is a way to lose nothing, and a seed"
        return worst[1]
