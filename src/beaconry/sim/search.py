"""The cheapest fleet that meets its targets, by few simulations.

First the least number of replicas of each variant alone: by doubling from its bound, then halving. The cheapest of these is the price to
beat. Then mixed fleets of two variants, cheapest first, that are below this price and not plainly too small; the first that meets the
targets is the answer. Two things save simulations, both from one assumption, that more replicas never serve worse: what is contained in a
fleet that missed its targets misses them too, and a dear variant is not followed beyond the price to beat.

Last, fleets of prefill and decode engines, one variant each, that are cheaper still: they have to pay for their second leg. Of those below
a price only the largest need be tried, to know whether any of them meets the targets; so the least price is found by halving.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from math import ceil

from msgspec import Struct

from beaconry.values.endpoint import Role

Counts = tuple[int, ...]
_LEAST_SHARE = 0.85
"""Mixed fleets with less than this share of the capacity of those of one variant are left out: routers lose by unlike engines, they do
not gain."""


class Choice(Struct, frozen=True, kw_only=True):
    """One variant in one role."""

    price: float
    """Of one replica for one hour."""
    most: int
    bound_per_s: float
    """Requests per second of one replica in its role, at the very best; 0 rules it out."""
    role: Role = Role.BOTH
    prefill_per_s: float = 0.0
    """Prompts per second that a replica for decoding can compute instead, at the very best."""


class Found(Struct, frozen=True, kw_only=True):
    """How a search ended."""

    counts: Counts | None
    """None: no fleet met the targets."""
    exhausted: bool
    """The number of simulations was used up: there may be a cheaper one."""


class Search:
    """One search. `tried` holds each fleet that was simulated and whether it met the targets, in order."""

    def __init__(
        self,
        choices: Sequence[Choice],
        needed_per_s: float,
        meets: Callable[[Counts], bool],
        *,
        simulations: int,
        mix: bool,
    ) -> None:
        """`needed_per_s`: good answers per second. `meets` simulates a fleet."""
        self._choices = tuple(choices)
        self._needed_per_s = needed_per_s
        self._meets = meets
        self._left = simulations
        self._mix = mix
        self.tried: dict[Counts, bool] = {}

    def run(self) -> Found:
        """Search until the cheapest is found, or `simulations` are used up."""
        best: Counts | None = None
        alone: list[float] = []
        """By variant, replicas that meet the targets without others, or a number that is certainly too small."""
        for number, choice in enumerate(self._choices):
            if choice.role is not Role.BOTH:
                alone.append(0.0)
                continue
            count, met = self._least_alone(number, self._price(best))
            alone.append(count)
            if met:
                best = self._only(number, int(count))
        if self._mix:
            for counts in self._mixed(alone, self._price(best)):
                if self._try(counts):
                    best = counts
                    break
        best = self._apart(self._price(best)) or best
        return Found(counts=best, exhausted=self._left <= 0)

    def price(self, counts: Counts) -> float:
        """Of a fleet for one hour."""
        return sum(choice.price * count for choice, count in zip(self._choices, counts, strict=True))

    def _least_alone(self, number: int, below: float) -> tuple[float, bool]:
        """The least count of a variant that meets the targets and costs less than `below`; else one that is known to be too small."""
        choice = self._choices[number]
        if not choice.bound_per_s:
            return float("inf"), False
        least = max(1, ceil(self._needed_per_s / choice.bound_per_s))
        dearest = choice.most if below == float("inf") else min(choice.most, ceil(below / choice.price) - 1)
        high, step = least, 1
        while high <= dearest and self._left > 0 and not self._try(self._only(number, high)):
            least = high + 1
            high = max(least, min(high + step, dearest))
            step *= 2
        if not self.tried.get(self._only(number, high)):
            return least, False
        while least < high:
            middle = (least + high) // 2
            if self._try(self._only(number, middle)):
                high = middle
            else:
                least = middle + 1
        return high, True

    def _mixed(self, alone: Sequence[float], below: float) -> Iterator[Counts]:
        """Fleets of two variants, cheapest first."""
        found = []
        whole = [number for number, choice in enumerate(self._choices) if choice.role is Role.BOTH]
        for i, j in combinations(whole, 2):
            first, second = self._choices[i], self._choices[j]
            for a in range(1, int(min(first.most, below // first.price, alone[i])) + 1):
                left = (below - a * first.price) / second.price
                for b in range(1, int(min(second.most, left, alone[j])) + 1):
                    counts = tuple(a if k == i else b if k == j else 0 for k in range(len(self._choices)))
                    if a / alone[i] + b / alone[j] >= _LEAST_SHARE and self.price(counts) < below:
                        found.append(counts)
        return iter(sorted(found, key=lambda counts: (self.price(counts), counts)))

    def _apart(self, below: float) -> Counts | None:
        """The cheapest fleet of prefill and decode engines that meets the targets; None if none is cheaper than `below`."""
        fleets = list(self._pairs(below))
        prices = sorted({self.price(counts) for counts in fleets})
        best = self._any(fleets)
        low, high = 0, 0 if best is None else prices.index(self.price(best))
        while low < high and self._left > 0:
            middle = (low + high) // 2
            found = self._any([counts for counts in fleets if self.price(counts) <= prices[middle]])
            if found is None:
                low = middle + 1
            else:
                best, high = found, prices.index(self.price(found))
        return best

    def _pairs(self, below: float) -> Iterator[Counts]:
        """Fleets of one prefill and one decode variant that are cheaper than `below` and not plainly too small."""
        numbers = range(len(self._choices))
        for p, d in product(numbers, numbers):
            prefill, decode = self._choices[p], self._choices[d]
            if prefill.role is not Role.PREFILL or decode.role is not Role.DECODE or not decode.bound_per_s:
                continue
            for y in range(ceil(self._needed_per_s / decode.bound_per_s), decode.most + 1):
                unserved_per_s = self._needed_per_s - y * decode.prefill_per_s
                for x in range(max(1, ceil(unserved_per_s / prefill.bound_per_s)), prefill.most + 1):
                    if x * prefill.price + y * decode.price >= below:
                        break
                    yield tuple(x if k == p else y if k == d else 0 for k in numbers)

    def _any(self, fleets: Sequence[Counts]) -> Counts | None:
        """One of these fleets of two kinds that meets the targets. Only those that no other contains are tried, the strongest first."""
        largest: list[Counts] = []
        for counts in sorted(fleets, reverse=True):
            if not any(_within(counts, other) for other in largest):
                largest.append(counts)
        return next((counts for counts in sorted(largest, key=self._strength, reverse=True) if self._try(counts)), None)

    def _strength(self, counts: Counts) -> list[float]:
        """Requests per second that each kind bears at the very best, the weaker one first."""
        return sorted(choice.bound_per_s * n for choice, n in zip(self._choices, counts, strict=True) if n)

    def _try(self, counts: Counts) -> bool:
        """Whether a fleet meets the targets: known, concluded, or simulated."""
        if counts in self.tried:
            return self.tried[counts]
        if self._left <= 0 or any(not met and _within(counts, other) for other, met in self.tried.items()):
            return False
        self._left -= 1
        self.tried[counts] = self._meets(counts)
        return self.tried[counts]

    def _only(self, number: int, count: int) -> Counts:
        return tuple(count if k == number else 0 for k in range(len(self._choices)))

    def _price(self, counts: Counts | None) -> float:
        return float("inf") if counts is None else self.price(counts)


def _within(counts: Counts, other: Counts) -> bool:
    return all(mine <= theirs for mine, theirs in zip(counts, other, strict=True))
