"""Filters with llm-d's names."""

from collections.abc import Sequence

from beaconry.values.candidate import Candidate
from beaconry.values.request import Request


class PrefixCacheAffinity:
    """Keeps the endpoints that hold at least 80 % of the prompt, unless their queues are too far behind the others'.

    llm-d's "sticky until saturated": the gate opens when the best holder would wait 18 s longer than the best other, at 15,928 prefill
    tokens per second, that is with 286,720 more uncached tokens in flight.
    """

    SHARE = 0.8
    TOKENS = 286_720

    def keep(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """The holders, or all."""
        enough = self.SHARE * request.prompt_tokens
        holders = [c for c in candidates if c.matched_tokens >= enough]
        others = [c.prefill_tokens for c in candidates if c.matched_tokens < enough]
        if not holders:
            return candidates
        if others and min(c.prefill_tokens for c in holders) - min(others) > self.TOKENS:
            return candidates
        return holders
