"""Hears the engines' KV events over ZeroMQ, and tells them as facts: complete, in order, and a few hundred blocks at a time.

One task and one SUB socket per source (an endpoint, or one of its data-parallel ranks). ZeroMQ connects and reconnects by itself and
keeps a bounded queue per source; what does not fit is dropped by the publisher and shows as a gap. What to make of gaps and restarts
is decided by `kvindex/stream.py`; this file asks the publisher's ROUTER for past batches where that says so: with a deadline, a few
sources at a time. While a source's past is told, its live messages wait in the queue. Whether a source's hashes are ours, and what to do
where they are not, is decided by `kvindex/reading.py`.

The event loop belongs to the requests: all sources together do at most the work of `turn_blocks` blocks per round of the loop, reading
included; a request waits no longer than for that, or for one message to be decoded. pyzmq's own asyncio sockets cost several callbacks
per message.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import zmq
from msgspec import Struct, structs

from beaconry.config.kv_feed import KvFeed
from beaconry.io.zmq_sockets import Readiness, Sock, connection_events, new_context, new_socket
from beaconry.kvindex.agreement import Agreement
from beaconry.kvindex.dual_keys import DualKeysStatistics
from beaconry.kvindex.reading import Reading
from beaconry.kvindex.stream import Advance, SourceStream, StreamStatistics
from beaconry.kvindex.turns import in_turns, size_of
from beaconry.router.facts import Fact, KvCleared, KvEvents, KvSourceChanged
from beaconry.values.errors import EngineError
from beaconry.values.kv_events import KvBatch, KvEvent, KvSource, SourceState
from beaconry.wire.kv_events import decode, parse_frames, split

_MESSAGE_COST = 16
"""Reading a message takes as long as applying so many blocks: about 20 us,"""
_COST_BYTES = 1024
"""and as one more for so many bytes."""
_LONG_BYTES = 16_384
"""From this length on a message is decoded in parts: whole, those of long prefills take a quarter of a millisecond and more."""
_LOG = logging.getLogger(__name__)


class FeedStatistics(Struct, frozen=True, kw_only=True):
    """One source's figures for metrics."""

    stream: StreamStatistics
    messages: int
    malformed: int
    """Messages that could not be read, dropped."""
    skipped: int
    """Events of unknown types."""
    verdict: Agreement | None
    """Whether the engine's block hashes are ours; None while that is not known, or not asked."""
    dual_keys: DualKeysStatistics | None
    """Of the map from its hashes to ours; None where there is no need for one."""
    lags: int
    """Live batches applied."""
    lag_s: float
    """Sum over them: from their time by the engine's clock until they were applied, by ours."""


class _Feed:
    """One source: its order, and what was counted."""

    def __init__(self, source: KvSource, adapters: Mapping[str, str]) -> None:
        self.source = source
        self.stream = SourceStream(replays=source.replay is not None)
        self.reading = None if source.blocks is None or source.tokens else Reading(source.blocks, adapters)
        """None: events are told as they are."""
        self.warned = ""
        """The last warning about its hashes: a restart alone is no reason to repeat it."""
        self.told: tuple[SourceState, str] | None = None
        """State and reason last told."""
        self.retry_at_s: float | None = None
        """When to ask again, after no answer came; None if there is no need to."""
        self.unanswered = 0
        """Questions in a row that were given up."""
        self.messages = 0
        self.malformed = 0
        self.skipped = 0
        self.lags = 0
        self.lag_s = 0.0

    def read(self, frames: Sequence[bytes]) -> tuple[int | None, KvBatch] | None:
        """A message, or a part of one, as sequence number (None: end of a replay) and batch; None if it is malformed."""
        try:
            sequence, payload = parse_frames(frames)
            tokens = self.source.tokens if self.reading is None else self.reading.needs_tokens
            batch = KvBatch(ts=0.0, events=()) if sequence is None else decode(payload, tokens=tokens)
        except EngineError as error:
            self.malformed += 1
            if self.malformed & (self.malformed - 1) == 0:  # the first, second, fourth, ...
                _LOG.warning("%s: malformed message number %d dropped: %s", self.source, self.malformed, error)
            return None
        self.skipped += batch.skipped
        return sequence, batch

    def statistics(self) -> FeedStatistics:
        """A snapshot."""
        reading = self.reading
        return FeedStatistics(
            stream=self.stream.statistics(),
            messages=self.messages,
            malformed=self.malformed,
            skipped=self.skipped,
            verdict=None if reading is None else reading.verdict,
            dual_keys=reading.statistics() if reading is not None and reading.translates else None,
            lags=self.lags,
            lag_s=self.lag_s,
        )


class KvFeeds:
    """All sources. Watch and unwatch at any time; `run` does the work."""

    def __init__(self, tell: Callable[[Fact], None], limits: KvFeed | None = None) -> None:
        self._tell = tell
        self._limits = limits or KvFeed()
        self._sources: dict[tuple[str, int], KvSource] = {}
        self._adapters: dict[str, dict[str, str]] = {}
        """Paths of each endpoint's LoRA adapters by name; its feeds read what is here at the time."""
        self._feeds: dict[tuple[str, int], _Feed] = {}
        """While running: one per source, with a task each."""
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        """None while not running."""
        self._context: zmq.Context[Sock] | None = None
        self._turn = asyncio.Lock()
        """Held by whoever applies events."""
        self._applied = 0
        """Work since the event loop last went round, in blocks."""
        self._replays = asyncio.Semaphore(self._limits.replays_at_once)

    def watch(self, source: KvSource) -> None:
        """Listen to a new source, or to one that has changed. OperatorError if its way of hashing is unknown: nothing has changed then."""
        key = (source.name, source.rank)
        if self._sources.get(key) == source:
            return
        feed = self._feed(source)
        self._stop(key)
        self._sources[key] = source
        if self._group is not None:
            self._begin(self._group, feed)

    def unwatch(self, name: str) -> None:
        """Listen to an endpoint no longer. What was told about it is not taken back."""
        for key in [key for key in self._sources if key[0] == name]:
            del self._sources[key]
            self._stop(key)
        self._adapters.pop(name, None)

    def adapters(self, name: str, adapters: Mapping[str, str]) -> None:
        """Know an endpoint's LoRA adapters: paths by name, which its events leave out and its block hashes have in them."""
        known = self._adapters.setdefault(name, {})
        known.clear()
        known.update(adapters)

    async def run(self) -> None:
        """Listen until cancelled."""
        context = self._context = new_context()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for source in self._sources.values():
                    self._begin(group, self._feed(source))
                await asyncio.Event().wait()
        finally:
            self._group = None
            self._tasks.clear()
            self._feeds.clear()
            context.destroy(linger=0)

    def statistics(self) -> dict[tuple[str, int], FeedStatistics]:
        """By endpoint and rank; only while running."""
        return {key: feed.statistics() for key, feed in self._feeds.items()}

    def _feed(self, source: KvSource) -> _Feed:
        return _Feed(source, self._adapters.setdefault(source.name, {}))

    def _begin(self, group: asyncio.TaskGroup, feed: _Feed) -> None:
        key = (feed.source.name, feed.source.rank)
        self._feeds[key] = feed
        self._tasks[key] = group.create_task(self._follow(feed))

    def _stop(self, key: tuple[str, int]) -> None:
        self._feeds.pop(key, None)
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()

    async def _follow(self, feed: _Feed) -> None:
        """One source, until cancelled."""
        source = feed.source
        self._tell(KvCleared(source.name, source.rank))
        self._tell_state(feed)
        assert self._context is not None
        sub = new_socket(self._context, zmq.SUB, self._limits, self._limits.queued_messages)
        monitor = sub.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        readiness = Readiness(monitor, sub)
        try:
            sub.subscribe(source.topic)
            sub.connect(source.address)
            while True:
                await self._round(feed, sub, monitor, readiness)
        except zmq.ZMQError as error:
            _LOG.error("no KV events from %s: %s: %s", source.name, source.address, error)
            self._tell(KvSourceChanged(source.name, source.rank, SourceState.COLD, f"{source.address}: {error}"))
        finally:
            readiness.close()
            sub.disable_monitor()
            monitor.close(linger=0)
            sub.close(linger=0)

    async def _round(self, feed: _Feed, sub: Sock, monitor: Sock, readiness: Readiness) -> None:
        """Wait for something to happen to one source, and deal with it."""
        now_s = asyncio.get_running_loop().time
        wait_s = None if feed.retry_at_s is None else max(feed.retry_at_s - now_s(), 0.0)
        ready = await readiness.wait(wait_s)
        for event in connection_events(monitor) if monitor in ready else ():
            if event == zmq.EVENT_DISCONNECTED:
                await self._hear(feed, sub)  # what it said before it left
                feed.stream.disconnected()
                self._tell_state(feed)
            else:
                await self._follow_up(feed, feed.stream.connected())
        await self._hear(feed, sub)
        if feed.retry_at_s is not None and feed.retry_at_s <= now_s():
            await self._follow_up(feed, feed.stream.connected())

    async def _hear(self, feed: _Feed, sub: Sock) -> None:
        """Take the live messages that are there."""
        for _ in range(self._limits.queued_messages):
            async with self._turn:
                try:
                    frames = sub.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    return
                message = await self._read_in_turns(feed, frames)
                if message is None or message[0] is None:
                    continue
                advance = feed.stream.live(message[0], message[1])
                await self._carry_out(feed, advance)
                if message[1] in advance.batches:
                    feed.lags += 1
                    feed.lag_s += time.time() - message[1].ts
            if advance.replay_from is not None:
                await self._catch_up(feed, advance.replay_from)

    async def _read_in_turns(self, feed: _Feed, frames: Sequence[bytes]) -> tuple[int | None, KvBatch] | None:
        """A message as `_Feed.read` tells it, a long one part by part. The caller holds `_turn`."""
        feed.messages += 1
        *head, payload = frames
        parts: Iterable[bytes] = [payload] if len(payload) < _LONG_BYTES else split(payload, self._limits.turn_blocks)
        read: list[tuple[int | None, KvBatch]] = []
        for part in parts:
            message = feed.read([*head, part])
            await self._spend(_MESSAGE_COST + len(part) // _COST_BYTES)
            if message is None:
                return None
            read.append(message)
        sequence, batch = read[0]
        if len(read) > 1:
            batch = structs.replace(batch, events=tuple([event for _, part in read for event in part.events]))
        return sequence, batch

    async def _follow_up(self, feed: _Feed, advance: Advance) -> None:
        """Do what an advance says, its question included."""
        async with self._turn:
            await self._carry_out(feed, advance)
        if advance.replay_from is not None:
            await self._catch_up(feed, advance.replay_from)

    async def _carry_out(self, feed: _Feed, advance: Advance) -> None:
        """Tell what an advance says, in turns. The caller holds `_turn`, so that all sources share them."""
        name, rank = feed.source.name, feed.source.rank
        if advance.clear:
            self._tell(KvCleared(name, rank))
            if feed.reading is not None:
                feed.reading.restart()
        turns = (turn for batch in advance.batches for turn in in_turns(batch.events, self._limits.turn_blocks))
        for turn in turns:
            for events in self._read(feed, turn):
                self._tell(KvEvents(name, rank, events))
                await self._spend(sum(map(size_of, events)))
        self._tell_state(feed)

    async def _spend(self, blocks: int) -> None:
        """Note work that has been done, and let the event loop go round when it is enough for a turn."""
        self._applied += blocks
        if self._applied >= self._limits.turn_blocks:
            self._applied = 0
            await asyncio.sleep(0)

    def _read(self, feed: _Feed, events: tuple[KvEvent, ...]) -> Iterable[tuple[KvEvent, ...]]:
        """What to tell of one turn's events, in turns."""
        if feed.reading is None:
            return (events,)
        told = feed.reading.take(events)
        if told.verdict is not None and told.verdict.warning not in ("", feed.warned):
            feed.warned = told.verdict.warning
            _LOG.warning("KV events of %s rank %d: %s", feed.source.name, feed.source.rank, feed.warned)
        if told.clear:
            self._tell(KvCleared(feed.source.name, feed.source.rank))
        return (events,) if told.events is events else in_turns(told.events, self._limits.turn_blocks)

    def _tell_state(self, feed: _Feed) -> None:
        state = (feed.stream.state, feed.stream.reason)
        if state != feed.told:
            feed.told = state
            self._tell(KvSourceChanged(feed.source.name, feed.source.rank, *state))

    async def _catch_up(self, feed: _Feed, first: int) -> None:
        """Ask for the batches from `first` on, and for what the answers leave open, as often as that is reasonable."""
        reason = "the answers leave too much open"
        for _ in range(self._limits.replay_rounds):
            for _ in range(self._limits.replay_attempts):
                async with self._replays:
                    try:
                        async with asyncio.timeout(self._limits.replay_total_s):
                            advance = await self._ask(feed, first)
                        break
                    except TimeoutError:
                        reason = f"no complete answer within {self._limits.replay_total_s:g} s"
                    except EngineError as error:
                        reason = str(error)
                await asyncio.sleep(self._limits.replay_pause_s)
            else:
                break
            if advance.replay_from is None:
                feed.retry_at_s, feed.unanswered = None, 0
                return
            first = advance.replay_from
            await asyncio.sleep(self._limits.replay_pause_s)
        _LOG.warning("KV events of %s rank %d: %s", feed.source.name, feed.source.rank, reason)
        pause_s = min(self._limits.retry_s * 2**feed.unanswered, self._limits.retry_max_s)
        feed.retry_at_s = asyncio.get_running_loop().time() + pause_s
        feed.unanswered = min(feed.unanswered + 1, 30)
        async with self._turn:
            await self._carry_out(feed, feed.stream.replay_failed(reason))

    async def _ask(self, feed: _Feed, first: int) -> Advance:
        """One question and its answer, up to its end or until the stream wants another one. EngineError if it stops coming."""
        address = feed.source.replay
        assert address is not None
        assert self._context is not None
        dealer = new_socket(self._context, zmq.DEALER, self._limits, 0)
        readiness = Readiness(dealer)
        try:
            try:
                dealer.connect(address)
                dealer.send_multipart([b"", first.to_bytes(8, "big")], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                raise EngineError(f"cannot ask {address}: {error}") from None
            while True:
                if not await readiness.wait(self._limits.replay_idle_s):
                    raise EngineError(f"{address} does not answer within {self._limits.replay_idle_s:g} s")
                with suppress(zmq.Again):
                    while True:
                        async with self._turn:
                            message = await self._read_in_turns(feed, dealer.recv_multipart(zmq.NOBLOCK))
                            if message is None:
                                continue
                            sequence, batch = message
                            stream = feed.stream
                            ended = sequence is None
                            advance = stream.replay_ended() if sequence is None else stream.replayed(sequence, batch)
                            await self._carry_out(feed, advance)
                        if ended or advance.replay_from is not None:
                            return advance
        finally:
            readiness.close()
            dealer.close(linger=0)
