"""The policies to compare with: blind ones, load only, prefix only, and stickiness with a saturation release."""

from collections.abc import Sequence
from random import Random

from beaconry.plugins.kinds import PredictorSource
from beaconry.scheduling.pickers import pick_least
from beaconry.values.candidate import Candidate
from beaconry.values.decision import Ranking
from beaconry.values.request import Request
from beaconry.values.stage import Stage


class RoundRobin:
    """Each endpoint in turn, by position in the list."""

    def __init__(self, predictor: PredictorSource) -> None:  # noqa: ARG002 policies share one constructor
        self._turns: dict[tuple[str, Stage], int] = {}
        """By model and stage: each goes round endpoints of its own."""

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """The one after the last one."""
        key = (request.model, candidates[0].stage)
        turn = self._turns[key] = self._turns.get(key, -1) + 1
        return Ranking(winner=turn % len(candidates), why="its turn")


class RandomChoice:
    """Any endpoint."""

    def __init__(self, predictor: PredictorSource) -> None:
        """Needs no predictor."""

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """One at random."""
        return Ranking(winner=rng.randrange(len(candidates)), why="by chance")


class LeastRequests:
    """The fewest requests in flight, ties at random."""

    def __init__(self, predictor: PredictorSource) -> None:
        """Needs no predictor."""

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """The one with the fewest."""
        totals = [float(c.in_flight) for c in candidates]
        winner = pick_least(totals, rng)
        return Ranking(winner=winner, totals=totals, why="fewest requests in flight")


class PowerOfTwo:
    """The less loaded of two endpoints drawn at random."""

    def __init__(self, predictor: PredictorSource) -> None:
        """Needs no predictor."""

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """Draw two different ones and take the one with fewer requests in flight."""
        first = rng.randrange(len(candidates))
        second = (first + 1 + rng.randrange(len(candidates) - 1)) % len(candidates) if len(candidates) > 1 else first
        winner = min(first, second, key=lambda i: candidates[i].in_flight)
        return Ranking(winner=winner, why="fewer requests in flight than another one drawn")


class PrefixOnly:
    """The longest matched prefix whatever the load; without any match, the fewest requests in flight."""

    def __init__(self, predictor: PredictorSource) -> None:
        """Needs no predictor."""

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """Compare by matched tokens, then by load."""
        totals = [-float(c.matched_tokens) for c in candidates]
        best = min(totals)
        if best == 0:
            loads = [float(c.in_flight) for c in candidates]
            return Ranking(winner=pick_least(loads, rng), totals=loads, why="no match; fewest requests in flight")
        return Ranking(winner=pick_least(totals, rng), totals=totals, why="longest matched prefix")


class Sticky:
    """The holder of most of the prompt, left only when it is much busier than the least busy endpoint.

    The yardstick for every cleverer policy. Where several hold it, the least busy of them; where nobody holds half of the prompt, the
    least busy of all. "Much busier": more than `GAP` requests in flight above the least busy one, and half as many again.
    """

    GAP = 16
    RATIO = 1.5
    SHARE = 0.5

    def __init__(self, predictor: PredictorSource) -> None:
        """Needs no predictor."""

    def rank(self, request: Request, candidates: Sequence[Candidate], now_s: float, rng: Random) -> Ranking:  # noqa: ARG002
        """The holder, unless released."""
        loads = [float(c.in_flight) for c in candidates]
        least = pick_least(loads, rng)
        longest = max(c.matched_tokens for c in candidates)
        if longest < self.SHARE * request.prompt_tokens:
            return Ranking(winner=least, totals=loads, why="nobody holds half of the prompt; least busy")
        holders = [i for i, c in enumerate(candidates) if c.matched_tokens >= longest - request.block_tokens]
        holder = min(holders, key=loads.__getitem__)
        if loads[holder] - loads[least] > self.GAP and loads[holder] > self.RATIO * loads[least]:
            return Ranking(winner=least, totals=loads, why="the holder is saturated; least busy")
        return Ranking(winner=holder, totals=loads, why="holds most of the prompt")
