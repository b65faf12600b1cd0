"""The order in which an engine admits sequences: that of their submission, those that were preempted first; or by priority.

By priority, equal ones are in the order of their submission, and preempting changes nothing about it. Source: vLLM 0.32,
`v1/core/sched/request_queue.py`.
"""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from beaconry.engine_model.sequence import Phase, Sequence


class WaitingQueue:
    """Waiting sequences, most urgent first.

    `_heap` holds (*rank, sequence); an entry whose serial is in `_dropped` was discarded and counts for nothing.
    """

    def __init__(self, *, by_priority: bool) -> None:
        self.by_priority = by_priority
        self._heap: list[tuple[int, int, Sequence]] = []
        self._dropped: set[int] = set()

    def __len__(self) -> int:
        return len(self._heap) - len(self._dropped)

    def rank(self, sequence: Sequence) -> tuple[int, int]:
        """Who has the lower one goes first."""
        return sequence.priority if self.by_priority else 0, sequence.serial

    def push(self, sequence: Sequence) -> None:
        """Add a sequence, new or preempted."""
        sequence.phase = Phase.WAITING
        heappush(self._heap, (*self.rank(sequence), sequence))

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
        other = WaitingQueue(by_priority=self.by_priority)
        other._heap = [(p, n, twins[s.id]) for p, n, s in self._heap if n not in self._dropped]
        heapify(other._heap)
        return other
