"""How long it takes to fetch a prompt's KV from the engine that computed it: seconds per token, by the variant that fetches.

Learnt from decode legs: their time to first token is a straight line over the tokens fetched, whose base is the step that follows and
whatever the transfer takes to begin. It begins as the configured bytes over bandwidth; where the bytes are not known, as a share of the
time that the variant takes to compute a token, the same that loading from the host's memory begins with: both go over a link of 25 GB/s.
"""

from typing import Final

from beaconry.latency.line import Line
from beaconry.latency.rates import RateBook
from beaconry.latency.tier_loads import PRIOR_SHARES, Load
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import Tier

_LATE_WEIGHT: Final = 0.25
"""Weight of a time above the expected one: part of it may be waiting that nobody knows of."""


class KvLinks:
    """The figures of all variants."""

    def __init__(self, rates: RateBook, kv_bytes_per_token: float | None = None, bytes_per_s: float = 25e9) -> None:
        """`rates` tells how fast the variants compute."""
        self._rates = rates
        self._known_s = None if kv_bytes_per_token is None else kv_bytes_per_token / bytes_per_s
        self._lines: dict[str, Line] = {}
        """By variant; only those that a leg has taught."""
        self._legs: dict[str, int] = {}
        """That have."""

    def fetch_s(self, endpoint: Endpoint, tokens: int) -> float:
        """Seconds that `endpoint` takes to fetch so many tokens."""
        line = self._lines.get(endpoint.variant)
        return tokens * (self._prior_s(endpoint.variant) if line is None else line.slope)

    def observe(self, endpoint: Endpoint, tokens: int, ttft_s: float) -> None:
        """Learn from a decode leg that fetched so many tokens and took `ttft_s` from dispatch to first token."""
        variant = endpoint.variant
        line = self._lines.get(variant)
        if line is None:
            line = self._lines[variant] = Line(self._rates.rates(variant).base_s, self._prior_s(variant))
        line.observe(tokens, ttft_s, 1.0 if ttft_s <= line.at(tokens) else _LATE_WEIGHT)
        self._legs[variant] = self._legs.get(variant, 0) + 1

    def statistics(self) -> dict[str, Load]:
        """What legs have taught, by variant."""
        return {variant: Load(token_s=line.slope, legs=self._legs[variant]) for variant, line in self._lines.items()}

    def _prior_s(self, variant: str) -> float:
        if self._known_s is not None:
            return self._known_s
        return PRIOR_SHARES[Tier.CPU] * self._rates.rates(variant).token_s
