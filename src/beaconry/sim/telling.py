"""How one engine's KV events reach the router replicas: numbered batches, a stream per replica, answers for past ones."""

from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from beaconry.kvindex.stream import Advance, SourceStream
from beaconry.router.facts import Fact, KvCleared, KvEvents, KvSourceChanged
from beaconry.sim.conditions import Conditions
from beaconry.sim.flight import Front
from beaconry.sim.heap import EventHeap
from beaconry.values.kv_events import KvBatch, KvEvent

PAST_BATCHES = 10_000
"""What a publisher answers for; vLLM's default."""
CLOCK_TICK_S = 1e-9
"""Batches of one moment are told apart by their stamps."""


class Telling:
    """The publisher of one engine and its readers.

    Attributes:
        losing: batches get lost on their way to every replica.

    `_past` has the last batches since the engine's start, that of number `_next - 1` last.

    """

    def __init__(
        self,
        name: str,
        fronts: Sequence[Front],
        heap: EventHeap,
        tell: Callable[[Front, Fact], None],
        conditions: Conditions,
        rng: Random,
    ) -> None:
        self.losing = False
        self._name = name
        self._fronts = fronts
        self._heap = heap
        self._tell = tell
        self._conditions = conditions
        self._rng = rng
        self._streams = [SourceStream(replays=True) for _ in fronts]
        self._past: deque[KvBatch] = deque(maxlen=PAST_BATCHES)
        self._next = 0
        self._last_ts = 0.0

    def connected(self) -> None:
        """The engine can be heard: it has just started."""
        for front, stream in zip(self._fronts, self._streams, strict=True):
            self._carry_out(front, stream.connected())

    def disconnected(self) -> None:
        """The engine is gone; the next one counts from 0."""
        self._past.clear()
        self._next = 0
        for front, stream in zip(self._fronts, self._streams, strict=True):
            stream.disconnected()
            self._carry_out(front, Advance())

    def publish(self, events: list[KvEvent]) -> None:
        """Send what has changed in one batch."""
        if not events:
            return
        self._last_ts = max(self._heap.now_s, self._last_ts + CLOCK_TICK_S)
        batch, number = KvBatch(ts=self._last_ts, events=tuple(events)), self._next
        self._past.append(batch)
        self._next += 1
        loss = 1.0 if self.losing else self._conditions.event_loss
        for front in self._fronts:
            if not loss or self._rng.random() >= loss:
                self._heap.at(self._heap.now_s + self._conditions.event_delay_s, self._live, front, number, batch)

    def _live(self, front: Front, number: int, batch: KvBatch) -> None:
        self._carry_out(front, self._streams[front.number].live(number, batch))

    def _answer(self, front: Front, first: int) -> None:
        """The answer to a question for the batches from `first` on has come, whole."""
        stream = self._streams[front.number]
        oldest = self._next - len(self._past)
        for number in range(max(first, oldest), self._next):
            advance = stream.replayed(number, self._past[number - oldest])
            self._carry_out(front, advance)
            if advance.replay_from is not None:
                return
        self._carry_out(front, stream.replay_ended())

    def _carry_out(self, front: Front, advance: Advance) -> None:
        if advance.clear:
            self._tell(front, KvCleared(self._name, 0))
        for batch in advance.batches:
            self._tell(front, KvEvents(self._name, 0, batch.events))
        stream = self._streams[front.number]
        self._tell(front, KvSourceChanged(self._name, 0, stream.state, stream.reason))
        if advance.replay_from is not None:
            answered_s = self._heap.now_s + 2 * self._conditions.event_delay_s
            self._heap.at(answered_s, self._answer, front, advance.replay_from)
