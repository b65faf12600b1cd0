"""Placement by objectives: the least expected cost, in which missing an objective has its price.

The inner policy gives each candidate a cost in seconds; the best few are then forecast with their ranges, which takes more work. To the
cost of each is added what the request would lose by missing its objectives there, times the probability of it: a request that is promised
a first token within two seconds loses two. So an objective moves a request only where that makes a difference: not where any place keeps
it, nor where none does; and a certain gain outweighs an uncertain one. An engine where the strictest stream already running would be
broken by this request costs as much again.

Forecasts are made from the least cost upwards, and none where it cannot matter any more: a price is never below zero.

The clock of TTFT starts at arrival, so time already waited counts. Requests without objectives are left to the inner policy as they are.
Where forecasts have been wrong of late, the fewest uncached tokens decide among the few.
"""

from collections.abc import Iterable, Sequence
from random import Random

from beaconry.plugins.kinds import ForecastSource, Policy
from beaconry.values.candidate import Candidate, Forecast, Source
from beaconry.values.decision import Ranking
from beaconry.values.request import Request

FEW = 3
"""Candidates that may be forecast: the best by the inner policy."""
_TOKENS = 100
"""A request with an objective for the time between tokens only is promised this many of them: a paragraph."""


class Objectives:
    """The policy. It keeps no state."""

    def __init__(self, inner: Policy, forecasts: ForecastSource) -> None:
        """`inner` ranks the candidates by cost in seconds; it decides alone for requests without objectives."""
        self._inner = inner
        self._forecasts = forecasts

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:
        """The least cost, the expected price of missing objectives included."""
        ranking = self._inner.rank(request, candidates, now_s, rng)
        totals = ranking.totals
        if (request.slo_ttft_s is None and request.slo_itl_s is None) or not totals:
            return ranking
        left_s = float("inf") if request.slo_ttft_s is None else request.arrived_s + request.slo_ttft_s - now_s
        few = sorted(range(len(candidates)), key=totals.__getitem__)[:FEW]
        forecasts: dict[int, Forecast] = {}
        winner, least_s, promising = few[0], float("inf"), False
        for i in few:
            if promising and totals[i] >= least_s:
                break  # neither does it win, whatever it is forecast, nor the ones after it
            forecast = forecasts[i] = self._forecasts.forecast(request, candidates[i], now_s)
            total_s = totals[i] + price_s(request, forecast, now_s)
            if total_s < least_s:
                winner, least_s = i, total_s
            if forecast.source is not Source.TOKEN_LOAD and forecast.ttft_low_s <= left_s:
                promising = True
        if all(forecast.source is Source.TOKEN_LOAD for forecast in forecasts.values()):
            winner = min(few, key=lambda i: _token_load(request, candidates[i]))
            return _with(ranking, winner, forecasts, "fewest uncached tokens: forecasts have been wrong of late")
        if winner == ranking.winner:
            return _with(ranking, winner, forecasts, ranking.why)
        return _with(ranking, winner, forecasts, "more likely to keep the objectives")


def price_s(request: Request, forecast: Forecast, now_s: float) -> float:
    """What missing objectives costs where `forecast` was made, by expectation: the request's own, and the strictest one running there."""
    ttft_s, itl_s, strictest_s, tail = request.slo_ttft_s, request.slo_itl_s, forecast.strictest_itl_s, forecast.tail
    kept = 1.0
    if ttft_s is not None:
        left_s = request.arrived_s + ttft_s - now_s
        kept -= _exceeds(left_s, forecast.ttft_low_s, forecast.ttft_s, forecast.ttft_high_s, tail)
    if itl_s is not None:
        kept *= 1.0 - _exceeds(itl_s, forecast.itl_low_s, forecast.itl_s, forecast.itl_high_s, tail)
    missed = 1.0 - kept
    if strictest_s is not None:
        missed += _exceeds(strictest_s, forecast.itl_low_s, forecast.itl_s, forecast.itl_high_s, tail)
    return missed * (ttft_s or _TOKENS * (itl_s or 0.0))


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


def _exceeds(limit_s: float, low_s: float, middle_s: float, high_s: float, tail: float) -> float:
    """The probability that a time with this range exceeds `limit_s`: straight lines between the three quantiles that are known, and beyond
    the upper one the fourth power, as past outcomes have it: of 100 beyond it, 1 to 8 were beyond twice, and 1 or 2 beyond three times."""
    if limit_s >= high_s > 0.0:
        further = high_s / limit_s
        return tail * further * further * further * further
    if limit_s <= 0.0:
        return 1.0
    if limit_s <= low_s:
        return 1.0 - tail * limit_s / low_s
    if limit_s >= middle_s:
        return tail + (0.5 - tail) * (high_s - limit_s) / (high_s - middle_s)
    return 0.5 + (0.5 - tail) * (middle_s - limit_s) / (middle_s - low_s)


def _token_load(request: Request, candidate: Candidate) -> int:
    return candidate.prefill_tokens + request.prompt_tokens - candidate.matched_tokens - candidate.fetched_tokens


def _with(ranking: Ranking, winner: int, forecasts: dict[int, Forecast], why: str) -> Ranking:
    return Ranking(
        winner=winner, totals=ranking.totals, terms=ranking.terms, rows=ranking.rows, predictions=ranking.predictions,
        forecasts=forecasts, why=why,
    )  # fmt: skip
