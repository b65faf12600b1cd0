"""Requests of one priority: flows, taken in turn by a fairness policy, each in its own order."""

from math import log2

from beaconry.config.flow import BandConfig
from beaconry.flowcontrol.fairness import Flow
from beaconry.flowcontrol.nested import make_fairness
from beaconry.flowcontrol.room import Room
from beaconry.flowcontrol.ticket import Ticket
from beaconry.values.errors import InternalError

NEVER = float("inf")


class Band:
    """One band of one lane.

    Invariants (`check`): `flows` are those with something waiting; `room` sums up over them; each flow is filed
    in `_by_size` under its size, and nothing is filed above `_largest`.
    """

    def __init__(self, config: BandConfig, ttl_s: float) -> None:
        self.config = config
        self.ttl_s = config.ttl_s if config.ttl_s is not None else ttl_s
        self.flows: dict[str, Flow] = {}
        self.room = Room(config)
        self._fairness = make_fairness(config.fairness)
        self._by_size: list[dict[str, Flow]] = [{}]
        self._largest = 0

    @property
    def priority(self) -> int:
        """Higher goes first."""
        return self.config.priority

    def flow_of(self, ticket: Ticket) -> Flow | None:
        """The flow that the ticket belongs to, if something waits there."""
        return self.flows.get(self._fairness.key(ticket.request))

    def push(self, ticket: Ticket) -> None:
        """Let one wait."""
        key = self._fairness.key(ticket.request)
        flow = self.flows.get(key)
        fresh = flow is None
        if flow is None:
            flow = self.flows[key] = Flow(key)
            flow.account = ticket.request.account
        flow.weight = max(ticket.request.weight, 1e-3)
        ticket.flow = flow
        ticket.waiting = True
        flow.order.push(self._order(ticket), ticket)
        flow.newest.append(ticket)
        self._count(flow, ticket, 1)
        if fresh:
            self._fairness.enter(flow)

    def head(self) -> Ticket:
        """Whose turn it is; there is at least one."""
        ticket = self._fairness.pick().order.first()
        assert ticket is not None
        return ticket

    def serve(self, ticket: Ticket, now_s: float) -> None:
        """One is dispatched."""
        flow = ticket.flow
        assert flow is not None
        self._fairness.serve(flow, ticket, now_s)
        self.remove(ticket)

    def remove(self, ticket: Ticket) -> None:
        """One does not wait any longer."""
        flow = ticket.flow
        assert flow is not None
        ticket.waiting = False
        flow.order.left()
        self._count(flow, ticket, -1)
        if len(flow.newest) > 2 * flow.size + 16:
            flow.newest = [one for one in flow.newest if one.waiting]
        if not flow.size:
            del self.flows[flow.key]
            self._fairness.leave(flow)

    def settle(self, ticket: Ticket, tokens: float, now_s: float) -> None:
        """A dispatched request has ended and took so many tokens."""
        if ticket.flow is not None:
            self._fairness.settle(ticket.flow, ticket, tokens, now_s)

    def newest_of_largest(self) -> Ticket:
        """The latest arrival of the flow that has most waiting for its weight: who has to go if one has to."""
        flow = next(iter(self._by_size[self._largest].values()))
        while not flow.newest[-1].waiting:
            flow.newest.pop()
        return flow.newest[-1]

    def turns_before(self, ticket: Ticket) -> int:
        """Requests of this band that go before one that would join the end of its flow, were all flows of equal weight and great length."""
        flow = self.flow_of(ticket)
        own = 0 if flow is None else flow.size
        others = len(self.flows) - (flow is not None)
        return min(self.room.requests, own + (own + 1) * others)

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        waiting = {key: [t for t in flow.newest if t.waiting] for key, flow in self.flows.items()}
        tickets = [ticket for group in waiting.values() for ticket in group]
        sums = (
            len(tickets),
            sum(t.request.prompt_tokens for t in tickets),
            sum(t.request.prompt_bytes for t in tickets),
        )
        if sums != self.room.sums:
            raise InternalError(f"band {self.priority}: {sums} wait, {self.room.sums} are counted")
        for key, flow in self.flows.items():
            if not flow.size or flow.size != len(waiting[key]) or flow.size != len(flow.order):
                raise InternalError(f"band {self.priority}: flow {key} counts {flow.size}, has {len(waiting[key])}")
            if self._by_size[flow.bucket].get(key) is not flow or flow.bucket != _bucket(flow):
                raise InternalError(f"band {self.priority}: flow {key} of {flow.size} is not filed under its size")
        if any(self._by_size[self._largest + 1 :]) or sum(map(len, self._by_size)) != len(self.flows):
            raise InternalError(f"band {self.priority}: the largest flow is not known")

    def _order(self, ticket: Ticket) -> float:
        request = ticket.request
        match self.config.ordering:
            case "edf":
                return ticket.expires_s
            case "slo":
                return NEVER if request.slo_ttft_s is None else request.arrived_s + request.slo_ttft_s
            case _:
                return 0.0  # equal keys go in order of arrival

    def _count(self, flow: Flow, ticket: Ticket, sign: int) -> None:
        self.room.add(ticket.request, sign)
        self._by_size[flow.bucket].pop(flow.key, None)
        flow.size += sign
        flow.bucket = bucket = _bucket(flow)
        if flow.size:
            while len(self._by_size) <= bucket:
                self._by_size.append({})
            self._by_size[bucket][flow.key] = flow
            self._largest = max(self._largest, bucket)
        while self._largest and not self._by_size[self._largest]:
            self._largest -= 1


def _bucket(flow: Flow) -> int:
    """Steps of a twelfth, so that few buckets are enough for any size and weight."""
    return int(8 * log2(1 + flow.size / flow.weight))
