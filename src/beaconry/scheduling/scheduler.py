"""Where a request goes: filters, then a policy's ranking, then a Decision that can explain itself.

A plugin that raises never fails a request: a filter keeps everything, a scorer scores nothing, a cost term costs nothing, a picker or a
whole policy gives way to the fewest requests in flight.
"""

from collections.abc import Sequence
from random import Random
from typing import cast

from beaconry.config.gateway import Profile
from beaconry.plugins.kinds import CostTerm, Filter, ForecastSource, Picker, Policy, PredictorSource, Scorer
from beaconry.plugins.registry import Registry
from beaconry.scheduling.expected_cost import ExpectedCost
from beaconry.scheduling.failures import FailureBook, PluginFailures
from beaconry.scheduling.objectives import Objectives
from beaconry.scheduling.weighted import Weighted
from beaconry.values.candidate import Candidate
from beaconry.values.decision import Decision, Ranking
from beaconry.values.errors import OperatorError
from beaconry.values.request import Request


class Scheduler:
    """Filters and one policy. Sees values only; keeps no state but its failure counts."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        filters: Sequence[tuple[str, Filter]] = (),
        failures: FailureBook | None = None,
    ) -> None:
        self.name = name
        self._policy = policy
        self._filters = tuple(filters)
        self._failures = FailureBook() if failures is None else failures

    def schedule(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Decision:
        """Choose among `candidates`, which must not be empty."""
        kept, dropped = self._filtered(request, candidates) if self._filters else (candidates, ())
        try:
            ranking = self._policy.rank(request, kept, now_s, rng)
            endpoint = kept[ranking.winner].endpoint
        except Exception as error:  # noqa: BLE001 a plugin's fault must not become the caller's
            self._failures.note(f"policy/{self.name}", error)
            ranking = _fewest_in_flight(kept)
            endpoint = kept[ranking.winner].endpoint
        return Decision(endpoint=endpoint, policy=self.name, candidates=kept, ranking=ranking, dropped=dropped)

    def failures(self) -> dict[str, PluginFailures]:
        """Failures by plugin ("kind/name")."""
        return self._failures.statistics()

    def _filtered(
        self, request: Request, candidates: Sequence[Candidate]
    ) -> tuple[Sequence[Candidate], Sequence[Candidate]]:
        kept = candidates
        for name, plugin in self._filters:
            try:
                kept = plugin.keep(request, kept) or kept
            except Exception as error:  # noqa: BLE001 a plugin's fault must not become the caller's
                self._failures.note(f"filter/{name}", error)
        names = {c.endpoint.name for c in kept}
        return kept, [c for c in candidates if c.endpoint.name not in names]


def make_scheduler(
    profile: str | Profile, predictor: PredictorSource, registry: Registry, forecasts: ForecastSource | None = None
) -> Scheduler:
    """Put together a scheduler. `profile` may be just a policy's name. With `forecasts`, the default policy heeds requests' objectives.

    Raises OperatorError for names that the registry does not know, and for parts that the policy has no use for.
    """
    if isinstance(profile, str):
        profile = Profile(policy=profile)
    failures = FailureBook()
    if profile.scorers and profile.policy != "weighted":
        raise OperatorError(f'scorers: the policy "{profile.policy}" has no use for them; the policy "weighted" has')
    if profile.cost_terms and profile.policy != "expected-cost":
        raise OperatorError(f'costTerms: the policy "{profile.policy}" has no use for them; "expected-cost" has')
    policy: Policy
    if profile.policy == "weighted":
        policy = _weighted(profile, registry, failures)
    elif profile.cost_terms:
        terms = [(name, cast("CostTerm", registry.factory("cost-term", name)())) for name in profile.cost_terms]
        policy = ExpectedCost(predictor, terms, failures)
    else:
        policy = registry.factory("policy", profile.policy)(predictor)
    if forecasts is not None and profile.policy == "expected-cost":
        policy = Objectives(policy, forecasts)
    filters = [(name, cast("Filter", registry.factory("filter", name)())) for name in profile.filters]
    return Scheduler(profile.policy, policy, filters, failures)


def _weighted(profile: Profile, registry: Registry, failures: FailureBook) -> Weighted:
    if not profile.scorers:
        known = ", ".join(registry.names("scorer"))
        raise OperatorError(f'scorers: the policy "weighted" needs at least one; known: {known}')
    scorers = [
        (name, weight, cast("Scorer", registry.factory("scorer", name)())) for name, weight in profile.scorers.items()
    ]
    return Weighted(scorers, cast("Picker", registry.factory("picker", profile.picker)()), failures)


def _fewest_in_flight(candidates: Sequence[Candidate]) -> Ranking:
    totals = [float(c.in_flight) for c in candidates]
    return Ranking(winner=totals.index(min(totals)), totals=totals, why="the policy failed; fewest requests in flight")
