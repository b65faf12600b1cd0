"""The driver's records: a router replica, a planned request under way, and a leg of it. They have no behaviour of their own."""

from beaconry.router.router import Router
from beaconry.sim.host import Host
from beaconry.sim.prompt import block_hashes
from beaconry.values.request import Usage
from beaconry.workload.ideal import prompt_spans
from beaconry.workload.request import PlannedRequest, Span
from beaconry.workload.sample import Sample


class Front:
    """One router replica. `legs` has its open legs by number, `flights` the requests it has not answered, by the ids it knows."""

    __slots__ = ("flights", "legs", "number", "router")

    def __init__(self, number: int, router: Router) -> None:
        self.number = number
        self.router = router
        self.legs: dict[int, Leg] = {}
        self.flights: dict[str, Flight] = {}


class Leg:
    """A leg as the driver knows it. `open`: neither ended nor cancelled."""

    __slots__ = ("flight", "front", "host", "number", "open", "sequence_id")

    def __init__(self, front: Front, number: int, flight: "Flight", host: Host) -> None:
        self.front = front
        self.number = number
        self.flight = flight
        self.host = host
        self.sequence_id = f"{front.number}.{number}"
        self.open = True


class Flight:
    """A planned request under way, and what has come of it.

    Attributes:
        planned: what the plan asked for.
        front: the router replica that the client talks to.
        sent_s: when the first attempt was sent.
        attempt: retries by the client so far.
        first_s: when the first content reached the client; None before.
        endpoint: where its latest leg runs or ran; "" before.
        open: not ended yet.

    `_hashes` has the block hashes of prompt and reply, by block size, once asked for.
    """

    __slots__ = ("_hashes", "attempt", "endpoint", "first_s", "front", "open", "planned", "sent_s")

    def __init__(self, planned: PlannedRequest, front: Front, sent_s: float) -> None:
        self.planned = planned
        self.front = front
        self.sent_s = sent_s
        self.attempt = 0
        self.first_s: float | None = None
        self.endpoint = ""
        self.open = True
        self._hashes: dict[int, list[int]] = {}

    def hashes(self, block_tokens: int) -> list[int]:
        """Block hashes of the prompt with its reply."""
        found = self._hashes.get(block_tokens)
        if found is None:
            planned = self.planned
            spans = (*prompt_spans(planned), Span(id=planned.reply_id, tokens=planned.output_tokens))
            found = self._hashes[block_tokens] = block_hashes(spans, block_tokens)
        return found

    @property
    def request_id(self) -> str:
        """What the router calls the present attempt."""
        return f"{self.planned.index}~{self.attempt}" if self.attempt else str(self.planned.index)

    def sample(self, end_s: float, error: str | None, usage: Usage | None) -> Sample:
        """What is written down of it. `usage` is None unless it succeeded."""
        planned = self.planned
        return Sample(
            index=planned.index,
            planned_s=planned.at_s,
            sent_s=self.sent_s,
            first_s=self.first_s,
            end_s=end_s,
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            output_tokens=usage.completion_tokens if usage else None,
            planned_prompt_tokens=planned.prompt_tokens,
            planned_output_tokens=planned.output_tokens,
            ideal_cached_tokens=planned.ideal_cached_tokens,
            error=error,
            endpoint=self.endpoint or None,
            session=planned.session,
            turn=planned.turn,
        )
