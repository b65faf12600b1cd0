"""How one source's events are read: as they are once its hashes have proved to be ours, else in our hashes by way of its tokens.

    testing      events are told as they are, and kept in our hashes; tokens are needed      until the self-test's verdict
    agreed       events are told as they are; tokens are not needed                          until a restart
    translated   events are told in our hashes, by the dual-key map; tokens are needed       until a restart

When the verdict is bad, what was told before is void: it is forgotten, and what was kept is told in its place. That matters where all
prompts begin alike: their first blocks may be announced once only, long before the verdict.

A verdict without evidence (the engine's prompts began before we listened) is none: the test goes on.

Invariants, verified by `check()`: events are kept while testing only, `KEPT_BLOCKS` at most; the map is empty once hashes agree.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from beaconry.kvindex.agreement import Agreement, HashSettings
from beaconry.kvindex.dual_keys import DualKeys, DualKeysStatistics
from beaconry.kvindex.self_test import SelfTest
from beaconry.kvindex.turns import size_of
from beaconry.values.block_hash import BlockHasher
from beaconry.values.errors import InternalError
from beaconry.values.kv_events import AllBlocksCleared, BlockStored, KvBlocks, KvEvent

KEPT_BLOCKS: Final = 1 << 16
"""Kept while testing, the latest ones: the self-test ends after 256 events with tokens, and those come with 256 blocks at most."""


class Told(Struct, frozen=True):
    """What to make of events, to be done in this order."""

    events: tuple[KvEvent, ...]
    """Apply these."""
    clear: bool = False
    """Before that, forget all blocks of this source: `events` have those that are known."""
    verdict: Agreement | None = None
    """The self-test's, when it has just been reached."""


class Reading:
    """Of one source. `verdict` is the self-test's, None while there is none."""

    def __init__(self, blocks: KvBlocks, adapters: Mapping[str, str] | None = None) -> None:
        """`blocks`: how the engine is configured to hash; OperatorError if nobody can hash like that.

        `adapters`: paths of its LoRA adapters by name; the caller may add to it as they become known.
        """
        self._blocks = blocks
        self._adapters: Mapping[str, str] = {} if adapters is None else adapters
        self._dual = DualKeys(BlockHasher(blocks.block_tokens or 1, blocks.algorithm, blocks.seed), self._adapters)
        """Links blocks of whatever size events have. In use until the verdict, and after a bad one."""
        self._test: SelfTest | None = None
        """None before the block size is known, from the configuration or from an event."""
        self._kept: deque[KvEvent] = deque()
        """Translated, since the engine's cache was last empty."""
        self._kept_blocks = 0
        """Sum of the kept events' sizes."""
        self.verdict: Agreement | None = None

    @property
    def needs_tokens(self) -> bool:
        """Whether the next events have to be read with their token ids."""
        return self.verdict is None or self.translates

    @property
    def translates(self) -> bool:
        """Events are told in our hashes. Other differences than in hashes are not mended by that: see the verdict's warning."""
        return self.verdict is not None and _differs(self.verdict)

    def take(self, events: tuple[KvEvent, ...]) -> Told:
        """Take events in their order, and say what to tell. Call with a few hundred blocks at a time: a block costs 1 to 10 us."""
        if self.translates:
            return Told(self._dual.translate(events))
        if self.verdict is not None:
            return Told(events)
        self._keep(self._dual.translate(events))
        verdict = self._tested(events)
        if verdict is None:
            return Told(events)
        self.verdict = verdict
        kept = tuple(self._kept)
        self._forget()
        if _differs(verdict):
            return Told(kept, clear=True, verdict=verdict)
        self._dual.clear()
        return Told(events, verdict=verdict)

    def restart(self) -> None:
        """The engine has restarted, maybe with other flags: test it again. What it had is gone."""
        self.verdict = None
        self._test = None
        self._dual.clear()
        self._forget()

    def statistics(self) -> DualKeysStatistics:
        """The dual-key map's figures."""
        return self._dual.statistics()

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        self._dual.check()
        if self._kept_blocks != sum(map(size_of, self._kept)) or self._kept_blocks > KEPT_BLOCKS:
            raise InternalError("KV-event reading: the kept events are miscounted, or too many")
        if self.verdict is not None and self._kept:
            raise InternalError("KV-event reading: events are kept after the verdict")
        if not self.needs_tokens and self.statistics().blocks:
            raise InternalError("KV-event reading: dual keys that nobody needs")

    def _tested(self, events: tuple[KvEvent, ...]) -> Agreement | None:
        if self._test is None:
            size = self._blocks.block_tokens or _block_tokens(events)
            if not size:
                return None
            settings = HashSettings(algorithm=self._blocks.algorithm, seed=self._blocks.seed, block_tokens=size)
            self._test = SelfTest(settings, self._adapters)
        verdict = self._test.hear(events)
        if verdict is not None and verdict.share is None:
            self._test.restart()
            return None
        return verdict

    def _keep(self, events: tuple[KvEvent, ...]) -> None:
        """Keep translated events for a bad verdict. The oldest go first: then less is known than the engine has, and never more."""
        for event in events:
            if isinstance(event, AllBlocksCleared):
                self._forget()
                continue
            self._kept.append(event)
            self._kept_blocks += size_of(event)
        while self._kept_blocks > KEPT_BLOCKS:
            self._kept_blocks -= size_of(self._kept.popleft())

    def _forget(self) -> None:
        self._kept.clear()
        self._kept_blocks = 0


def _differs(verdict: Agreement) -> bool:
    """Some of the engine's hashes are not ours. A wrong block size alone is no such difference."""
    return verdict.agreed < verdict.blocks


def _block_tokens(events: tuple[KvEvent, ...]) -> int:
    """The size of the first blocks that tell one; 0 if none does."""
    return next((event.block_tokens for event in events if isinstance(event, BlockStored) and event.block_tokens), 0)
