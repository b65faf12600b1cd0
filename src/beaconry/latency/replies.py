"""What an engine has cached beyond the blocks that a router can match: the end of a prompt and the reply to it.

A router hashes prompts as they arrive, so it learns what a reply was only from the next turn of the conversation, where engines find all of
it in their caches. How long the reply was is known from its usage, and that a prompt is the next turn from the last block it shares with
the one before. Whether an engine really finds it (templates leave out what a model thought, for example) shows in the cached tokens that it
reports: the share found of late is what is counted on, and nothing before the first report.
"""

from beaconry.values.request import Request

_MOST = 512
"""Conversations remembered, those last replied to: about what the KV memory of one engine holds."""
_GAIN = 0.1
_BLOCK_TOKENS = 16
"""Only whole blocks are cached: vLLM's default, where the engine's metrics do not tell."""


class Replies:
    """One engine's.

    Attributes:
        block_tokens: tokens of the engine's blocks.
        share: of the tokens that replies should have added, those that were found, 0..1.

    """

    __slots__ = ("_ends", "_reports", "block_tokens", "share")

    def __init__(self) -> None:
        self.block_tokens = _BLOCK_TOKENS
        self.share = 0.0
        self._reports = 0
        self._ends: dict[int, int] = {}
        """By the hash of a prompt's last whole block: tokens from its end to that of the reply. The latest come last."""

    def ended(self, request: Request, prompt_tokens: int, completion_tokens: int) -> None:
        """A reply is complete; tokens as the engine counted them."""
        if not request.prefix:
            return
        last = request.prefix[-1]
        self._ends.pop(last, None)
        self._ends[last] = prompt_tokens + completion_tokens - int(len(request.prefix) * request.block_tokens)
        if len(self._ends) > _MOST:
            del self._ends[next(iter(self._ends))]

    def beyond(self, request: Request, matched_tokens: int) -> int:
        """How many tokens of `request`, of which `matched_tokens` are matched, follow these in the cache if replies are found."""
        blocks = min(round(matched_tokens / request.block_tokens), len(request.prefix))
        if not blocks:
            return 0
        tokens = self._ends.get(request.prefix[blocks - 1])
        if tokens is None:
            return 0
        end = min(matched_tokens + tokens, request.prompt_tokens - 1)
        return max(end - end % self.block_tokens - matched_tokens, 0)

    def found(self, beyond: int, cached_tokens: int) -> None:
        """Of so many tokens beyond the matched ones, above 0, this many were cached."""
        self._reports += 1
        found = min(max(cached_tokens / beyond, 0.0), 1.0)
        self.share += max(_GAIN, 1.0 / self._reports) * (found - self.share)
