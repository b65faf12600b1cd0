"""Events of an engine whose hashes we cannot compute, turned into the same events with our own hashes.

An engine may seed its hashes at random, or hash in a way unknown here. Its events still name the tokens of each block and the block
before, so each block can be hashed once more, our way, and the engine's hash becomes a mere name for it. One translator per source: names
mean nothing beyond the process that gave them. It costs the decoding of all token ids and a hash per block; so it is for those engines
only that fail the self-test (`agreement.py`).

A block whose parent is unknown (stored before we listened, or lost) cannot be hashed and is left out, and so is what follows it. So is
a block met first in another tier than the GPU: vLLM's events do not tell there what entered its hash beside the tokens. When the table is
full nothing new enters until blocks are removed. In both cases less is known than the engine has, and never more.

Invariants, verified by `check()`: further copies are of known blocks, at least one each; at most `limit` blocks.
"""

from array import array
from collections.abc import Iterable, Mapping

from msgspec import Struct, structs

from beaconry.kvindex.agreement import UNKNOWN, tags_of
from beaconry.values.block_hash import MASK64, BlockHasher
from beaconry.values.errors import InternalError
from beaconry.values.kv_events import BlockRemoved, BlockStored, KvEvent, Tier


class DualKeysStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot for metrics and tests."""

    blocks: int
    """Known by both hashes."""
    translated: int
    """Blocks stored, in events that could be translated."""
    orphans: int
    """Blocks left out: what came before them, their tokens or something in their hash is not known."""
    refused: int
    """Blocks left out because the table was full."""


class DualKeys:
    """The engine's names of the blocks of one source, and our hashes. `limit` bounds the blocks, about 150 bytes each."""

    def __init__(self, hasher: BlockHasher, adapters: Mapping[str, str] | None = None, limit: int = 1 << 20) -> None:
        self._hasher = hasher
        self._adapters = {} if adapters is None else adapters
        """Paths of LoRA adapters by name."""
        self._limit = limit
        self._ours: dict[int, int] = {}
        """Our whole hash by the low 64 bits of the engine's, for all blocks that it has in any tier."""
        self._copies: dict[int, int] = {}
        """Further copies of those, in any tier."""
        self._counts = dict.fromkeys(("translated", "orphans", "refused"), 0)

    def translate(self, events: Iterable[KvEvent]) -> tuple[KvEvent, ...]:
        """The same events, as far as they can be told in our hashes. They must have been read with their tokens."""
        told: list[KvEvent] = []
        for event in events:
            if isinstance(event, BlockStored):
                if not event.dense:
                    # Its names may come before the dense group's, so they cannot be told: without its window nothing is indexed.
                    told.append(structs.replace(event, window=None))
                else:
                    told += self._stored(event)
            elif isinstance(event, BlockRemoved):
                told += self._removed(event)
            else:
                self.clear()
                told.append(event)
        return tuple(told)

    def clear(self) -> None:
        """The engine has restarted: its names mean nothing any more."""
        self._ours.clear()
        self._copies.clear()

    def statistics(self) -> DualKeysStatistics:
        """A snapshot."""
        return DualKeysStatistics(blocks=len(self._ours), **self._counts)

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        if not self._copies.keys() <= self._ours.keys() or min(self._copies.values(), default=1) < 1:
            raise InternalError("dual keys: copies of unknown blocks, or none")
        if len(self._ours) > self._limit:
            raise InternalError("dual keys: the limit is exceeded")

    def _stored(self, event: BlockStored) -> list[BlockStored]:
        """The longest beginning of the run that can be told, if any."""
        size, parent = event.block_tokens, event.parent_hash
        last = None if parent is None else self._ours.get(parent & MASK64)
        whole = size > 0 and len(event.token_ids) == size * len(event.block_hashes)
        ours: list[int] = []
        for index, block_hash in enumerate(event.block_hashes):
            name = block_hash & MASK64
            known = self._ours.get(name)
            if known is not None:
                self._copies[name] = self._copies.get(name, 0) + 1
                last = known
            else:
                tags = tags_of(event, index, self._adapters)
                begins = index == 0 and parent is None
                told = whole and tags is not UNKNOWN and event.tier is Tier.GPU
                if not told or (last is None and not begins):
                    self._counts["orphans"] += len(event.block_hashes) - index
                    break
                if len(self._ours) >= self._limit:
                    self._counts["refused"] += len(event.block_hashes) - index
                    break
                last = self._hasher.link(
                    last, array("I", event.token_ids[index * size : (index + 1) * size]), tags or None
                )
                self._ours[name] = last
            ours.append(last & MASK64)
        self._counts["translated"] += len(ours)
        return [structs.replace(event, block_hashes=tuple(ours), parent_hash=None, token_ids=())] if ours else []

    def _removed(self, event: BlockRemoved) -> list[BlockRemoved]:
        name = event.block_hash & MASK64
        known = self._ours.get(name)
        if known is None:
            return []
        copies = self._copies.get(name, 0)
        if copies > 1:
            self._copies[name] = copies - 1
        elif copies:
            del self._copies[name]
        else:
            del self._ours[name]
        return [structs.replace(event, block_hash=known & MASK64)]
