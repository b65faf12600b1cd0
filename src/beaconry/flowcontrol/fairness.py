"""Which flow of a band goes next. A flow is one tenant's requests, or one agent program's.

- `tokens`, `requests`: start-time fair queueing (Goyal et al., 1996). Each flow has a tag, the service it has had over its weight; the
  least goes next. A flow that comes back from idleness starts at the band's own tag, so it neither saves up what it did not use nor pays
  for what nobody else wanted. Backlogged flows differ by at most one request each.
- `least-attained`: the tag never starts anew, but all service counts for half after a minute: short programs pass long ones (PLAS, Autellix
  2025). Each fifth turn goes to the flow that has waited longest for one, so that new programs cannot starve an old one.
- `round-robin`: one request each in turn.

What a request costs is estimated at dispatch, and corrected once it is known what is cached and at its end, so nobody gains by lying about
its length. What is returned then lowers the band's tag too: those that come back would else begin behind all others.
"""

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Protocol

from beaconry.flowcontrol.ticket import Ticket, TicketHeap
from beaconry.values.request import Request

IDLE_FLOWS = 4096
"""Flows remembered while they wait for nothing, per band; who comes after longer starts afresh."""
HALF_LIFE_S = 60.0
"""Of attained service; llm-d's program-aware fairness takes the same."""
EVERY_TURN = 5
"""llm-d weighs waiting with a fifth."""


class Flow:
    """The waiting requests of one tenant or program in one band."""

    __slots__ = ("account", "bucket", "key", "newest", "order", "size", "tag", "weight")

    def __init__(self, key: str) -> None:
        self.key = key
        self.account: str | None = None
        """The configured tenant it belongs to, if there is one."""
        self.weight = 1.0
        self.tag = 0.0
        """Service so far over weight, in the policy's own measure."""
        self.order = TicketHeap()
        """Next first."""
        self.newest: list[Ticket] = []
        """In order of arrival; at most half of them no longer wait."""
        self.size = 0
        """Requests that wait."""
        self.bucket = 0
        """Where its band has filed it by size."""


class FairnessPolicy(Protocol):
    """Chooses among the flows that have something waiting."""

    def key(self, request: Request) -> str:
        """The flow that a request belongs to."""
        ...

    def enter(self, flow: Flow) -> None:
        """It has something waiting now."""
        ...

    def leave(self, flow: Flow) -> None:
        """It has no longer."""
        ...

    def pick(self) -> Flow:
        """Whose turn it is; there is at least one."""
        ...

    def serve(self, flow: Flow, ticket: Ticket, now_s: float) -> None:
        """One of its requests is dispatched."""
        ...

    def settle(self, flow: Flow, ticket: Ticket, tokens: float, now_s: float) -> None:
        """That request took so many tokens, or is going to: charge it that, instead of what it was charged so far."""
        ...


class RoundRobin:
    """One request each in turn."""

    def __init__(self) -> None:
        self._ring: OrderedDict[str, Flow] = OrderedDict()
        """Flows with something waiting, next first."""

    def key(self, request: Request) -> str:
        """By tenant."""
        return request.tenant

    def enter(self, flow: Flow) -> None:
        """Join at the end."""
        self._ring[flow.key] = flow

    def leave(self, flow: Flow) -> None:
        """Out of the ring."""
        self._ring.pop(flow.key, None)

    def pick(self) -> Flow:
        """The first in the ring."""
        return next(iter(self._ring.values()))

    def serve(self, flow: Flow, ticket: Ticket, now_s: float) -> None:  # noqa: ARG002
        """Back to the end."""
        if flow.key in self._ring:
            self._ring.move_to_end(flow.key)

    def settle(self, flow: Flow, ticket: Ticket, tokens: float, now_s: float) -> None:
        """Turns have no size."""


class _Tags:
    """Flows by tag, least first, and the tags of some that have nothing waiting."""

    def __init__(self) -> None:
        self.active: dict[str, Flow] = {}
        """Flows with something waiting."""
        self._heap: list[tuple[float, int, Flow]] = []
        """An entry is void if the flow's tag has changed since, or it is not active."""
        self._pushes = 0
        self._idle: OrderedDict[str, float] = OrderedDict()
        """Latest last."""

    def enter(self, flow: Flow, least: float) -> None:
        """Take it in with the tag remembered, or with `least` if that is more."""
        flow.tag = max(self._idle.pop(flow.key, least), least)
        self.active[flow.key] = flow
        self._push(flow)

    def leave(self, flow: Flow, least: float) -> None:
        """Remember a tag above `least` only."""
        del self.active[flow.key]
        self._remember(flow.key, flow.tag, least)

    def first(self) -> Flow:
        """The active flow with the least tag."""
        heap = self._heap
        while True:
            tag, _, flow = heap[0]
            if flow.tag == tag and self.active.get(flow.key) is flow:
                return flow
            heappop(heap)

    def add(self, key: str, cost: float, least: float) -> None:
        """Raise (or lower) a tag, of an active flow or of one that waits for nothing."""
        flow = self.active.get(key)
        if flow is None:
            self._remember(key, self._idle.get(key, least) + cost, least)
        else:
            flow.tag += cost
            self._push(flow)

    def scale(self, factor: float) -> None:
        """Multiply all tags."""
        for flow in self.active.values():
            flow.tag *= factor
        for key in self._idle:
            self._idle[key] *= factor
        self._rebuild()

    def _push(self, flow: Flow) -> None:
        self._pushes += 1
        heappush(self._heap, (flow.tag, self._pushes, flow))
        if len(self._heap) > 2 * len(self.active) + 64:
            self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [(flow.tag, number, flow) for number, flow in enumerate(self.active.values())]
        self._pushes = len(self._heap)
        heapify(self._heap)

    def _remember(self, key: str, tag: float, least: float) -> None:
        self._idle.pop(key, None)
        if tag > least:
            self._idle[key] = tag
            if len(self._idle) > IDLE_FLOWS:
                self._idle.popitem(last=False)


class FairShare:
    """Equal tags: service over weight, in requests or in tokens."""

    def __init__(self, *, by_tokens: bool) -> None:
        self._by_tokens = by_tokens
        self._tags = _Tags()
        self._least = 0.0
        """Where those begin that come back: the tag at which a flow was served last, or the least if that has fallen since."""

    def key(self, request: Request) -> str:
        """By tenant."""
        return request.tenant

    def enter(self, flow: Flow) -> None:
        """Begin at the band's tag, or at its own if it is ahead."""
        self._tags.enter(flow, self._least)

    def leave(self, flow: Flow) -> None:
        """Remember what it is ahead by."""
        self._tags.leave(flow, self._least)

    def pick(self) -> Flow:
        """The least tag."""
        return self._tags.first()

    def serve(self, flow: Flow, ticket: Ticket, now_s: float) -> None:  # noqa: ARG002
        """Charge it."""
        self._least = flow.tag
        ticket.charged = ticket.tokens if self._by_tokens else 1.0
        self._tags.add(flow.key, ticket.charged / flow.weight, self._least)

    def settle(self, flow: Flow, ticket: Ticket, tokens: float, now_s: float) -> None:  # noqa: ARG002
        """Charge the difference."""
        if self._by_tokens:
            self._tags.add(flow.key, (tokens - ticket.charged) / flow.weight, self._least)
            if self._tags.active:
                self._least = min(self._least, self._tags.first().tag)


class LeastAttained:
    """Who has had the least so far, with service counting half after `HALF_LIFE_S`.

    Instead of shrinking what was, what comes counts for more: only the order matters, and that of idle flows never changes. Tags are scaled
    back before they overflow.
    """

    def __init__(self) -> None:
        self._tags = _Tags()
        self._ring = RoundRobin()
        """The same flows."""
        self._since_s = 0.0
        """When a token counted for one."""
        self._turn = 0

    def key(self, request: Request) -> str:
        """By program, those without one by tenant."""
        return f"tenant {request.tenant}" if request.program is None else f"program {request.program}"

    def enter(self, flow: Flow) -> None:
        """With what it has had."""
        self._tags.enter(flow, 0.0)
        self._ring.enter(flow)

    def leave(self, flow: Flow) -> None:
        """Remember what it has had."""
        self._tags.leave(flow, 0.0)
        self._ring.leave(flow)

    def pick(self) -> Flow:
        """The least, each fifth turn the one that has waited longest for a turn."""
        return self._ring.pick() if self._turn % EVERY_TURN == EVERY_TURN - 1 else self._tags.first()

    def serve(self, flow: Flow, ticket: Ticket, now_s: float) -> None:
        """Charge it."""
        self._turn += 1
        self._ring.serve(flow, ticket, now_s)
        ticket.charged = ticket.tokens
        ticket.served_s = now_s
        self._charge(flow.key, ticket.tokens, now_s)

    def settle(self, flow: Flow, ticket: Ticket, tokens: float, now_s: float) -> None:  # noqa: ARG002
        """Charge the difference as of the dispatch: by now a token counts for more, and more than was charged would be returned."""
        self._charge(flow.key, tokens - ticket.charged, ticket.served_s)

    def _charge(self, key: str, tokens: float, now_s: float) -> None:
        if now_s - self._since_s > 100 * HALF_LIFE_S:
            self._tags.scale(2.0 ** max((self._since_s - now_s) / HALF_LIFE_S, -1000.0))
            self._since_s = now_s
        self._tags.add(key, tokens * 2.0 ** ((now_s - self._since_s) / HALF_LIFE_S), 0.0)
