"""A group of layers that look back a fixed number of tokens: which of its blocks an engine has, and how much of a prompt they let reuse.

Of a prompt's beginning such a group needs only the blocks that its window reaches from the end: if those are there, what came before may
be gone. So the hit of a model with both kinds of layers ends at the last place within the dense groups' hit before which each window has
its blocks, or where all from the start are there. This is vLLM's search from right to left (`SlidingWindowManager.find_longest_cache_hit`),
for groups whose blocks have as many tokens as the dense one's. Not known here: speculative decoding makes vLLM drop one block more.

Its events name the blocks that it really keeps, by the same hashes as the dense group's.
"""

from collections.abc import Sequence

from beaconry.values.kv_events import BlockStored


class Window:
    """One engine's blocks of one group: `needed` of them in a row make a hit."""

    def __init__(self, tokens: int, block_tokens: int) -> None:
        """`tokens`: how far a token looks back, itself included; at least 1."""
        self.needed = max(-(-(tokens - 1) // block_tokens), 1)
        self.tokens = tokens
        self.block_tokens = block_tokens
        self._copies: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._copies)

    def emptied(self) -> "Window":
        """The same group of an engine that has cleared its cache."""
        return Window(self.tokens, self.block_tokens)

    def store(self, event: BlockStored) -> None:
        """Take a run of blocks."""
        copies = self._copies
        for block_hash in event.block_hashes:
            copies[block_hash] = copies.get(block_hash, 0) + 1

    def remove(self, block_hash: int) -> bool:
        """Take away one copy of a block. True if it was the last one."""
        left = self._copies.get(block_hash, 0) - 1
        if left > 0:
            self._copies[block_hash] = left
            return False
        return self._copies.pop(block_hash, None) is not None

    def reach(self, keys: Sequence[int], end: int) -> int:
        """How many of the first `end` blocks can be reused, as far as this group is concerned."""
        run = 0
        for index in range(end - 1, -1, -1):
            if keys[index] not in self._copies:
                run = 0
                continue
            run += 1
            if run >= self.needed:
                return index + run
        return run


def reach_all(windows: Sequence[Window], keys: Sequence[int], end: int) -> int:
    """How many of the first `end` blocks all groups can reuse."""
    while True:
        before = end
        for window in windows:
            end = window.reach(keys, end)
        if end == before:
            return end
