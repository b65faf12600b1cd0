"""How long it takes to fetch a prompt's KV from the engine that computed it: seconds per token, by the variant that fetches.

Learnt from decode legs: their time to first token is a straight line over the tokens fetched, whose base is the step that follows, what is
waited for, and whatever the transfer takes to begin. It begins as the configured bytes over bandwidth; where the bytes are not known, as a
share of the time that the variant takes to compute a token, the same that loading from the host's memory begins with: both go over a link
of 25 GB/s.
"""

from typing import Final

from beaconry.latency.line import CLIP
from beaconry.latency.rates import RateBook
from beaconry.latency.tier_loads import PRIOR_SHARES, Load
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import Tier

_KEPT: Final = 0.99
"""What a leg keeps of its weight when the next one comes: about the last hundred count."""
_HELD: Final = 0.1
"""In legs: how firmly each part stays where it is."""
_LEAST_S: Final = 1e-9
"""Of either part: none is negative, nor free."""


class _Fetches:
    """Times over tokens: y = base + slope * x by least squares of relative errors, later legs counting more.

    What legs do not tell stays as it was: where all fetch alike, base and slope keep their parts of the whole. Waiting, for the step under
    way or for others' transfers, is as long for few tokens as for many, so it ends up in the base.
    """

    __slots__ = ("_held", "_sums", "base", "legs", "slope")

    def __init__(self, base: float, slope: float) -> None:
        self.base = base
        self.slope = slope
        self.legs = 0
        self._held = _HELD / (base * base), _HELD / (slope * slope)
        self._sums = [0.0] * 5
        """By weight, of 1, x, x * x, y and x * y; a leg's weight is 1 over the square of the expected time."""

    def observe(self, x: float, y: float) -> None:
        """A leg that fetched `x` tokens took `y` seconds; of one that took much longer than expected, that counts which could be."""
        expected = self.base + self.slope * x
        y = min(y, CLIP * expected)
        weight = 1.0 / (expected * expected)
        terms = (1.0, x, x * x, y, x * y)
        self._sums = [_KEPT * kept + weight * term for kept, term in zip(self._sums, terms, strict=True)]
        ones, xs, squares, ys, products = self._sums
        hold_base, hold_slope = self._held
        ones, ys = ones + hold_base, ys + hold_base * self.base
        squares, products = squares + hold_slope, products + hold_slope * self.slope
        slope = (ones * products - xs * ys) / (ones * squares - xs * xs)
        base = (ys - xs * slope) / ones
        if base < _LEAST_S:
            base, slope = _LEAST_S, products / squares
        elif slope < _LEAST_S:
            base, slope = ys / ones, _LEAST_S
        self.base, self.slope = base, max(slope, _LEAST_S)
        self.legs += 1


class KvLinks:
    """The figures of all variants."""

    def __init__(self, rates: RateBook, kv_bytes_per_token: float | None = None, bytes_per_s: float = 25e9) -> None:
        """`rates` tells how fast the variants compute."""
        self._rates = rates
        self._known_s = None if kv_bytes_per_token is None else kv_bytes_per_token / bytes_per_s
        self._lines: dict[str, _Fetches] = {}
        """By variant; only those that a leg has taught."""

    def fetch_s(self, endpoint: Endpoint, tokens: int) -> float:
        """Seconds that `endpoint` takes to fetch so many tokens."""
        line = self._lines.get(endpoint.variant)
        return tokens * (self._prior_s(endpoint.variant) if line is None else line.slope)

    def observe(self, endpoint: Endpoint, tokens: int, ttft_s: float) -> None:
        """Learn from a decode leg that fetched so many tokens and took `ttft_s` from dispatch to first token."""
        variant = endpoint.variant
        line = self._lines.get(variant)
        if line is None:
            line = self._lines[variant] = _Fetches(self._rates.rates(variant).base_s, self._prior_s(variant))
        line.observe(tokens, ttft_s)

    def statistics(self) -> dict[str, Load]:
        """What legs have taught, by variant."""
        return {variant: Load(token_s=line.slope, legs=line.legs) for variant, line in self._lines.items()}

    def _prior_s(self, variant: str) -> float:
        if self._known_s is not None:
            return self._known_s
        return PRIOR_SHARES[Tier.CPU] * self._rates.rates(variant).token_s
