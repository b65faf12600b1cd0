"""One tier's blocks: which leases hold which block. A lease is one bit; a block's holders are an integer with their bits.

Keys are spread over shards by their high bits (a dict orders by the low ones), so that no single dict ever grows large: growing one
of ten million entries takes half a second, in which a gateway would stand still. A shard of ten thousand grows in 0.4 ms, and is small
enough to be cleaned up in one go. (More and smaller ones make each probe dearer: their heads fall out of the processor's cache.)

Equal holder sets share one integer object: sets repeat, and an object costs more than the pointer to it. A *pass* over all shards,
done in slices, takes out retired bits and the integers that nothing points to any more.

Memory, measured: 62 to 90 bytes a block, depending on how full the dicts are (32 the key, 24 + 2 an entry, a third to two thirds of
the entries empty). Oldest blocks come first within a shard, which is what eviction goes by.
"""

import sys
from collections.abc import Callable, Iterable, Sequence

_KEY_BITS = 60
"""Of a hash: a Python integer of 60 bits takes 32 bytes, one of 64 takes 48. Two of 10^7 keys collide once in 20,000 fleets."""
KEY_MASK = (1 << _KEY_BITS) - 1
_SHARD_BITS = 10
SHARDS = 1 << _SHARD_BITS
_SHIFT = _KEY_BITS - _SHARD_BITS
_KEY_BYTES = 32


class BlockTable:
    """Holders by key.

    Attributes (read only for others):
        blocks: number of keys; each has at least one bit, maybe only retired ones.
        masks: the shared integers, by value.
        holders: the bits of all that hold a block, given its hash; retired bits too.
    """

    def __init__(self) -> None:
        self.blocks = 0
        self.masks: dict[int, int] = {}
        self._shards: list[dict[int, int]] = [{} for _ in range(SHARDS)]
        self._clock = 0
        """The shard to evict from next."""
        self.holders = _probe_of(self._shards)

    def store(self, hashes: Sequence[int], bit: int, copies: dict[int, int]) -> int:
        """Note that `bit` holds these blocks; further copies of what it has are counted in `copies`. Returns how many were new to it."""
        shards, masks = self._shards, self.masks
        created = again = 0
        for block_hash in hashes:
            key = block_hash & KEY_MASK
            shard = shards[key >> _SHIFT]
            held = shard.get(key)
            if held is None:
                shard[key] = bit
                created += 1
            elif held & bit:
                copies[key] = copies.get(key, 0) + 1
                again += 1
            else:
                both = held | bit
                shard[key] = masks.setdefault(both, both)
        self.blocks += created
        return len(hashes) - again

    def remove(self, hashes: Sequence[int], bit: int, copies: dict[int, int]) -> tuple[int, int]:
        """Note that `bit` has dropped one copy of each. Returns of how many that was the last one, and how many it did not have."""
        shards, masks = self._shards, self.masks
        gone = emptied = unknown = 0
        for block_hash in hashes:
            key = block_hash & KEY_MASK
            shard = shards[key >> _SHIFT]
            held = shard.get(key)
            if held is None or not held & bit:
                unknown += 1
            elif copies and key in copies:
                if copies[key] == 1:
                    del copies[key]
                else:
                    copies[key] -= 1
            else:
                gone += 1
                rest = held ^ bit
                if rest:
                    shard[key] = masks.setdefault(rest, rest)
                else:
                    del shard[key]
                    emptied += 1
        self.blocks -= emptied
        return gone, unknown

    def discard(self, hashes: Iterable[int], bit: int) -> None:
        """Take `bit` from all of these blocks that it holds, whatever the copies."""
        for block_hash in hashes:
            key = block_hash & KEY_MASK
            shard = self._shards[key >> _SHIFT]
            held = shard.get(key, 0)
            if held & bit:
                self._drop_bit(shard, key, held ^ bit)

    def evict(self, blocks: int, live: int) -> list[tuple[int, int]]:
        """Drop about `blocks` of the least valuable keys; returns them with the live bits that held them.

        Oldest first, from one shard after the other. What several endpoints hold is likely a shared prompt, and gets another turn.
        """
        dropped: list[tuple[int, int]] = []
        spared = 0
        while len(dropped) < blocks and self.blocks:
            shard = self._shards[self._clock]
            self._clock = (self._clock + 1) % SHARDS
            key = next(iter(shard), None)
            if key is None:
                continue
            holders = shard.pop(key)
            kept = holders & live
            if kept & (kept - 1) and spared < 8 * blocks:
                shard[key] = holders
                spared += 1
                continue
            self.blocks -= 1
            dropped.append((key, kept))
        return dropped

    def clean(self, index: int, live: int) -> int:
        """Take retired bits out of one shard, and let it point to the shared integers. Returns how many keys it had."""
        shard, masks = self._shards[index], self.masks
        changed = []
        for key, held in shard.items():
            kept = held & live
            shared = masks.setdefault(kept, kept)
            if shared is not held:
                changed.append((key, shared))
        size = len(shard)
        for key, shared in changed:
            if shared:
                shard[key] = shared
            else:
                del shard[key]
        self.blocks -= size - len(shard)
        if 8 * len(shard) < size:
            self._shards[index] = dict(shard.items())  # a dict never shrinks by itself
        return size

    def size(self) -> int:
        """Bytes in use: dicts, keys and shared integers."""
        total = sys.getsizeof(self._shards) + sys.getsizeof(self.masks) + _KEY_BYTES * self.blocks
        return total + sum(map(sys.getsizeof, self._shards)) + sum(map(sys.getsizeof, self.masks))

    def count(self) -> dict[int, int]:
        """How many blocks have which holders: a walk over everything, for checks."""
        found: dict[int, int] = {}
        for shard in self._shards:
            for held in shard.values():
                found[held] = found.get(held, 0) + 1
        return found

    def _drop_bit(self, shard: dict[int, int], key: int, rest: int) -> None:
        if rest:
            shard[key] = self.masks.setdefault(rest, rest)
        else:
            del shard[key]
            self.blocks -= 1


def _probe_of(shards: list[dict[int, int]]) -> Callable[[int], int]:
    """A lookup in these shards. A closure, because it is called some fifty times per request, and a method is a third slower."""
    mask, shift = KEY_MASK, _SHIFT

    def probe(block_hash: int) -> int:
        key = block_hash & mask
        return shards[key >> shift].get(key, 0)

    return probe
