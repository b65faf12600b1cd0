"""Requests of one priority: flows, taken in turn by a fairness policy, each in its own order."""

from beaconry.config.flow import BandConfig
from beaconry.flowcontrol.estimate import Estimate
from beaconry.flowcontrol.fairness import Flow
from beaconry.flowcontrol.nested import make_fairness
from beaconry.flowcontrol.room import Room
from beaconry.flowcontrol.sizes import Share, Sizes, has_more
from beaconry.flowcontrol.ticket import Ticket
from beaconry.values.errors import InternalError

NEVER = float("inf")


class Band:
    """One band of one lane.

    Invariants (`check`): `flows` are those with something waiting, and `_shares` their tenants'; `room` sums up over either.
    """

    def __init__(self, config: BandConfig, ttl_s: float) -> None:
        self.config = config
        self.ttl_s = config.ttl_s if config.ttl_s is not None else ttl_s
        self.flows: dict[str, Flow] = {}
        self.room = Room(config)
        self._fairness = make_fairness(config.fairness)
        self._estimate = Estimate()
        self._shares: dict[str, Share] = {}
        self._sizes: Sizes[Share] = Sizes()

    @property
    def priority(self) -> int:
        """Higher goes first."""
        return self.config.priority

    def push(self, ticket: Ticket, *, again: bool = False) -> None:
        """Let one wait; `again`: it has come before all others of its flow that do."""
        key = self._fairness.key(ticket.request)
        flow = self.flows.get(key)
        fresh = flow is None
        if flow is None:
            flow = self.flows[key] = Flow(key)
            flow.account = ticket.request.account
        flow.weight = _weight(ticket)
        ticket.flow = flow
        ticket.waiting = True
        flow.order.push(self._order(ticket), ticket)
        flow.newest.insert(0 if again else len(flow.newest), ticket)
        self._count(flow, ticket, 1)
        if fresh:
            self._fairness.enter(flow)

    def head(self) -> Ticket:
        """Whose turn it is; there is at least one."""
        ticket = self._fairness.pick().order.first()
        assert ticket is not None
        return ticket

    def serve(self, ticket: Ticket, now_s: float) -> None:
        """One is dispatched. What was charged when it was first need not be paid again."""
        flow = ticket.flow
        assert flow is not None
        if not ticket.charged:
            self._fairness.serve(flow, ticket, now_s)
        self.remove(ticket)
        self.expect(ticket, ticket.tokens, now_s)

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

    def expect(self, ticket: Ticket, tokens: float, now_s: float) -> None:
        """A dispatched request is likely to take so many tokens."""
        ticket.expected = tokens
        self._charge(ticket, tokens * self._estimate.factor, now_s)

    def settle(self, ticket: Ticket, tokens: float, now_s: float) -> None:
        """A dispatched request has ended and took so many tokens; 0 if none of it was served."""
        if tokens and ticket.expected:
            self._estimate.note(ticket.expected, tokens)
        self._charge(ticket, tokens, now_s)

    def newest_of_largest(self) -> Ticket:
        """Who has to go if one has to: of the tenant that has most waiting for its weight, of its largest flow, the latest arrival."""
        flow = self._sizes.largest().flows.largest()
        while not flow.newest[-1].waiting:
            flow.newest.pop()
        return flow.newest[-1]

    def gives_way(self, victim: Ticket, ticket: Ticket) -> bool:
        """The victim's tenant has more waiting than the other one would have; or its flow, if they are of one tenant."""
        theirs = victim.flow
        assert theirs is not None
        key, weight = self._fairness.key(ticket.request), _weight(ticket)
        tenant = _tenant(key, ticket.request.account)
        their_tenant = _tenant(theirs.key, theirs.account)
        if tenant != their_tenant:
            return has_more(self._shares[their_tenant], self._shares.get(tenant), weight)
        return theirs.key != key and has_more(theirs, self.flows.get(key), weight)

    def turns_before(self, ticket: Ticket) -> int:
        """Requests of this band that go before one that would join the end of its flow, were all tenants, and in each all flows, of equal
        weight and great length."""
        key = self._fairness.key(ticket.request)
        flow, share = self.flows.get(key), self._shares.get(_tenant(key, ticket.request.account))
        own = 0 if flow is None else flow.size
        if share is not None:
            own = min(share.size, own + (own + 1) * (len(share.flows) - (flow is not None)))
        others = len(self._shares) - (share is not None)
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
        self._sizes.check()
        for share in self._shares.values():
            share.flows.check()
        if (
            len(self._sizes) != len(self._shares)
            or sum(share.size for share in self._shares.values()) != len(tickets)
            or sum(len(share.flows) for share in self._shares.values()) != len(self.flows)
        ):
            raise InternalError(f"band {self.priority}: what waits is not counted to its tenants")

    def _charge(self, ticket: Ticket, tokens: float, now_s: float) -> None:
        """Instead of what it was charged so far."""
        if ticket.flow is not None and tokens != ticket.charged:
            self._fairness.settle(ticket.flow, ticket, tokens, now_s)
            ticket.charged = tokens

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
        tenant = _tenant(flow.key, flow.account)
        share = self._shares.get(tenant)
        if share is None:
            share = self._shares[tenant] = Share(tenant)
        share.weight = flow.weight
        share.flows.count(flow, sign)
        self._sizes.count(share, sign)
        if not share.size:
            del self._shares[tenant]


def _tenant(flow: str, account: str | None) -> str:
    """Whose a flow is: a configured tenant's, else its own."""
    return flow if account is None else account


def _weight(ticket: Ticket) -> float:
    return max(ticket.request.weight, 1e-3)
