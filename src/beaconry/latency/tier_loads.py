"""How long it takes to load cached blocks from beside the GPU: the price of a hit in a slower tier, in seconds.

A cached token that has to be loaded first saves its computing and costs its loading, so it is worth (computing - loading) / computing of
one on the GPU, which differs by model and hardware: loading is bytes over bandwidth, computing is arithmetic. Per variant and tier there
is one figure, seconds per token. It begins as the configured bytes over bandwidth; where the bytes are not known, as a share of the time
that the variant takes to compute a token. From then on legs that loaded teach it: what their time to first token differs by from the
expected one, loading included, changes the figure by its share in that time.

As in `rates.py`, an error counts as at most three times, at least a third, of what was expected, and what comes late counts for less: part
of it may be waiting that nobody knows of.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from beaconry.config.gateway import Offloading
from beaconry.latency.rates import RateBook
from beaconry.values.candidate import TierTokens
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import Tier

PRIOR_SHARES: Final = {Tier.CPU: 0.1, Tier.STORAGE: 0.7, Tier.SHARED: 0.7}
"""Loading over computing a token, where nothing else is known. Models of 8 to 70 billion parameters have 131 to 328 kB of KV per token
and compute 30,000 to 3,000 tokens/s per accelerator: at 25 GB/s loading takes 0.02 to 0.16 of that, at 3 GB/s 0.15 to 1.3."""
_GAIN: Final = 0.1
"""Share of an error that one leg corrects, once there are enough."""
_CLIP: Final = 3.0
_LATE_WEIGHT: Final = 0.25
_LEAST: Final = 0.001
"""Of the time to compute a token: no loading is believed to be quicker."""


class Load(Struct, frozen=True, kw_only=True):
    """What is known of one variant's tier."""

    token_s: float
    """Seconds per token loaded."""
    legs: int
    """That have taught it; 0: as configured or supposed."""


class _Learnt:
    """A figure, and how much of legs' times it has explained so far, in legs."""

    __slots__ = ("legs", "seen", "token_s")

    def __init__(self, token_s: float) -> None:
        self.token_s = token_s
        self.seen = 0.0
        self.legs = 0


class TierLoads:
    """The figures of all variants."""

    def __init__(self, rates: RateBook, knobs: Offloading | None = None) -> None:
        """`rates` tells how fast the variants compute."""
        self._rates = rates
        self._knobs = knobs or Offloading()
        self._learnt: dict[tuple[str, Tier], _Learnt] = {}
        """By variant and tier; only what a leg has taught."""

    def load_s(self, endpoint: Endpoint, loads: Iterable[TierTokens]) -> float:
        """Seconds that `endpoint` takes to load these tokens."""
        return sum(tokens * self._token_s(endpoint.variant, tier) for tier, tokens in loads)

    def observe(self, endpoint: Endpoint, loads: Sequence[TierTokens], ttft_s: float, prefill_tokens: int) -> None:
        """Learn from a leg that loaded these tokens, computed `prefill_tokens` (those ahead of it included) and took `ttft_s`."""
        rates = self._rates.rates(endpoint.variant)
        others_s = self._rates.factor(endpoint.name) * (rates.base_s + rates.token_s * prefill_tokens)
        expected_s = others_s + self.load_s(endpoint, loads)
        error = min(max(ttft_s / expected_s, 1 / _CLIP), _CLIP) - 1
        if error > 0:
            error *= _LATE_WEIGHT
        for tier, tokens in loads:
            token_s = self._token_s(endpoint.variant, tier)
            learnt = self._learnt.setdefault((endpoint.variant, tier), _Learnt(token_s))
            share = tokens * token_s / expected_s
            moved_s = token_s * (1 + error * share * max(_GAIN, 1 / (2 + learnt.seen)))
            learnt.token_s = max(moved_s, _LEAST * rates.token_s)
            learnt.seen += share
            learnt.legs += 1

    def statistics(self) -> dict[tuple[str, Tier], Load]:
        """What legs have taught, by variant and tier."""
        return {key: Load(token_s=learnt.token_s, legs=learnt.legs) for key, learnt in self._learnt.items()}

    def _token_s(self, variant: str, tier: Tier) -> float:
        learnt = self._learnt.get((variant, tier))
        if learnt is not None:
            return learnt.token_s
        knobs = self._knobs
        if knobs.kv_bytes_per_token is None:
            return PRIOR_SHARES[tier] * self._rates.rates(variant).token_s
        bandwidths = {
            Tier.CPU: knobs.cpu_bytes_per_s,
            Tier.STORAGE: knobs.storage_bytes_per_s,
            Tier.SHARED: knobs.shared_bytes_per_s,
        }
        return knobs.kv_bytes_per_token / bandwidths[tier]
