"""Weighted scores: the classic filter, score and pick profile of llm-d, for compatibility and for comparison."""

from collections.abc import Sequence
from math import isfinite
from random import Random

from beaconry.plugins.kinds import Picker, PredictorSource, Scorer
from beaconry.scheduling.failures import FailureBook
from beaconry.scheduling.pickers import MaxScore
from beaconry.scheduling.scorers import KvCacheUtilization, PrefixCache, Queue
from beaconry.values.candidate import Candidate
from beaconry.values.decision import Ranking
from beaconry.values.request import Request


class Weighted:
    """Sum of weight x score over the scorers; weights are not normalised, scores are clamped to 0..1."""

    def __init__(
        self, scorers: Sequence[tuple[str, float, Scorer]], picker: Picker, failures: FailureBook | None = None
    ) -> None:
        """`scorers`: name, weight and scorer of each."""
        self._terms = tuple(name for name, _, _ in scorers)
        self._scorers = tuple(scorers)
        self._picker = picker
        self._failures = FailureBook() if failures is None else failures

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """Score, add up, pick. Totals are negated, so that the least is the best."""
        columns = [self._column(scorer, request, candidates) for scorer in self._scorers]
        rows = list(zip(*columns, strict=True))
        totals = [sum(row) for row in rows]
        winner = self._picker.pick(totals, rng)
        return Ranking(winner=winner, totals=totals, terms=self._terms, rows=rows, why="best weighted score")

    def _column(
        self, scorer: tuple[str, float, Scorer], request: Request, candidates: Sequence[Candidate]
    ) -> list[float]:
        name, weight, plugin = scorer
        try:
            scores = plugin.score(request, candidates)
            if len(scores) != len(candidates) or not all(map(isfinite, scores)):
                raise ValueError(f"scores must be {len(candidates)} finite numbers")  # noqa: TRY301 handled as any fault of it
            return [-weight * min(max(score, 0.0), 1.0) for score in scores]
        except Exception as error:  # noqa: BLE001 a plugin's fault must not become the caller's
            self._failures.note(f"scorer/{name}", error)
            return [0.0] * len(candidates)


class LlmDWeighted(Weighted):
    """llm-d's default without a configuration: queue 2, KV cache 2, prefix 3, best score."""

    def __init__(self, predictor: PredictorSource) -> None:  # noqa: ARG002 policies share one constructor
        super().__init__(
            [
                ("queue-scorer", 2.0, Queue()),
                ("kv-cache-utilization-scorer", 2.0, KvCacheUtilization()),
                ("prefix-cache-scorer", 3.0, PrefixCache()),
            ],
            MaxScore(),
        )
