"""Which endpoint holds which KV blocks, as the engines' own events tell.

Keys are the engines' block hashes, values are the sets of those who hold the block (`block_table.py`), one table per tier. A lookup
searches each endpoint's prefix with few probes (`prefix_search.py`).

An engine, or each data-parallel rank of it, has a *lease*: one bit in the sets. When it clears its cache or restarts, the lease is
retired and a new one begins: one step, however much it held. What the old bit is still in is cleaned up in slices, paid for by later
events, and then the bit is used again. A lease that has stored little so far remembers what, and is emptied at once: an engine that
clears all the time cannot use up the bits.

An engine may hold several copies of a block, and stores and removes each for itself: further copies are counted per lease.

Attention that keeps the whole prompt is indexed, one group per engine. Where there are sliding windows beside it, a prefix can be used
only as far as these have their part as well (`window.py`), on the GPU. Of an engine with groups that cannot be followed (Mamba states,
windows of unknown length, or blocks of several sizes) nothing is indexed.

Invariants, verified by `check()`: a live bit is in as many blocks of a tier as its lease counts; a bit is in use, waiting to be cleaned
up, or free, and free ones are in no block; copies are of held blocks; no more blocks and copies than the limit allows.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from beaconry.kvindex.block_table import BlockTable
from beaconry.kvindex.lease import Lease, Leases
from beaconry.kvindex.prefix_search import Probe, reach
from beaconry.kvindex.window import reach_all
from beaconry.values.errors import InternalError
from beaconry.values.kv_events import BlockRemoved, BlockStored, KvEvent, Tier

BYTES_PER_BLOCK = 96
"""Upper bound, by which the limit is kept: dicts are a third full just after they have grown."""
_LOCAL = (Tier.GPU, Tier.CPU, Tier.STORAGE)


class Held(Struct, frozen=True):
    """What one endpoint holds of a prompt's beginning, in blocks. Each tier continues where the faster ones end."""

    gpu: int
    cpu: int = 0
    storage: int = 0
    rank: int = 0
    """The data-parallel rank that holds most; the others may hold less."""

    @property
    def blocks(self) -> int:
        """In all of its own tiers."""
        return self.gpu + self.cpu + self.storage


class SourceStatistics(Struct, frozen=True, kw_only=True):
    """What is indexed of one endpoint's rank."""

    name: str
    rank: int
    blocks: dict[Tier, int]
    copies: int
    """Blocks that it holds more than once."""
    block_tokens: int | None
    windowed: int
    """Blocks of its sliding-window groups."""
    hybrid: bool
    """It has groups that cannot be followed: not indexed."""


class ExactStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot for metrics and tests."""

    blocks: dict[Tier, int]
    """Different ones, by any holder."""
    bytes: int
    """What the tables occupy."""
    limit_bytes: int
    sources: tuple[SourceStatistics, ...]
    retired: int
    """Leases not cleaned up yet."""
    stored: int
    removed: int
    unknown: int
    """Removals of blocks that were not there: evicted here, or stored before we listened."""
    evicted: int
    holes: int
    """Holders found to miss a block within their prefix: a sign of lost events."""


class ExactIndex:
    """Blocks by holder. Sizes are in blocks; `limit_bytes` bounds the memory, by dropping the least valuable blocks."""

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self._limit_bytes = limit_bytes
        self._limit = max(limit_bytes // BYTES_PER_BLOCK, 1)
        """Of blocks and copies together."""
        self._tables: dict[Tier, BlockTable] = {Tier.GPU: BlockTable()}
        """Tiers that have been heard of."""
        self._leases = Leases()
        self._copies = 0
        """Entries in all live leases' counts of copies."""
        self._windowed = 0
        """Blocks in all live leases' sliding-window groups."""
        self._counts = dict.fromkeys(("stored", "removed", "unknown", "evicted", "holes"), 0)

    def apply(self, name: str, rank: int, events: Iterable[KvEvent]) -> None:
        """Take an engine's events, in their order."""
        lease = self._leases.of(name, rank)
        work = 0
        dropped: list[int] = []  # removals of one tier in a row: engines tell one block at a time
        tier = Tier.GPU
        for event in events:
            if isinstance(event, BlockRemoved):
                work += 1
                if event.group != lease.group:
                    self._remove_in_window(lease, event)
                    continue
                if event.tier is not tier:
                    self._remove(lease, tier, dropped)
                    dropped, tier = [], event.tier
                dropped.append(event.block_hash)
                continue
            if dropped:
                self._remove(lease, tier, dropped)
                dropped = []
            if isinstance(event, BlockStored):
                work += len(event.block_hashes)
                if lease.admits(event):
                    self._store(lease, event)
                elif not event.dense and not lease.hybrid and not self._store_in_window(lease, event):
                    lease = self._renew(lease, hybrid=True)
            else:
                lease = self._renew(lease, hybrid=lease.hybrid)
        if dropped:
            self._remove(lease, tier, dropped)
        self._keep_within_limit()
        self._leases.clean(self._tables, work)

    def clear(self, name: str) -> None:
        """Forget all that an endpoint holds: it has restarted, or is gone."""
        for lease in self._leases.of_endpoint(name):
            self._retire(lease)

    def clear_rank(self, name: str, rank: int) -> None:
        """Forget what one rank of an endpoint holds."""
        for lease in self._leases.of_endpoint(name):
            if lease.rank == rank:
                self._retire(lease)

    def match(self, keys: Sequence[int]) -> dict[str, Held]:
        """What each endpoint holds of a prompt with these block hashes; those without its first block are absent."""
        reached: list[dict[Lease, int]] = []  # by tier: how far each prefix reaches with that and the faster tiers
        probe: Probe | None = None
        for tier in _LOCAL if keys else ():
            table = self._tables.get(tier)
            if table is not None and table.blocks:
                probe = table.holders if probe is None else _either(probe, table.holders)
                reached.append(self._reached(keys, probe))
            else:
                reached.append(reached[-1] if reached else {})
        found: dict[str, Held] = {}
        if not reached:
            return found
        on_gpu, with_cpu, with_storage = reached
        for lease, end in with_storage.items():
            name, gpu = lease.name, on_gpu.get(lease, 0)
            if lease.windows:
                held = Held(
                    reach_all(tuple(lease.windows.values()), keys, gpu) if lease.followed else 0, 0, 0, lease.rank
                )
                if not held.gpu:
                    continue
            elif gpu == end:
                held = Held(gpu, 0, 0, lease.rank)
            else:
                cpu = max(with_cpu.get(lease, 0) - gpu, 0)
                held = Held(gpu, cpu, max(end - gpu - cpu, 0), lease.rank)
            if name not in found or found[name].blocks < held.blocks:
                found[name] = held
        return found

    def _reached(self, keys: Sequence[int], probe: Probe) -> dict[Lease, int]:
        ends, holes = reach(keys, probe, self._leases.live)
        self._counts["holes"] += holes
        return {lease: end for holders, end in ends for lease in self._leases.among(holders)}

    def shared(self, keys: Sequence[int]) -> int:
        """How many of a prompt's first blocks every endpoint can load from the shared tier."""
        table = self._tables.get(Tier.SHARED)
        if table is None or not keys:
            return 0
        holders, live = table.holders, self._leases.live
        ends, holes = reach(keys, lambda key: 1 if holders(key) & live else 0, 1)
        self._counts["holes"] += holes
        return ends[-1][1] if ends else 0

    def block_tokens(self, name: str) -> int | None:
        """The block size in which an endpoint's engine hashes; None before it has stored anything."""
        sizes = [lease.block_tokens for lease in self._leases.of_endpoint(name) if lease.block_tokens]
        return sizes[0] if sizes else None

    def proves(self, name: str) -> bool:
        """Whether an endpoint's blocks tell what its engine can reuse: not if any of its ranks has groups that cannot be followed."""
        return all(lease.followed for lease in self._leases.of_endpoint(name))

    def statistics(self) -> ExactStatistics:
        """A snapshot. Walks over all shards: for a scrape, not for each request."""
        sources = [
            SourceStatistics(
                name=lease.name,
                rank=lease.rank,
                blocks={tier: lease.blocks[tier] for tier in Tier},
                copies=lease.copied,
                block_tokens=lease.block_tokens,
                windowed=lease.windowed,
                hybrid=lease.hybrid,
            )
            for lease in self._leases
        ]
        tables = self._tables
        return ExactStatistics(
            blocks={tier: tables[tier].blocks if tier in tables else 0 for tier in Tier},
            bytes=sum(table.size() for table in tables.values()) + sum(lease.size() for lease in self._leases),
            limit_bytes=self._limit_bytes,
            sources=tuple(sources),
            retired=self._leases.retired,
            **self._counts,
        )

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold. Walks over all blocks."""
        self._leases.check()
        for tier, table in self._tables.items():
            counted = table.count()
            _require(sum(counted.values()) == table.blocks, f"{tier} blocks are miscounted")
            _require(all(counted), f"a {tier} block without holder")
            for lease in self._leases:
                held = sum(blocks for holders, blocks in counted.items() if holders & lease.bit)
                _require(
                    held == lease.blocks[tier], f"{lease.name} holds {held} {tier} blocks, not {lease.blocks[tier]}"
                )
                _require(
                    all(table.holders(key) & lease.bit for key in lease.copies[tier]),
                    f"{lease.name}: copies of nothing",
                )
            free = sum(1 << index for index in self._leases.free)
            _require(not any(holders & free for holders in counted), f"a free bit is in a {tier} block")
        _require(self._copies == sum(lease.copied for lease in self._leases), "the copies are miscounted")
        _require(self._windowed == sum(lease.windowed for lease in self._leases), "the windows are miscounted")
        _require(self._size() <= self._limit, "the limit is exceeded")

    def _store(self, lease: Lease, event: BlockStored) -> None:
        tier, hashes = event.tier, event.block_hashes
        table = self._tables.get(tier)
        if table is None:
            table = self._tables[tier] = BlockTable()
        if lease.young is not None:
            lease.remember(tier, hashes)
        if event.block_tokens:
            lease.block_tokens = event.block_tokens
        copies = lease.copies[tier]
        self._copies -= len(copies)
        lease.blocks[tier] += table.store(hashes, lease.bit, copies)
        self._copies += len(copies)
        self._counts["stored"] += len(hashes)

    def _remove(self, lease: Lease, tier: Tier, hashes: list[int]) -> None:
        table, copies = self._tables.get(tier), lease.copies[tier]
        self._copies -= len(copies)
        gone, unknown = (0, len(hashes)) if table is None else table.remove(hashes, lease.bit, copies)
        self._copies += len(copies)
        self._counts["unknown"] += unknown
        self._counts["removed"] += len(hashes) - unknown
        lease.blocks[tier] -= gone

    def _store_in_window(self, lease: Lease, event: BlockStored) -> bool:
        """Take blocks of a sliding-window group. False if they cannot be followed, or would take more than half of the memory."""
        window = lease.window(event)
        if window is None or self._windowed + len(event.block_hashes) > self._limit // 2:
            return False
        if event.tier is Tier.GPU:
            before = len(window)
            window.store(event)
            self._windowed += len(window) - before
        return True

    def _remove_in_window(self, lease: Lease, event: BlockRemoved) -> None:
        window = lease.windows.get(event.group)
        if window is not None and event.tier is Tier.GPU:
            self._windowed -= window.remove(event.block_hash)

    def _renew(self, lease: Lease, *, hybrid: bool) -> Lease:
        """A new lease in place of one whose blocks are all gone."""
        block_tokens = lease.block_tokens
        self._retire(lease)
        fresh = self._leases.of(lease.name, lease.rank)
        fresh.windows = {} if hybrid else {group: window.emptied() for group, window in lease.windows.items()}
        fresh.hybrid, fresh.block_tokens = hybrid, block_tokens
        return fresh

    def _retire(self, lease: Lease) -> None:
        self._copies -= lease.copied
        self._windowed -= lease.windowed
        self._leases.retire(lease, self._tables)

    def _size(self) -> int:
        return self._copies + self._windowed + sum(table.blocks for table in self._tables.values())

    def _keep_within_limit(self) -> None:
        """Drop blocks, those in the slowest tier first: what is there costs least to go without."""
        excess = self._size() - self._limit
        for tier in reversed(Tier):
            while excess > 0 and tier in self._tables and self._tables[tier].blocks:
                for key, holders in self._tables[tier].evict(excess, self._leases.live):
                    self._counts["evicted"] += holders > 0
                    for lease in self._leases.among(holders):
                        lease.blocks[tier] -= 1
                        self._copies -= lease.copies[tier].pop(key, None) is not None
                excess = self._size() - self._limit


def _either(first: Probe, second: Probe) -> Probe:
    return lambda key: first(key) | second(key)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InternalError(f"exact index: {what}")
