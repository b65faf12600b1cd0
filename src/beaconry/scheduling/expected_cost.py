"""The default policy: the placement with the least expected cost, in seconds of everybody's time.

For each candidate endpoint, the cost of placing the request there is

    wait       until its prefill begins: tokens ahead of it, or places in the batch ahead of it
    prefill    of its own uncached tokens
    decode     expected output tokens x inter-token time in the batch it joins
    others     what the prefill takes from everybody else: see below

A greedy sum of the first three collapses: each request that leaves the holder of its prefix for an idle endpoint copies that prefix,
evicts another, and so makes the next miss. Three things keep this policy from it, and each is a cost that really arises:

- Prefill stalls every request in flight on that endpoint, so an uncached token costs its time once for each of them.
- What a placement evicts will have to be computed again, at the same price: `displaced_tokens`.
- Leaving a warm holder must pay off `_LEAVE` times over: predictions are noisy, copies outlive the moment that made them look good.
"""

from collections.abc import Sequence
from random import Random

from beaconry.plugins.kinds import PredictorSource
from beaconry.values.candidate import Candidate
from beaconry.values.decision import Ranking
from beaconry.values.request import Request

_TERMS = ("ttft", "decode", "others")
_LEAVE = 3.0
_OUTPUT_TOKENS = 256
"""Expected output of a request that does not limit it."""


class ExpectedCost:
    """The policy; its only state is the predictor's."""

    def __init__(self, predictor: PredictorSource) -> None:
        self._predictor = predictor

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """Cost every candidate and take the least; of equals the one with the fewest requests, then any."""
        predictor = self._predictor
        output = request.output_tokens or _OUTPUT_TOKENS
        predictions, rows, totals = [], [], []
        for c in candidates:
            prediction = predictor.predict(request, c)
            uncached = max(request.prompt_tokens - c.matched_tokens, 1)
            stall = predictor.prefill_s(c.endpoint, uncached + c.displaced_tokens)
            in_flight = c.prefilling + c.decoding
            row = (prediction.ttft_s, output * prediction.itl_s, stall * (_LEAVE + in_flight))
            predictions.append(prediction)
            rows.append(row)
            totals.append(row[0] + row[1] + row[2] + 1e-5 * in_flight)
        least = min(totals)
        winner = totals.index(least)
        if totals.count(least) > 1:
            winner = rng.choice([i for i, total in enumerate(totals) if total == least])
        return Ranking(
            winner=winner, totals=totals, terms=_TERMS, rows=rows, predictions=predictions, why="least expected cost"
        )
