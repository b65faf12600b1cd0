"""Where an engine keeps copies of its cached blocks beside the GPU: the memory of its host, or a store that all engines share.

As vLLM's native offloading does it by default: full blocks of prompts are copied out as they are computed, not when the GPU evicts them,
once per hash; what has to make room is what was used longest ago, and of one prompt its end before its beginning. A shared store drops
nothing: when it is full nothing new enters. Where a prompt's blocks end on the GPU they may go on in the tier: those are loaded into GPU
blocks and are cached on both sides from then on. A run of blocks that does not fit as a whole is not copied.

Copying out happens beside the steps and takes no time here. Loading takes `load_s` per block, and the step that begins with it waits for
it: vLLM lets other sequences go on meanwhile, so this engine is a little too slow, never too fast.

Source: vLLM `v1/kv_offload/cpu` and its `offloading` connector.
"""

from collections.abc import Sequence
from itertools import islice

from beaconry.values.errors import InternalError, OperatorError
from beaconry.values.kv_events import Tier


class OffloadTier:
    """One tier's blocks by hash, used longest ago first. One of kind `Tier.SHARED` may belong to several engines."""

    def __init__(self, num_blocks: int, load_s: float, kind: Tier = Tier.CPU) -> None:
        """`load_s`: seconds to bring one block back. OperatorError if the sizes make no sense."""
        if num_blocks < 1 or load_s < 0.0 or kind is Tier.GPU:
            raise OperatorError(f"an offloading tier of {num_blocks} {kind} blocks, {load_s} s each")
        self.num_blocks = num_blocks
        self.load_s = load_s
        self.kind = kind
        self._blocks: dict[int, None] = {}

    def fresh(self) -> "OffloadTier":
        """An empty one like this."""
        return OffloadTier(self.num_blocks, self.load_s, self.kind)

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self._blocks

    def keep(self, hashes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Note the use of a prompt's first blocks, and copy those that are not here. Returns which are new, and which had to go."""
        blocks = self._blocks
        new = [block_hash for block_hash in hashes if block_hash not in blocks]
        excess = len(blocks) + len(new) - self.num_blocks
        if len(hashes) > self.num_blocks or (excess > 0 and self.kind is Tier.SHARED):
            self._insert([block_hash for block_hash in hashes if block_hash in blocks])
            return [], []
        self._insert(hashes)
        gone = list(islice(blocks, max(excess, 0)))
        for block_hash in gone:
            del blocks[block_hash]
        return new, gone

    def clear(self) -> None:
        """Forget all blocks."""
        self._blocks.clear()

    def copy(self) -> "OffloadTier":
        """Return an independent tier in the same state."""
        other = OffloadTier(self.num_blocks, self.load_s, self.kind)
        other._blocks = self._blocks.copy()
        return other

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        if len(self._blocks) > self.num_blocks:
            raise InternalError(f"{self.kind} tier: {len(self._blocks)} blocks of {self.num_blocks}")

    def _insert(self, hashes: Sequence[int]) -> None:
        """Make these the ones used last, the first of them very last."""
        for block_hash in hashes:
            self._blocks.pop(block_hash, None)
        self._blocks.update(dict.fromkeys(reversed(hashes)))


def run_of(tiers: Sequence[OffloadTier], hashes: Sequence[int], start: int, limit: int) -> tuple[int, float]:
    """How many blocks from index `start` on, below `limit`, are in any of the tiers without a gap, and the seconds to load them.

    Of a block in several tiers the first one counts: give them fastest first.
    """
    end, load_s = start, 0.0
    for block_hash in hashes[start:limit] if tiers else ():
        holder = next((tier for tier in tiers if block_hash in tier), None)
        if holder is None:
            break
        load_s += holder.load_s
        end += 1
    return end - start, load_s
