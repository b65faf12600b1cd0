"""Paged KV memory with prefix caching: a fixed number of blocks, shared by hash, evicted least recently used first.

Follows vLLM's `v1/core/block_pool.py`. A block is in exactly one of four places:

    blank     free, without content
    private   held by one sequence, not shareable (not full yet, or of unknown hash)
    held      full and shareable, referenced by one or more sequences
    idle      full and shareable, referenced by none: still found by lookups, first to go when memory is needed

vLLM's free queue is blank blocks first, then idle ones in the order of their release, so counting blank and private blocks and
keying the others by hash loses nothing. Like vLLM the pool does not merge equal blocks that two sequences computed
independently: the second one lives under an alias key, and each of them is announced and removed for itself.

Prompts' blocks are also copied into the tiers beside the GPU, if there are any (`offload_tier.py`), and announced there for themselves.
"""

from collections import Counter
from collections.abc import Sequence as Sized
from itertools import count, islice

from beaconry.engine_model.offload_tier import OffloadTier, run_of
from beaconry.engine_model.sequence import Sequence
from beaconry.values.errors import InternalError
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, Tier


class BlockPool:
    """The blocks of one engine.

    Attributes (invariants in `check`):
        blank: number of free blocks without content.
        private: number of blocks held as private.
        caching: False if no block is ever shared.
        evictions: cached blocks dropped since the start.
        tiers: where copies are kept beside the GPU, fastest first.

    `_held` maps the key of each held block to its number of holders, `_idle` has exactly the keys of the idle ones, least
    recently released first. A key is the block's hash, or a negative alias for a further block of the same hash: `_hash_of`
    maps aliases to hashes, `_aliases` maps hashes to their aliases, oldest first.

    `_idle` is a plain dict, a third of an OrderedDict's size. It keeps the places of keys that have gone, and whoever asks for its first
    key walks over them: so it is laid out afresh after `_moves` in proportion to its length.
    """

    def __init__(
        self,
        num_blocks: int,
        block_tokens: int,
        *,
        caching: bool = True,
        record_events: bool = False,
        tiers: Sized[OffloadTier] = (),
    ) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.caching = caching
        self.blank = num_blocks
        self.private = 0
        self.evictions = 0
        self.tiers = tuple(tiers) if caching else ()
        self._events: list[KvEvent] | None = [] if record_events else None
        self._held: dict[int, int] = {}
        self._idle: dict[int, None] = {}
        self._moves = 0
        self._hash_of: dict[int, int] = {}
        self._aliases: dict[int, list[int]] = {}
        self._alias_keys = count(-1, -1)

    @property
    def records_events(self) -> bool:
        """Whether `take_events` has anything to tell."""
        return self._events is not None

    @property
    def free(self) -> int:
        """Blocks that can be allocated: blank and idle ones."""
        return self.blank + len(self._idle)

    @property
    def cached(self) -> int:
        """Shareable blocks, held or idle."""
        return len(self._held) + len(self._idle)

    def match(self, hashes: Sized[int], limit: int) -> list[int]:
        """Return the keys of the longest cached prefix of `hashes`, at most `limit` of them. Changes nothing."""
        held, idle = self._held, self._idle
        keys: list[int] = []
        for block_hash in islice(hashes, limit):
            if block_hash in idle or block_hash in held:
                keys.append(block_hash)
            elif block_hash in self._aliases:
                keys.append(self._aliases[block_hash][0])
            else:
                break
        return keys

    def count_held(self, keys: list[int]) -> int:
        """Return how many of these cached blocks are held: sharing them takes no free block."""
        held = self._held
        return sum(1 for key in keys if key in held)

    def share(self, keys: list[int]) -> None:
        """Add a holder to each of these cached blocks."""
        held, idle = self._held, self._idle
        for key in keys:
            if key in held:
                held[key] += 1
            else:
                del idle[key]
                held[key] = 1

    def allocate(self, blocks: int) -> None:
        """Take private blocks: blank ones, then the idle ones that were released longest ago. The caller has checked `free`."""
        self.private += blocks
        if blocks <= self.blank:
            self.blank -= blocks
            return
        evicted = blocks - self.blank
        self.blank = 0
        self.evictions += evicted
        for key in list(islice(self._idle, evicted)):
            self._drop(key)
        self._moved(evicted)

    def publish(self, sequence: Sequence, full_blocks: int) -> None:
        """Make the sequence's private blocks below index `full_blocks` shareable, as far as their hashes are known."""
        table, hashes = sequence.table, sequence.content.hashes
        start, end = len(table), min(full_blocks, len(hashes))
        if start >= end or not self.caching:
            return
        held, idle, aliases = self._held, self._idle, self._aliases
        for block_hash in hashes[start:end]:
            known = block_hash in held or block_hash in idle or block_hash in aliases
            key = self._alias(block_hash) if known else block_hash
            held[key] = 1
            table.append(key)
        self.private -= end - start
        sequence.private_blocks -= end - start
        if self._events is not None:
            self._events.append(self._stored(sequence, start, end))
        if start < sequence.prompt_tokens // self.block_tokens:
            self.offload(sequence, end)

    def loadable(self, hashes: Sized[int], start: int, limit: int) -> tuple[int, float]:
        """Return how many blocks from index `start` on, below `limit`, can be loaded from the tiers, and in how many seconds."""
        return run_of(self.tiers, hashes, start, limit)

    def offload(self, sequence: Sequence, end: int) -> None:
        """Copy the prompt's blocks below index `end` into the tiers, where they are not there yet."""
        prompt = sequence.content.hashes[: min(end, sequence.prompt_tokens // self.block_tokens)] if self.tiers else ()
        for tier in self.tiers:
            new, gone = tier.keep(prompt)
            if self._events is None:
                continue
            self._events += [BlockRemoved(block_hash=block_hash, tier=tier.kind) for block_hash in gone]
            fresh = set(new)
            for index, block_hash in enumerate(prompt):
                if block_hash in fresh:
                    self._events.append(self._stored(sequence, index, index + 1, tier.kind))

    def release(self, sequence: Sequence) -> None:
        """Take all blocks from a sequence. Its tail becomes idle first, so that a prefix outlives what follows it."""
        held, idle = self._held, self._idle
        self.blank += sequence.private_blocks
        self.private -= sequence.private_blocks
        sequence.private_blocks = 0
        for key in reversed(sequence.table):
            holders = held[key]
            if holders == 1:
                del held[key]
                idle[key] = None
            else:
                held[key] = holders - 1
        self._moved(len(sequence.table))
        sequence.table.clear()

    def clear(self) -> bool:
        """Forget all cached blocks but those in a shared store; refused (False) while any is in use, as vLLM does."""
        if self.free != self.num_blocks:
            return False
        self.blank = self.num_blocks
        for table in (self._held, self._idle, self._hash_of, self._aliases):
            table.clear()
        for tier in self.tiers:
            if tier.kind is not Tier.SHARED:
                tier.clear()
        if self._events is not None:
            self._events.append(AllBlocksCleared())
        return True

    def take_events(self) -> list[KvEvent]:
        """Return the events since the last call, oldest first."""
        events = self._events or []
        if events:
            self._events = []
        return events

    def copy(self) -> "BlockPool":
        """Return an independent pool in the same state, that records no events."""
        tiers = [tier.copy() for tier in self.tiers]
        other = BlockPool(self.num_blocks, self.block_tokens, caching=self.caching, tiers=tiers)
        other.blank, other.private, other.evictions = self.blank, self.private, self.evictions
        other._held = self._held.copy()
        other._idle = self._idle.copy()
        other._hash_of = self._hash_of.copy()
        other._aliases = {block_hash: keys.copy() for block_hash, keys in self._aliases.items()}
        other._alias_keys = count(min(other._hash_of, default=0) - 1, -1)
        return other

    def check(self, sequences: Sized[Sequence]) -> None:
        """Raise InternalError unless every block is in exactly one place and the holders are these sequences."""
        holders = Counter(key for sequence in sequences for key in sequence.table)
        aliases = {key for keys in self._aliases.values() for key in keys}
        conditions = {
            "blocks are conserved": self.blank + self.private + self.cached == self.num_blocks,
            "no count is negative": min(self.blank, self.private) >= 0,
            "holders are counted": holders == self._held,
            "idle blocks have no holder": not self._idle.keys() & holders.keys(),
            "private blocks are counted": self.private == sum(s.private_blocks for s in sequences),
            "aliases are cached blocks": aliases == self._hash_of.keys()
            and aliases <= self._held.keys() | self._idle.keys(),
        }
        broken = [name for name, holds in conditions.items() if not holds]
        if broken:
            raise InternalError(f"block pool: not true that {', '.join(broken)}")
        for tier in self.tiers:
            tier.check()

    def _alias(self, block_hash: int) -> int:
        key = next(self._alias_keys)
        self._hash_of[key] = block_hash
        self._aliases.setdefault(block_hash, []).append(key)
        return key

    def _moved(self, keys: int) -> None:
        """Note that so many keys came or went; lay `_idle` out afresh if it is time."""
        self._moves += keys
        if 2 * self._moves > len(self._idle):
            self._moves = 0
            self._idle = dict.fromkeys(self._idle)

    def _drop(self, key: int) -> None:
        """Forget an idle block."""
        del self._idle[key]
        block_hash = self._hash_of.pop(key, None)
        if block_hash is not None:
            siblings = self._aliases[block_hash]
            siblings.remove(key)
            if not siblings:
                del self._aliases[block_hash]
        if self._events is not None:
            self._events.append(BlockRemoved(block_hash=key if block_hash is None else block_hash))

    def _stored(self, sequence: Sequence, start: int, end: int, tier: Tier = Tier.GPU) -> BlockStored:
        size, content = self.block_tokens, sequence.content
        return BlockStored(
            block_hashes=tuple(content.hashes[start:end]),
            parent_hash=content.hashes[start - 1] if start else None,
            token_ids=() if content.tokens is None else tuple(content.tokens[start * size : end * size]),
            block_tokens=size,
            lora=content.lora,
            salt=None if start else content.salt,
            tier=tier,
        )
