"""The driver's records: a router replica, a planned request under way, and a leg of it. They have no behaviour of their own."""

from msgspec import Struct

from beaconry.engine_model.sequence import Content, Sequence
from beaconry.router.effects import StartLeg
from beaconry.router.router import Router
from beaconry.sim.host import Host
from beaconry.sim.prompt import block_hashes
from beaconry.values.request import Usage
from beaconry.values.stage import Stage
from beaconry.workload.ideal import prompt_spans
from beaconry.workload.request import PlannedRequest, Span
from beaconry.workload.sample import Sample


class Front:
    """One router replica.

    `legs` has its open legs by number, `flights` the requests it has not answered, by the ids it knows, `leaving` those whose client has
    gone, which it does not know yet.
    """

    __slots__ = ("flights", "leaving", "legs", "number", "router")

    def __init__(self, number: int, router: Router) -> None:
        self.number = number
        self.router = router
        self.legs: dict[int, Leg] = {}
        self.flights: dict[str, Flight] = {}
        self.leaving: dict[str, Flight] = {}

    def flight(self, request_id: str) -> "Flight":
        """A request that the router works on."""
        return self.flights.get(request_id) or self.leaving[request_id]


class Kept(Struct, frozen=True):
    """What a prefill leg leaves behind: in production, the transfer parameters of its answer."""

    host: Host
    sequence_id: str
    cached_tokens: int
    """Of the prompt, those that were in the prefill engine's cache."""

    @property
    def there(self) -> bool:
        """Whether the KV can still be fetched."""
        return self.sequence_id in self.host.engine.holdings


class Leg:
    """A leg as the driver knows it.

    Attributes:
        priority: what its engine is told; lower is more urgent.
        kept: where a decode leg finds its prompt's KV.
        open: neither ended nor cancelled.

    """

    __slots__ = ("flight", "front", "host", "kept", "number", "open", "priority", "sequence_id", "stage")

    def __init__(self, front: Front, flight: "Flight", host: Host, start: StartLeg) -> None:
        self.front = front
        self.number = start.leg
        self.flight = flight
        self.host = host
        self.stage = start.stage
        self.priority = start.priority or 0
        self.kept = flight.kept if start.stage is Stage.DECODE else None
        self.sequence_id = f"{front.number}.{start.leg}"
        self.open = True

    def sequence(self) -> Sequence:
        """What its engine has to do."""
        planned = self.flight.planned
        return Sequence(
            self.sequence_id,
            self.flight.prompt_tokens,
            1 if self.stage is Stage.PREFILL else planned.output_tokens,
            Content(hashes=self.flight.hashes(self.host.engine.settings.block_tokens)),
            priority=self.priority,
            stage=self.stage,
        )


class Flight:
    """A planned request under way, and what has come of it.

    Attributes:
        planned: what the plan asked for.
        prompt_tokens: of it, which sums them up whenever it is asked.
        front: the router replica that the client talks to.
        sent_s: when the first attempt was sent.
        attempt: retries by the client so far.
        first_s: when the first content reached the client; None before.
        endpoint: where its latest leg runs or ran; "" before.
        kept: the prompt's KV that the latest prefill leg has left behind.
        open: not ended yet.

    `_hashes` has the block hashes of prompt and reply, by block size, once asked for.
    """

    __slots__ = (
        "_hashes",
        "attempt",
        "endpoint",
        "first_s",
        "front",
        "kept",
        "open",
        "planned",
        "prompt_tokens",
        "sent_s",
    )

    def __init__(self, planned: PlannedRequest, front: Front, sent_s: float) -> None:
        self.planned = planned
        self.prompt_tokens = planned.prompt_tokens
        self.front = front
        self.sent_s = sent_s
        self.attempt = 0
        self.first_s: float | None = None
        self.endpoint = ""
        self.kept: Kept | None = None
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
            planned_prompt_tokens=self.prompt_tokens,
            planned_output_tokens=planned.output_tokens,
            ideal_cached_tokens=planned.ideal_cached_tokens,
            error=error,
            endpoint=self.endpoint or None,
            session=planned.session,
            turn=planned.turn,
        )


def usage_of(leg: Leg, sequence: Sequence) -> Usage:
    """What a leg's answer says at its end. A decode engine reports as cached what the prefill engine had in its cache, as vLLM does."""
    return Usage(
        prompt_tokens=sequence.prompt_tokens,
        completion_tokens=sequence.output_tokens,
        cached_tokens=sequence.cached_tokens if leg.kept is None else leg.kept.cached_tokens,
    )
