"""A request's place in the queue, and heaps of them from which any may leave at any time."""

from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from beaconry.values.request import Request

if TYPE_CHECKING:
    from beaconry.flowcontrol.band import Band
    from beaconry.flowcontrol.fairness import Flow


OUTPUT_WORTH = 2.0
"""What a generated token costs against a computed one of the prompt; llm-d's program-aware fairness takes the same."""


def work(prompt_tokens: float, output_tokens: float) -> float:
    """What a request takes of an engine, in tokens of its prompt."""
    return prompt_tokens + OUTPUT_WORTH * output_tokens


class Why(StrEnum):
    """What a request waits for."""

    NOTHING = ""
    """It need not wait."""
    CAPACITY = "capacity"
    """Every engine has as much as it can use."""
    CEILING = "ceiling"
    """There is room, but not for its band."""
    TURN = "turn"
    """Others go first."""
    RECALLED = "recalled"
    """It had been sent, and has given way to a higher band."""
    ENDPOINT = "endpoint"
    """No engine serves the model."""


class Ticket:
    """One request that waits or has waited. A record, changed by this package only."""

    __slots__ = (
        "band",
        "charged",
        "expected",
        "expires_s",
        "flow",
        "lane",
        "number",
        "queued_s",
        "request",
        "served_s",
        "tokens",
        "waiting",
        "why",
    )

    def __init__(self, request: Request, number: int, tokens: float, lane: str, band: "Band") -> None:
        self.request = request
        self.lane = lane
        self.number = number
        """Order of arrival."""
        self.tokens = tokens
        """The expected `work`, were nothing of its prompt cached."""
        self.band = band
        self.flow: Flow | None = None
        """Where it is or was queued; None until then."""
        self.waiting = False
        self.queued_s = 0.0
        """When it was queued, then for how long."""
        self.expires_s = 0.0
        self.charged = 0.0
        """What its flow has paid for it so far."""
        self.expected = 0.0
        """The `work` that was expected of it when it was dispatched last; 0 before."""
        self.served_s = 0.0
        """When that was, where it matters."""
        self.why = Why.NOTHING


class TicketHeap:
    """Tickets by a key, least first. Those that no longer wait are passed over, and swept out once they are the majority."""

    __slots__ = ("_heap", "_live")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Ticket]] = []
        self._live = 0
        """Tickets in the heap that wait, as far as `left` was told."""

    def push(self, key: float, ticket: Ticket) -> None:
        """Add one that waits."""
        heappush(self._heap, (key, ticket.number, ticket))
        self._live += 1

    def left(self) -> None:
        """One of them has ceased to wait."""
        self._live -= 1
        if len(self._heap) > 2 * self._live + 16:
            self._heap = [entry for entry in self._heap if entry[2].waiting]
            heapify(self._heap)

    def first(self) -> Ticket | None:
        """The one with the least key."""
        heap = self._heap
        while heap:
            if heap[0][2].waiting:
                return heap[0][2]
            heappop(heap)
        return None

    def least(self) -> float | None:
        """Its key."""
        return None if self.first() is None else self._heap[0][0]

    def tickets(self) -> list[Ticket]:
        """All that wait, in no order."""
        return [entry[2] for entry in self._heap if entry[2].waiting]

    def __len__(self) -> int:
        return self._live
