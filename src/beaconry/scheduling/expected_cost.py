"""The default policy: the placement with the least expected cost, in seconds of everybody's time.

For each candidate endpoint, the cost of placing the request there is the sum of

    ttft     what waits ahead of it, and the prefill of its own uncached tokens
    decode   expected output tokens x inter-token time, in the batch it joins; `_DECODE` of it
    others   seconds taken from everybody else, now and later

A place at a faster endpoint is mostly a private gain: whoever takes it leaves a slower one to somebody else. If each request counted
it in full, fast endpoints would be filled until the wait there outweighed it, and that wait is borne by all that come after. So decode
weighs little; between endpoints of one speed it hardly differs.

A greedy sum of the first two collapses: each request that leaves the holder of its prefix for an idle endpoint copies that prefix,
evicts another, and so makes the next miss; from a cold start at 70 % load such a fleet falls to blind throughput and stays there.
`others` keeps this policy from it. Each part is a cost that really arises:

- Prefill stalls all requests in flight on the endpoint, so a token costs its time once for each of them; and `_REGRET` times more,
  because predictions are noisy and a copy stays when the moment that made it look good has passed. This is the hysteresis that leaving
  a warm holder has to overcome.
- What a placement evicts has to be computed again at that price, and will evict in its turn: it counts `_DISPLACED` times. Prompts that
  come back to where they were (`known_tokens`) displace nothing: that endpoint's share of the prompts does not grow.
- A copy of a prefix that others wait for at its holder serves those after it as well: a share `_SHARE` of them, half once two endpoints
  hold it. Its price is divided among as many. So hot prefixes spread where a queue persists, and cold ones stay.
- Who joins a queue keeps those waiting that come after, until the queue is gone: `_BEHIND` of its own wait.

A prefill leg is a request without tokens to generate: `decode` is nothing. A decode leg brings no prompt to compute, so nothing is stalled
or displaced, and its endpoint is chosen by what its answer takes: `ttft` has the transfer of the prompt's KV, less what is there already;
`decode` counts in full; and `others` is what its place in the batch adds to the time between tokens of all that are in flight there, for as
long as it stays. That is the whole price of a faster endpoint, which therefore need not be discounted.

Measured from cold starts (benchmarks/policies.py: nine workloads at four loads), all constants sit on plateaus: half or double of
each changes the 90th percentile of TTFT less than another seed does.
"""

from collections.abc import Sequence
from math import isfinite
from random import Random

from msgspec.structs import replace

from beaconry.plugins.kinds import CostTerm, PredictorSource
from beaconry.scheduling.failures import FailureBook
from beaconry.scheduling.pickers import pick_least
from beaconry.values.candidate import Candidate, Prediction
from beaconry.values.decision import Ranking
from beaconry.values.request import Request
from beaconry.values.stage import DECODE

_DECODE = 0.25
_REGRET = 3.0
_DISPLACED = 2.0
_BEHIND = 0.5
_SHARE = 0.5


class ExpectedCost:
    """The policy. It keeps no state: what there is to remember is in index, counters and predictor."""

    def __init__(
        self,
        predictor: PredictorSource,
        terms: Sequence[tuple[str, CostTerm]] = (),
        failures: FailureBook | None = None,
    ) -> None:
        """`terms`: further parts of the cost by name."""
        self._predictor = predictor
        self._extra = tuple(terms)
        self._terms = ("ttft", "decode", "others", *(name for name, _ in terms))
        self._failures = FailureBook() if failures is None else failures

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """Cost every candidate and take the least, ties at random."""
        if candidates[0].stage is DECODE:
            return self._rank_decode(request, candidates, rng)
        predict = self._predictor.predict
        prompt = request.prompt_tokens
        longest, sharing = _holders(request, candidates)
        predictions: list[Prediction] = []
        rows: list[tuple[float, ...]] = []
        totals: list[float] = []
        for c in candidates:
            prediction = predict(request, c)
            fresh = prompt - longest + (longest - c.matched_tokens) / sharing + _DISPLACED * c.displaced_tokens
            waiters = _REGRET + c.prefilling + c.decoding
            others_s = prediction.token_s * fresh * waiters + _BEHIND * prediction.wait_s
            decode_s = _DECODE * prediction.decode_s
            ttft_s = prediction.ttft_s
            predictions.append(prediction)
            rows.append((ttft_s, decode_s, others_s))
            totals.append(ttft_s + decode_s + others_s)
        if self._extra:
            self._add_terms(request, candidates, predictions, rows, totals)
        winner = pick_least(totals, rng)
        return Ranking(
            winner=winner,
            totals=totals,
            terms=self._terms,
            rows=rows,
            predictions=predictions,
            why=_why(request, candidates[winner], longest),
        )

    def _rank_decode(self, request: Request, candidates: Sequence[Candidate], rng: Random) -> Ranking:
        """Of a request whose prompt is computed: the transfer, the answer, and what it slows down."""
        predict = self._predictor.predict
        predictions = [predict(request, c) for c in candidates]
        rows: list[tuple[float, ...]] = []
        for c, prediction in zip(candidates, predictions, strict=True):
            with_one_more = predict(request, replace(c, decoding=c.decoding + 1))
            others_s = c.in_flight * max(with_one_more.decode_s - prediction.decode_s, 0.0)
            rows.append((prediction.ttft_s, prediction.decode_s, others_s))
        totals = [sum(row) for row in rows]
        if self._extra:
            self._add_terms(request, candidates, predictions, rows, totals)
        winner = pick_least(totals, rng)
        why = "least expected cost of transfer and answer"
        return Ranking(winner=winner, totals=totals, terms=self._terms, rows=rows, predictions=predictions, why=why)

    def _add_terms(
        self,
        request: Request,
        candidates: Sequence[Candidate],
        predictions: Sequence[Prediction],
        rows: list[tuple[float, ...]],
        totals: list[float],
    ) -> None:
        """Add the further terms to `rows` and `totals`."""
        for name, term in self._extra:
            for i, cost_s in enumerate(self._column(name, term, request, candidates, predictions)):
                rows[i] += (cost_s,)
                totals[i] += cost_s

    def _column(
        self,
        name: str,
        term: CostTerm,
        request: Request,
        candidates: Sequence[Candidate],
        predictions: Sequence[Prediction],
    ) -> list[float]:
        """A further term's cost of each candidate; a term that raises or is not finite costs nothing."""
        try:
            costs = [term.cost_s(request, c, p) for c, p in zip(candidates, predictions, strict=True)]
            if not all(map(isfinite, costs)):
                raise ValueError("costs must be finite")  # noqa: TRY301 handled as any fault of it
        except Exception as error:  # noqa: BLE001 a plugin's fault must not become the caller's
            self._failures.note(f"cost-term/{name}", error)
            return [0.0] * len(candidates)
        return costs


def _holders(request: Request, candidates: Sequence[Candidate]) -> tuple[int, float]:
    """The longest match, and among how many requests the price of copying it is divided: this one and a share of those that wait for it."""
    longest = 0
    for c in candidates:
        if c.matched_tokens > longest:
            longest = c.matched_tokens
    if not longest:
        return 0, 1.0
    waiting = 0.0
    least = longest - request.block_tokens
    for c in candidates:
        if c.sharers and c.matched_tokens >= least:
            waiting += c.sharers * c.prefilling / (c.prefilling + c.decoding or 1)
    return longest, 1 + _SHARE * waiting


def _why(request: Request, winner: Candidate, longest: int) -> str:
    if not longest:
        return "least expected cost; nobody holds any of the prompt"
    if winner.matched_tokens >= longest - request.block_tokens:
        return "least expected cost, at a holder of the prefix"
    return "least expected cost, away from the holder of the prefix"
