"""Placement by objectives: where a request will meet its targets for TTFT and ITL, and break nobody else's.

The inner policy ranks all candidates; the best few are then forecast with their ranges, which costs more. Of those that keep the request's
objectives and the strictest ITL objective already running there, at the upper end of the range, the one that the inner policy likes best
wins. Where none keeps them, the least violation wins, in parts of the target. A request that will miss its objective wherever it goes has
nothing to gain from a good place: it goes where the inner policy would send it.

The clock of TTFT starts at arrival, so time already waited counts. Requests without objectives are left to the inner policy as they are.
"""

from collections.abc import Iterable, Sequence
from random import Random

from beaconry.plugins.kinds import ForecastSource, Policy
from beaconry.values.candidate import Candidate, Forecast, Source
from beaconry.values.decision import Ranking
from beaconry.values.request import Request

FEW = 3
"""Candidates that are forecast: the best by the inner policy."""


class Objectives:
    """The policy. It keeps no state."""

    def __init__(self, inner: Policy, forecasts: ForecastSource) -> None:
        """`inner` ranks the candidates; it decides alone for requests without objectives."""
        self._inner = inner
        self._forecasts = forecasts

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:
        """The best of those that keep all objectives, else the least violation."""
        ranking = self._inner.rank(request, candidates, now_s, rng)
        if request.slo_ttft_s is None and request.slo_itl_s is None:
            return ranking
        totals = ranking.totals
        if not totals:
            return ranking
        few = sorted(range(len(candidates)), key=totals.__getitem__)[:FEW]
        forecasts = {i: self._forecasts.forecast(request, candidates[i], now_s) for i in few}
        if all(forecast.source is Source.TOKEN_LOAD for forecast in forecasts.values()):
            winner = min(few, key=lambda i: _token_load(request, candidates[i]))
            return _with(ranking, winner, forecasts, "fewest uncached tokens: forecasts have been wrong of late")
        violations = {i: violation(request, forecast, now_s) for i, forecast in forecasts.items()}
        fitting = [i for i in few if violations[i] == 0.0]
        if fitting:
            winner = min(fitting, key=totals.__getitem__)
            return _with(ranking, winner, forecasts, f"keeps all objectives; {ranking.why}")
        if hopeless_s(request, forecasts.values(), now_s) is not None:
            return _with(ranking, ranking.winner, forecasts, f"misses its objectives anywhere; {ranking.why}")
        winner = min(few, key=violations.__getitem__)
        return _with(ranking, winner, forecasts, "violates the objectives least")


def violation(request: Request, forecast: Forecast, now_s: float) -> float:
    """By how much `forecast`, at its upper end, misses the objectives: the request's own and those running there, in parts of each."""
    missed = 0.0
    if request.slo_ttft_s is not None:
        missed += max((now_s - request.arrived_s + forecast.ttft_high_s) / request.slo_ttft_s - 1.0, 0.0)
    for slo_s in (request.slo_itl_s, forecast.strictest_itl_s):
        if slo_s is not None:
            missed += max(forecast.itl_high_s / slo_s - 1.0, 0.0)
    return missed


def hopeless_s(request: Request, forecasts: Iterable[Forecast], now_s: float) -> float | None:
    """How late the request's first token would come at the very best, wherever it went; None if it may still come in time.

    "At the very best" is the lower end of the forecasts' ranges. Forecasts that are not to be believed condemn nobody.
    """
    if request.slo_ttft_s is None:
        return None
    left_s = request.arrived_s + request.slo_ttft_s - now_s
    late_s = [0.0 if forecast.source is Source.TOKEN_LOAD else forecast.ttft_low_s - left_s for forecast in forecasts]
    least_s = min(late_s, default=0.0)
    return least_s if least_s > 0.0 else None


def _token_load(request: Request, candidate: Candidate) -> int:
    return candidate.prefill_tokens + request.prompt_tokens - candidate.matched_tokens


def _with(ranking: Ranking, winner: int, forecasts: dict[int, Forecast], why: str) -> Ranking:
    return Ranking(
        winner=winner, totals=ranking.totals, terms=ranking.terms, rows=ranking.rows, predictions=ranking.predictions,
        forecasts=forecasts, why=why,
    )  # fmt: skip
