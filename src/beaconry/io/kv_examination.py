"""The part of an examination that listens: do an engine's KV events arrive, complete, and are its block hashes ours?"""

import asyncio
from array import array
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from beaconry.io.zmq_events import KvFeeds
from beaconry.kvindex.agreement import HashSettings, agreement
from beaconry.router.facts import Fact, KvEvents, KvSourceChanged
from beaconry.values.block_hash import ALGORITHMS, DEFAULT_SEED
from beaconry.values.check import Check, failed, ok, warning
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import BlockStored, KvEvent, SourceState

KEPT_EVENTS = 4096
"""Of those that come, so that a busy engine does not fill the memory."""
CONNECT_S = 1.0
"""An engine without replay shows by nothing that we are connected."""
_FLAGS = '--kv-events-config \'{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5600"}\''


class KvExamination:
    """What is heard from one endpoint while `listening`."""

    def __init__(
        self,
        endpoint: Endpoint,
        adapters: Mapping[str, str],
        probe: "array[int] | None",
        cache: Mapping[str, str],
    ) -> None:
        """`probe`: tokens of a prompt that the engine gets meanwhile. `cache`: its cache settings as its metrics say."""
        self._endpoint = endpoint
        self._adapters = adapters
        self._cache = cache
        self._probe = probe
        self._events: list[KvEvent] = []
        self._states: dict[int, tuple[SourceState, str]] = {}
        """By rank."""
        self._heard = asyncio.Event()
        """The probe's blocks have come; any blocks, if its tokens are unknown."""
        self._known = asyncio.Event()
        """All ranks have told their past."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen while the context lasts; it begins when all ranks have told their past, or after a while."""
        feeds = KvFeeds(self._tell)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(feeds.run())
            for source in self._endpoint.kv_sources:
                feeds.watch(msgspec.structs.replace(source, tokens=True))
            try:
                await _at_most(CONNECT_S, self._known)
                yield
            finally:
                running.cancel()

    async def wait(self, timeout_s: float) -> None:
        """Wait for the probe's blocks."""
        await _at_most(timeout_s, self._heard)

    def checks(self) -> list[Check]:
        """What came of it."""
        arrived = self._arrival()
        return [arrived] if not self._events else [arrived, self._hashes()]

    def _arrival(self) -> Check:
        told = self._endpoint.kv_events
        assert told is not None
        where = told.endpoint
        stored = sum(len(event.block_hashes) for event in self._events if isinstance(event, BlockStored))
        doubts = [f"rank {rank}: {state.value}, {reason}" for rank, (state, reason) in self._states.items() if reason]
        if not self._heard.is_set():
            remedy = f"start the engine with {_FLAGS}, the same ports in kvEvents, and let nothing between drop ZeroMQ's connections"
            seen = f"{stored} blocks came, but not those of the prompt just sent" if stored else "nothing came"
            return failed("KV events", "; ".join([f"{where}: {seen}", *doubts]), remedy)
        if told.replay is None:
            remedy = 'add "replay_endpoint" to the engine\'s --kv-events-config and `replay` to kvEvents: without, a lost message is lost'
            return warning("KV events", f"{where}: {stored} blocks; no replay", remedy)
        if doubts:
            return warning(
                "KV events",
                "; ".join([f"{where}: {stored} blocks", *doubts]),
                "see whether the replay address is reachable",
            )
        return ok("KV events", f"{where}: {stored} blocks, complete from the first message on")

    def _hashes(self) -> Check:
        blocks = self._endpoint.kv_blocks
        algorithm = blocks.algorithm if blocks else self._cache.get("prefix_caching_hash_algo", "sha256")
        if algorithm not in ALGORITHMS:
            return failed(
                "block hashes",
                f"the engine hashes by {algorithm!r}, unknown here",
                f"use one of {', '.join(ALGORITHMS)}",
            )
        size = (blocks.block_tokens if blocks else 0) or int(self._cache.get("block_size") or 16)
        settings = HashSettings(algorithm=algorithm, seed=blocks.seed if blocks else DEFAULT_SEED, block_tokens=size)
        found = agreement(self._events, settings, self._adapters)
        if found.share is None:
            return warning(
                "block hashes",
                f"none of {found.unverifiable} blocks could be verified",
                "run it again while the engine is quiet",
            )
        counted = f"{found.agreed} of {found.blocks} blocks agree with {settings.told}"
        if found.agreed == 0:
            return failed("block hashes", counted, found.warning)
        return warning("block hashes", counted, found.warning) if found.warning else ok("block hashes", counted)

    def _tell(self, fact: Fact) -> None:
        if isinstance(fact, KvSourceChanged):
            self._states[fact.rank] = (fact.state, fact.reason)
            if all(state is not SourceState.COLD for state, _ in self._states.values()):
                self._known.set()
        elif isinstance(fact, KvEvents):
            room = KEPT_EVENTS - len(self._events)
            self._events += fact.events[:room]
            if any(map(self._is_probe, fact.events)):
                self._heard.set()

    def _is_probe(self, event: KvEvent) -> bool:
        if not isinstance(event, BlockStored):
            return False
        if self._probe is None:
            return True
        size = event.block_tokens
        return size > 0 and len(event.token_ids) >= size and array("I", event.token_ids[:size]) == self._probe[:size]


async def _at_most(timeout_s: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
