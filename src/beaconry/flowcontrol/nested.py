"""Fairness in two levels: first between configured tenants, then between the flows of one.

A trusted client may name flows within its tenant, as many as it likes, and a new name for each request. They share what is their tenant's
and get no more of it by being many. Flows of no configured tenant stand for themselves.
"""

from collections.abc import Callable

from beaconry.flowcontrol.fairness import FairnessPolicy, FairShare, Flow, LeastAttained, RoundRobin
from beaconry.flowcontrol.ticket import Ticket
from beaconry.values.request import Request


class _Tenant:
    """One with something waiting: what it is among the others, and its own flows."""

    __slots__ = ("flows", "size", "whole")

    def __init__(self, whole: Flow, flows: FairnessPolicy) -> None:
        self.whole = whole
        self.flows = flows
        self.size = 0
        """Flows with something waiting."""


class Nested:
    """A policy between tenants, and one like it within each."""

    def __init__(self, make: Callable[[], FairnessPolicy]) -> None:
        self._make = make
        self._outer = make()
        self._tenants: dict[str, _Tenant] = {}
        """Those with something waiting, by name."""

    def key(self, request: Request) -> str:
        """As the policy says."""
        return self._outer.key(request)

    def enter(self, flow: Flow) -> None:
        """Its tenant has something waiting now, too."""
        if flow.account is None:
            self._outer.enter(flow)
            return
        tenant = self._tenants.get(flow.account)
        if tenant is None:
            tenant = self._tenants[flow.account] = _Tenant(_whole(flow), self._make())
            self._outer.enter(tenant.whole)
        tenant.whole.weight = flow.weight
        tenant.size += 1
        tenant.flows.enter(flow)

    def leave(self, flow: Flow) -> None:
        """Its tenant may have nothing else."""
        if flow.account is None:
            self._outer.leave(flow)
            return
        tenant = self._tenants[flow.account]
        tenant.flows.leave(flow)
        tenant.size -= 1
        if not tenant.size:
            self._outer.leave(tenant.whole)
            del self._tenants[flow.account]

    def pick(self) -> Flow:
        """The tenant's turn, and in it the flow's."""
        flow = self._outer.pick()
        return flow if flow.account is None else self._tenants[flow.account].flows.pick()

    def serve(self, flow: Flow, ticket: Ticket, now_s: float) -> None:
        """Charge both."""
        if flow.account is None:
            self._outer.serve(flow, ticket, now_s)
            return
        tenant = self._tenants[flow.account]
        tenant.flows.serve(flow, ticket, now_s)
        self._outer.serve(tenant.whole, ticket, now_s)

    def settle(self, flow: Flow, ticket: Ticket, tokens: float, now_s: float) -> None:
        """Correct what both have paid; the flow's account is closed when its tenant has had nothing waiting since."""
        if flow.account is None:
            self._outer.settle(flow, ticket, tokens, now_s)
            return
        tenant = self._tenants.get(flow.account)
        if tenant is not None:
            tenant.flows.settle(flow, ticket, tokens, now_s)
        self._outer.settle(_whole(flow) if tenant is None else tenant.whole, ticket, tokens, now_s)


def _whole(flow: Flow) -> Flow:
    """The tenant of a flow, among the others."""
    assert flow.account is not None
    whole = Flow(flow.account)
    whole.account, whole.weight = flow.account, flow.weight
    return whole


def make_fairness(name: str) -> FairnessPolicy:
    """The policy of a configured name. Programs are compared with all others, whosever they are."""
    if name == "least-attained":
        return LeastAttained()
    if name == "round-robin":
        return Nested(RoundRobin)
    return Nested(lambda: FairShare(by_tokens=name == "tokens"))
