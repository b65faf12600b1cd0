"""Where a request goes and why: the trace that log, debug headers, `explain` and simulator print alike.

A policy leaves its numbers in a `Ranking`; verdicts are made from it only when somebody reads them, since most traces are never read.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from beaconry.values.candidate import Candidate, Forecast, Prediction
from beaconry.values.endpoint import Endpoint
from beaconry.values.stage import Stage


class Ranking(Struct, frozen=True, kw_only=True, gc=False):
    """What a policy made of the candidates. Sequences run parallel to them; the least total wins."""

    winner: int
    totals: Sequence[float] = ()
    """Seconds, or negated scores; empty if the policy does not compare."""
    terms: tuple[str, ...] = ()
    """Names of the columns of `rows`."""
    rows: Sequence[tuple[float, ...]] = ()
    """Per candidate, the parts of its total."""
    predictions: Sequence[Prediction] = ()
    forecasts: Mapping[int, Forecast] = {}
    """By index, of the candidates that were looked at more closely because the request has objectives."""
    why: str = ""
    """What decided, in a few words."""


class Verdict(Struct, frozen=True, kw_only=True, gc=False):
    """What a policy made of one candidate."""

    candidate: Candidate
    prediction: Prediction | None = None
    forecast: Forecast | None = None
    terms: dict[str, float] = {}
    """Named parts of the cost in seconds (or of the negated score, for weighted profiles)."""
    total: float = 0.0
    reason: str = ""
    """Why it lost, or why it won."""


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """The chosen endpoint, and what it was chosen from."""

    endpoint: Endpoint
    policy: str
    candidates: Sequence[Candidate]
    """Those that passed the filters."""
    ranking: Ranking
    dropped: Sequence[Candidate] = ()
    """Those that the filters took away."""
    queued_s: float = 0.0
    """How long the request waited for its turn before its first leg."""
    waited_for: str = ""
    """What it waited for: capacity | ceiling | turn | endpoint; empty if it did not wait."""
    stage: Stage = Stage.WHOLE
    """What the endpoint is to compute."""
    plan: str = ""
    """Why the request runs in so many legs; empty where its model has no prefill endpoints."""
    source: str = ""
    """The endpoint that has prefilled; of a decode leg only."""
    prefill_s: float = 0.0
    """How long that leg took."""

    @property
    def chosen(self) -> Verdict:
        """The verdict on the endpoint that was picked."""
        return self._verdict(self.ranking.winner)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdict on every candidate: the chosen one first, then by total, then those filtered out. Built on each call."""
        winner, totals = self.ranking.winner, self.ranking.totals
        rest = [i for i in range(len(self.candidates)) if i != winner]
        if totals:
            rest.sort(key=totals.__getitem__)
        filtered = tuple(Verdict(candidate=c, reason="filtered out") for c in self.dropped)
        return (self._verdict(winner), *(self._verdict(i) for i in rest), *filtered)

    def _verdict(self, i: int) -> Verdict:
        ranking = self.ranking
        row = ranking.rows[i] if ranking.rows else ()
        return Verdict(
            candidate=self.candidates[i],
            prediction=ranking.predictions[i] if ranking.predictions else None,
            forecast=ranking.forecasts.get(i),
            terms=dict(zip(ranking.terms, row, strict=False)),
            total=ranking.totals[i] if ranking.totals else 0.0,
            reason=self._reason(i),
        )

    def _reason(self, i: int) -> str:
        ranking = self.ranking
        if i == ranking.winner:
            return f"won: {ranking.why}"
        if not ranking.totals:
            return f"lost: {ranking.why}"
        behind = ranking.totals[i] - ranking.totals[ranking.winner]
        if behind < 0:
            return f"lost by the objectives; its total is less by {-behind:.4g}"
        if not ranking.rows or behind == 0:
            return f"lost by {behind:.4g}" if behind else "lost the tie"
        mine, best = ranking.rows[i], ranking.rows[ranking.winner]
        worst = max(range(len(mine)), key=lambda k: mine[k] - best[k])
        return f"lost by {behind:.4g}, most of it {ranking.terms[worst]}"
