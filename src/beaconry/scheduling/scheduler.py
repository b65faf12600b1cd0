"""Where a request goes: filters, then a policy's ranking, then a Decision that can explain itself.

A plugin that raises never fails a request: a filter keeps everything, a policy gives way to the fewest requests in flight. Each
failure is counted by plugin, and the last message kept, for the shell to report.
"""

from collections.abc import Sequence
from random import Random
from typing import cast

from msgspec import Struct

from beaconry.plugins.kinds import Filter, Policy, PredictorSource
from beaconry.plugins.registry import Registry
from beaconry.values.candidate import Candidate
from beaconry.values.decision import Decision, Ranking
from beaconry.values.request import Request


class PluginFailures(Struct):
    """How often a plugin raised, and what it said last."""

    count: int = 0
    last: str = ""


class Scheduler:
    """Filters and one policy. Sees values only; keeps no state but its failure counts."""

    def __init__(self, name: str, policy: Policy, filters: Sequence[tuple[str, Filter]] = ()) -> None:
        self.name = name
        self._policy = policy
        self._filters = tuple(filters)
        self._failures: dict[str, PluginFailures] = {}

    def schedule(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Decision:
        """Choose among `candidates`, which must not be empty."""
        kept, dropped = self._filtered(request, candidates) if self._filters else (candidates, ())
        try:
            ranking = self._policy.rank(request, kept, now_s, rng)
            endpoint = kept[ranking.winner].endpoint
        except Exception as error:  # noqa: BLE001 a plugin's fault must not become the caller's
            self._failed(f"policy/{self.name}", error)
            ranking = _fewest_in_flight(kept)
            endpoint = kept[ranking.winner].endpoint
        return Decision(endpoint=endpoint, policy=self.name, candidates=kept, ranking=ranking, dropped=dropped)

    def failures(self) -> dict[str, PluginFailures]:
        """Failures by plugin ("kind/name")."""
        return self._failures

    def _filtered(
        self, request: Request, candidates: Sequence[Candidate]
    ) -> tuple[Sequence[Candidate], Sequence[Candidate]]:
        kept = candidates
        for name, keep in self._filters:
            try:
                kept = keep.keep(request, kept) or kept
            except Exception as error:  # noqa: BLE001 a plugin's fault must not become the caller's
                self._failed(f"filter/{name}", error)
        chosen = {c.endpoint.name for c in kept}
        return kept, [c for c in candidates if c.endpoint.name not in chosen]

    def _failed(self, plugin: str, error: Exception) -> None:
        failures = self._failures.setdefault(plugin, PluginFailures())
        failures.count += 1
        failures.last = f"{type(error).__name__}: {error}"


def make_scheduler(
    policy: str, predictor: PredictorSource, registry: Registry, *, filters: Sequence[str] = ()
) -> Scheduler:
    """Put together the scheduler for a policy's name. Raises OperatorError for names that the registry does not know."""
    made = cast("Policy", registry.factory("policy", policy)(predictor))
    return Scheduler(policy, made, [(name, registry.factory("filter", name)()) for name in filters])


def _fewest_in_flight(candidates: Sequence[Candidate]) -> Ranking:
    totals = [float(c.in_flight) for c in candidates]
    return Ranking(winner=totals.index(min(totals)), totals=totals, terms=("in_flight",), why="the policy failed")
