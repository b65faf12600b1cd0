"""One publisher's batches, put in order: what may be applied, what must be asked for again, and how much the result can be trusted.

Batches are numbered from 0 since the engine's start. A live one may be lost, but never comes late. The publisher answers for the
last some thousand batches. So, when a live batch has

    the next number          apply it
    a later one              a gap: ask for what is missing, beginning with the last batch that we have
    an earlier one           a duplicate if it is not newer than our last one, by the engine's clock: ignore it
                             else the engine has restarted: forget everything, ask from 0

Asking for the last batch that we have is the proof that the engine is still the same: a restarted one has another batch under
that number, or none. The same question after a reconnect finds a restart before the new engine says anything.

If the answer begins after the gap, the view starts afresh from the answer: blocks may be missing from it then, but none is there
that the engine has dropped. Without an answer we go on with the gap, degraded, until the engine clears its cache or restarts.

Invariants, verified by `check()`: live batches wait only while an answer is awaited, in order, at most `limit`; a source is exact
only while nothing is awaited, unsure or lost.
"""

from math import inf

from msgspec import Struct, structs

from beaconry.values.errors import InternalError
from beaconry.values.kv_events import AllBlocksCleared, KvBatch, SourceState


class Advance(Struct, frozen=True):
    """What follows from a message, to be done in this order."""

    clear: bool = False
    """Forget all blocks of this source."""
    batches: tuple[KvBatch, ...] = ()
    """Apply these."""
    replay_from: int | None = None
    """Ask for the batches from this number on, in place of any answer under way. Tell each with `replayed`, the end with
    `replay_ended` or `replay_failed`."""


NOTHING = Advance()


class StreamStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot for metrics and tests."""

    state: SourceState
    reason: str
    """Why it is not exact; empty if it is."""
    next_sequence: int
    waiting: int
    applied: int
    duplicates: int
    gaps: int
    restarts: int
    replays: int
    """Answers asked for."""
    lost: int
    """Batches that are known to have existed after the first one we saw, and that we have not seen."""


class SourceStream:
    """The order of one source's batches. `state` and `reason` say how well the source is known, and why not better."""

    def __init__(self, *, replays: bool, limit: int = 1024) -> None:
        """`replays`: the publisher answers for past batches. `limit`: live batches kept while an answer is awaited."""
        self.state = SourceState.COLD
        self.reason = ""
        self._replays = replays
        self._limit = limit
        self._next = 0
        """Number of the batch to apply next; 0 also while nothing is known."""
        self._last_ts = 0.0
        """Time stamp of the batch before; meaningless at 0."""
        self._waiting: dict[int, KvBatch] = {}
        """Live batches received while an answer is awaited, by number."""
        self._awaiting = False
        """An answer has been asked for and has not ended."""
        self._anchored = True
        """The answer awaited has shown the batch that we have, or there is none."""
        self._stranger = False
        """There was a disconnect since the engine last proved to be the one that we know."""
        self._progressed = False
        """The answer awaited has held something new."""
        self._in_vain = False
        """A gap was known when the answer was asked for: if it helps nothing, asking again will not either."""
        self._unsure = "nothing heard yet"
        """What a complete answer would tell; empty if nothing."""
        self._lost = ""
        """What no answer will tell any more; empty if nothing."""
        self._counts = dict.fromkeys(("applied", "duplicates", "gaps", "restarts", "replays", "lost"), 0)
        self._settle()

    def connected(self) -> Advance:
        """The publisher can be heard, for the first time or again, or is to be asked again. One that cannot be asked may have restarted."""
        if self._replays:
            return self._ask()
        known = self._next > 0
        self._forget()
        self._settle()
        return Advance(clear=known)

    def disconnected(self) -> None:
        """The publisher is gone, maybe for good. What is known stays until it is back; an answer awaited will not come."""
        self._awaiting = False
        self._waiting.clear()
        self._stranger = self._next > 0
        self._unsure = "disconnected"
        self._settle()

    def live(self, sequence: int, batch: KvBatch) -> Advance:
        """A batch came by subscription."""
        latest = max(self._waiting, default=self._next - 1)
        if sequence <= latest:
            newest_ts = self._waiting[latest].ts if self._waiting else self._last_ts
            if batch.ts <= newest_ts:
                self._counts["duplicates"] += 1
                return NOTHING
            self._counts["restarts"] += 1
            self._forget()
            return structs.replace(self._expect(sequence, batch), clear=True)
        if self._awaiting:
            if len(self._waiting) < self._limit:
                self._waiting[sequence] = batch
            return NOTHING
        return self._expect(sequence, batch)

    def replayed(self, sequence: int, batch: KvBatch) -> Advance:
        """A batch came as part of the answer."""
        if not self._awaiting:
            return NOTHING
        clear = False
        if not self._anchored and sequence >= self._next - 1:
            if sequence == self._next - 1 and batch.ts == self._last_ts:
                self._anchored, self._stranger = True, False
                return NOTHING
            clear = True
            if sequence == self._next - 1:
                return self._replaced()
            self._forget(waiting=False)  # the publisher has forgotten ours: this answer is all that is left
            self._awaiting = self._anchored = True
        if sequence < self._next:
            return NOTHING
        if sequence > self._next:
            if self._progressed:  # a hole within the answer: it came faster than it could be read
                return self._ask()
            self._skip_to(sequence, "the publisher remembers no more")
        self._progressed = True
        self._apply(sequence, batch)
        return Advance(clear, (batch,))

    def replay_ended(self) -> Advance:
        """The answer is complete."""
        if not self._awaiting:
            return NOTHING
        if not self._anchored:
            return self._replaced()
        self._unsure = ""
        return self._resume("the publisher does not send them")

    def replay_failed(self, reason: str) -> Advance:
        """There will be no answer, or not the rest of it; `reason` says why. An engine that may be a new one is taken for one."""
        if not self._awaiting:
            return NOTHING
        clear = self._stranger
        if clear:
            self._forget(waiting=False)
        self._unsure = f"no replay: {reason}"
        self._progressed, self._in_vain = False, True
        return structs.replace(self._resume(self._unsure), clear=clear)

    def statistics(self) -> StreamStatistics:
        """A snapshot."""
        return StreamStatistics(
            state=self.state, reason=self.reason, next_sequence=self._next, waiting=len(self._waiting), **self._counts
        )

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        waiting = list(self._waiting)
        _require(self._awaiting or not waiting, "batches wait for nothing")
        _require(
            waiting == sorted(waiting) and len(waiting) <= self._limit, "the waiting batches are out of order or bounds"
        )
        open_ends = self._awaiting or self._unsure or self._lost
        _require((self.state is SourceState.EXACT) is not bool(open_ends), f"{self.state} with {open_ends!r}")

    def _expect(self, sequence: int, batch: KvBatch) -> Advance:
        """Apply a live batch if it is the next one; else ask for those before it, or do without."""
        if sequence > self._next:
            self._counts["gaps"] += self._next > 0
            if self._replays:
                self._waiting[sequence] = batch
                return self._ask()
            self._skip_to(sequence, "no replay configured")
        if not self._replays or sequence == 0:
            self._unsure = ""
        self._apply(sequence, batch)
        return Advance(batches=(batch,))

    def _ask(self) -> Advance:
        self._awaiting = True
        self._anchored = self._next == 0
        self._progressed = False
        self._in_vain = bool(self._waiting)
        self._counts["replays"] += 1
        self._settle()
        return Advance(replay_from=max(self._next - 1, 0))

    def _replaced(self) -> Advance:
        """A new engine answers. What waits may be its own, so it is kept."""
        self._counts["restarts"] += 1
        self._forget(waiting=False)
        return structs.replace(self._ask(), clear=True)

    def _resume(self, why: str) -> Advance:
        """Go on with what waits; `why` nothing more can be known of a gap before it."""
        self._awaiting = False
        batches: list[KvBatch] = []
        for sequence, batch in list(self._waiting.items()):
            if sequence < self._next or (self._next and batch.ts < self._last_ts):  # older than the answer
                del self._waiting[sequence]
                continue
            if sequence > self._next:
                if self._progressed or not self._in_vain:
                    return structs.replace(self._ask(), batches=tuple(batches))
                self._skip_to(sequence, why)
            del self._waiting[sequence]
            self._apply(sequence, batch)
            batches.append(batch)
        self._settle()
        return Advance(batches=tuple(batches))

    def _skip_to(self, sequence: int, why: str) -> None:
        if self._next:
            self._counts["lost"] += sequence - self._next
            self._lost = f"batches {self._next} to {sequence - 1} are lost: {why}"
        else:
            self._lost = f"nothing is known of the batches before {sequence}: {why}"
        self._next = sequence
        self._last_ts = -inf

    def _apply(self, sequence: int, batch: KvBatch) -> None:
        self._counts["applied"] += 1
        self._next = sequence + 1
        self._last_ts = batch.ts
        if self._lost and AllBlocksCleared in map(type, batch.events):
            self._lost = ""
        self._settle()

    def _forget(self, *, waiting: bool = True) -> None:
        """Know nothing any more; with `waiting` not even what waits."""
        self._next = 0
        self._awaiting = self._stranger = False
        self._unsure = "nothing heard yet"
        self._lost = ""
        if waiting:
            self._waiting.clear()

    def _settle(self) -> None:
        self.reason = "asking for the past" if self._awaiting else self._unsure or self._lost
        if not self.reason:
            self.state = SourceState.EXACT
        else:
            self.state = SourceState.DEGRADED if self._next else SourceState.COLD


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InternalError(f"KV-event stream: {what}")
