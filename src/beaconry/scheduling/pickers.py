"""How one endpoint is taken from a ranking, with llm-d's names."""

from collections.abc import Sequence
from random import Random


class MaxScore:
    """The best total, ties at random."""

    def pick(self, totals: Sequence[float], rng: Random) -> int:
        """The least total: totals are negated scores."""
        return pick_least(totals, rng)


class RandomPick:
    """Any, whatever the totals."""

    def pick(self, totals: Sequence[float], rng: Random) -> int:
        """One at random."""
        return rng.randrange(len(totals))


class WeightedRandom:
    """At random in proportion to the scores (A-Res: the largest U^(1/score))."""

    def pick(self, totals: Sequence[float], rng: Random) -> int:
        """Draw one; endpoints with score zero only if all have it."""
        keys = [rng.random() ** (1 / -total) if total < 0 else 0.0 for total in totals]
        return keys.index(max(keys)) if max(keys) > 0 else rng.randrange(len(totals))


def pick_least(totals: Sequence[float], rng: Random) -> int:
    """The index of the least total, ties at random."""
    least = min(totals)
    winner, ties = totals.index(least), totals.count(least)
    if ties > 1:
        for _ in range(int(rng.random() * ties)):
            winner = totals.index(least, winner + 1)
    return winner
