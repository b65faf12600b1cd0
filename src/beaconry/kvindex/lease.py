"""The bits of the exact index: who has which, which are retired, and how retired ones come back into use.

Every index below `len(_by_index)` is in exactly one place: used by a lease, `_retired` (its bit may be in blocks, the next pass takes
it out), `_passing` (the pass under way takes it out), or `free` (its bit is in no block). A pass is a walk over all shards in slices;
bits retired while it runs wait for the next one, because shards behind the cursor may have them.
"""

from collections.abc import Iterator, Mapping, Sequence

from beaconry.kvindex.block_table import SHARDS, BlockTable
from beaconry.kvindex.window import Window
from beaconry.values.errors import InternalError
from beaconry.values.kv_events import BlockStored, Tier

_YOUNG_BLOCKS = 512
"""A lease is emptied at once up to this many blocks stored: 0.1 ms."""
_KEYS_PER_BLOCK = 8
"""Keys looked at in cleaning up, per block stored or removed: less than 0.5 us."""
_SHARD_WORK = 16
"""What an empty shard counts as, in keys."""
_MASKS_SLACK = 4096
"""Shared integers that may be dead before a pass is worth it, beyond as many as there were after the last one."""
_COPY_BYTES = 104


class Lease:
    """One engine's, or one of its ranks', bit; from its first event or clear to the next clear."""

    __slots__ = (
        "bit",
        "block_tokens",
        "blocks",
        "copies",
        "group",
        "hybrid",
        "index",
        "name",
        "rank",
        "room",
        "windows",
        "young",
    )

    def __init__(self, name: str, rank: int, index: int) -> None:
        self.name = name
        self.rank = rank
        self.index = index
        self.bit = 1 << index
        self.blocks = dict.fromkeys(Tier, 0)
        self.copies: dict[Tier, dict[int, int]] = {tier: {} for tier in Tier}
        """Further copies of held blocks, by key."""
        self.group: int | None = None
        """The attention group that is indexed; None before the first block."""
        self.hybrid = False
        """There are groups of which nobody can tell what they allow to reuse: nothing is indexed."""
        self.windows: dict[int, Window] = {}
        """Sliding-window groups, whose part a hit needs too."""
        self.block_tokens: int | None = None
        self.young: list[tuple[Tier, Sequence[int]]] | None = []
        """All that was stored so far, while it is little."""
        self.room = _YOUNG_BLOCKS

    @property
    def copied(self) -> int:
        """Blocks with more than one copy."""
        return sum(map(len, self.copies.values()))

    def admits(self, event: BlockStored) -> bool:
        """Whether a run of blocks is to be indexed. The first dense group to speak is the one that counts."""
        if not event.dense or self.hybrid:
            return False
        if self.group is None:
            self.group = event.group
        return event.group == self.group

    def window(self, event: BlockStored) -> Window | None:
        """Where a run of blocks of a sliding-window group belongs; None if its window is not told, or its blocks differ in size."""
        if not event.window or not event.block_tokens:
            return None
        window = self.windows.get(event.group)
        if window is None:
            window = self.windows[event.group] = Window(event.window, event.block_tokens)
        return window if window.block_tokens == event.block_tokens else None

    @property
    def followed(self) -> bool:
        """What it holds tells what its engine can reuse."""
        return not self.hybrid and all(one.block_tokens == self.block_tokens for one in self.windows.values())

    @property
    def windowed(self) -> int:
        """Blocks of sliding-window groups."""
        return sum(map(len, self.windows.values()))

    def remember(self, tier: Tier, hashes: Sequence[int]) -> None:
        """Note what is stored, until it is too much."""
        assert self.young is not None
        self.room -= len(hashes)
        if self.room >= 0:
            self.young.append((tier, hashes))
        else:
            self.young = None

    def size(self) -> int:
        """Bytes in use for copies and windows; the rest is small."""
        return _COPY_BYTES * (self.copied + self.windowed)


class Leases:
    """All leases, by endpoint and rank. `live`: the bits in use."""

    def __init__(self) -> None:
        self.live = 0
        self.free: list[int] = []
        self._by_endpoint: dict[str, dict[int, Lease]] = {}
        self._by_index: list[Lease | None] = []
        self._retired: list[int] = []
        self._passing: list[int] | None = None
        """None while no pass is under way."""
        self._todo: list[tuple[BlockTable, int]] = []
        """Tables of the pass under way, each with its next shard."""
        self._credit = 0
        """Keys that the pass may look at; below 0 after a large shard, until that is paid for."""
        self._masks = 0
        """Shared integers after the last pass."""

    def __iter__(self) -> Iterator[Lease]:
        for ranks in self._by_endpoint.values():
            yield from ranks.values()

    @property
    def retired(self) -> int:
        """Bits not yet cleaned up."""
        return len(self._retired) + len(self._passing or ())

    def of(self, name: str, rank: int) -> Lease:
        """The lease of an endpoint's rank, a new one if it has none."""
        ranks = self._by_endpoint.setdefault(name, {})
        lease = ranks.get(rank)
        if lease is None:
            if self.free:
                index = self.free.pop()
            else:
                index = len(self._by_index)
                self._by_index.append(None)
            lease = ranks[rank] = self._by_index[index] = Lease(name, rank, index)
            self.live |= lease.bit
        return lease

    def of_endpoint(self, name: str) -> tuple[Lease, ...]:
        """The leases of all ranks of an endpoint."""
        return tuple(self._by_endpoint.get(name, {}).values())

    def among(self, holders: int) -> list[Lease]:
        """The live leases with these bits."""
        found: list[Lease] = []
        holders &= self.live
        by_index = self._by_index
        while holders:
            index = holders.bit_length() - 1
            lease = by_index[index]
            assert lease is not None
            found.append(lease)
            holders ^= lease.bit
        return found

    def retire(self, lease: Lease, tables: Mapping[Tier, BlockTable]) -> None:
        """End a lease: nothing has its bit any more, or nothing counts it."""
        ranks = self._by_endpoint[lease.name]
        del ranks[lease.rank]
        if not ranks:
            del self._by_endpoint[lease.name]
        self._by_index[lease.index] = None
        self.live ^= lease.bit
        if lease.young is None:
            self._retired.append(lease.index)
            return
        for tier, hashes in lease.young:
            tables[tier].discard(hashes, lease.bit)
        self.free.append(lease.index)

    def clean(self, tables: Mapping[Tier, BlockTable], blocks: int) -> None:
        """Do as much cleaning up as is due after this many blocks stored or removed."""
        if self._passing is None:
            masks = sum(len(table.masks) for table in tables.values())
            if not self._retired and masks <= 2 * self._masks + _MASKS_SLACK:
                return
            self._passing, self._retired = self._retired, []
            self._todo = [(table, 0) for table in tables.values()]
            for table in tables.values():
                table.masks = {lease.bit: lease.bit for lease in self}
            self._credit = 0
        self._credit += _KEYS_PER_BLOCK * blocks
        while self._credit > 0 and self._todo:
            table, shard = self._todo.pop()
            self._credit -= _SHARD_WORK + table.clean(shard, self.live)
            if shard + 1 < SHARDS:
                self._todo.append((table, shard + 1))
        if not self._todo:
            self.free += self._passing
            self._passing = None
            self._masks = sum(len(table.masks) for table in tables.values())

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        used = [lease.index for lease in self]
        everywhere = sorted([*used, *self.free, *self._retired, *(self._passing or ())])
        if everywhere != list(range(len(self._by_index))):
            raise InternalError(f"leases: bits {everywhere} of {len(self._by_index)}")
        if self.live != sum(lease.bit for lease in self):
            raise InternalError("leases: the live bits are not those in use")
        if any(self._by_index[lease.index] is not lease for lease in self):
            raise InternalError("leases: a lease is not found by its bit")
