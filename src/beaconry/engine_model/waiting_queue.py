"""The order in which an engine admits sequences: by priority, then by submission; preempted ones, the last of them first, before others."""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from beaconry.engine_model.sequence import Phase, Sequence


class WaitingQueue:
    """Waiting sequences, most urgent first.

    `_heap` holds (priority, serial, sequence); an entry whose serial is in `_dropped` was discarded and counts for nothing.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Sequence]] = []
        self._dropped: set[int] = set()

    def __len__(self) -> int:
        return len(self._heap) - len(self._dropped)

    def push(self, sequence: Sequence) -> None:
        """Add a sequence, new or preempted."""
        sequence.phase = Phase.WAITING
        heappush(self._heap, (sequence.priority, sequence.serial, sequence))

    def first(self) -> Sequence | None:
        """Return the most urgent sequence without taking it; None if nobody waits."""
        while self._heap and self._heap[0][1] in self._dropped:
            self._dropped.remove(heappop(self._heap)[1])
        return self._heap[0][2] if self._heap else None

    def pop(self) -> None:
        """Take out the sequence that `first` has just returned."""
        heappop(self._heap)

    def discard(self, sequence: Sequence) -> None:
        """Drop a waiting sequence, wherever it stands."""
        self._dropped.add(sequence.serial)

    def copy(self, twins: Mapping[str, Sequence]) -> "WaitingQueue":
        """Return a queue with the twins, by id, of the sequences that wait here."""
        other = WaitingQueue()
        other._heap = [(p, n, twins[s.id]) for p, n, s in self._heap if n not in self._dropped]
        heapify(other._heap)
        return other
