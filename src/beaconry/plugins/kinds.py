"""One Protocol per extension kind: synchronous, pure, one method each.

Plugins get values and return values. A plugin that raises is neutral for that request, counted, and reported by the shell.
"""

from collections.abc import Sequence
from random import Random
from typing import Protocol

from beaconry.values.candidate import Candidate, Forecast, Prediction
from beaconry.values.decision import Ranking
from beaconry.values.request import Request


class Filter(Protocol):
    """Removes candidates. Returning none means "no opinion": the scheduler then keeps them all."""

    def keep(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates that may serve `request`, in their order."""
        ...


class Scorer(Protocol):
    """Rates candidates from 0 (worst) to 1 (best), for weighted profiles."""

    def score(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[float]:
        """Return one score per candidate, same order."""
        ...


class CostTerm(Protocol):
    """One additive part of the expected cost of a placement, in seconds."""

    def cost_s(self, request: Request, candidate: Candidate, prediction: Prediction) -> float:
        """Return the seconds this placement costs, this request's own or others'; may be negative."""
        ...


class Picker(Protocol):
    """Chooses among candidates by their totals."""

    def pick(self, totals: Sequence[float], rng: Random) -> int:
        """Return the index of the winner. Lower totals are better."""
        ...


class PredictorSource(Protocol):
    """Predicts the latencies of a placement."""

    def predict(self, request: Request, candidate: Candidate) -> Prediction:
        """Return TTFT and ITL of `request` on `candidate`, in seconds."""
        ...


class ForecastSource(Protocol):
    """Predicts with ranges, at a higher price: for a few candidates of requests that have objectives."""

    def forecast(self, request: Request, candidate: Candidate, now_s: float) -> Forecast:
        """Return TTFT and ITL of `request` on `candidate`, in seconds from now."""
        ...


class Policy(Protocol):
    """Ranks candidates. One object serves one router; it may remember earlier decisions."""

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:
        """Return the winner among `candidates`, which are never empty, and the numbers that made it win."""
        ...
