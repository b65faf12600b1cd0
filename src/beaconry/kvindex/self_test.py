"""The self-test at connect: an engine's first blocks are hashed again here, and a verdict is given once.

One per source. As long as there is none, events must be read with their tokens; afterwards only where the verdict says that the dual-key
map is needed. Until then nothing is lost: the events can be applied as they are, and are void if the verdict is bad.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from beaconry.kvindex.agreement import Agreement, HashSettings, agreement
from beaconry.values.kv_events import BlockStored, KvEvent

ENOUGH_BLOCKS: Final = 8
"""Verified, for a verdict: one would prove the way of hashing, several also show engines of two kinds behind one address."""
KEPT_EVENTS: Final = 256
"""Gathered at most; a verdict is given then in any case."""


class SelfTest:
    """Of one source. `verdict` is None until there is one."""

    def __init__(self, settings: HashSettings, adapters: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._adapters = {} if adapters is None else adapters
        """Paths by name. The caller may add to it as adapters become known."""
        self._gathered: list[BlockStored] = []
        """Until the verdict; at most KEPT_EVENTS."""
        self.verdict: Agreement | None = None

    def hear(self, events: Iterable[KvEvent]) -> Agreement | None:
        """Take events, read with their tokens. Returns the verdict when it has just been reached, None before and after."""
        if self.verdict is not None:
            return None
        fresh = [event for event in events if isinstance(event, BlockStored) and event.token_ids]
        if not fresh:
            return None
        self._gathered += fresh[: KEPT_EVENTS - len(self._gathered)]
        found = agreement(self._gathered, self._settings, self._adapters)
        if found.blocks < ENOUGH_BLOCKS and len(self._gathered) < KEPT_EVENTS:
            return None
        self._gathered.clear()
        self.verdict = found
        return found

    def restart(self) -> None:
        """The engine has restarted, maybe with other flags: begin again."""
        self._gathered.clear()
        self.verdict = None
