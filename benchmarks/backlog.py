"""What each tenant got while every one of them had something waiting.

Fairness is for those that want more than they get: a tenant with nothing in the queue may get less than the others because it asked for
less. So only *intervals* count in which all compared tenants are backlogged: each has at least one request waiting in the band. A tenant's
service is what the engines really computed for its requests that were dispatched in them, in the unit of the band's own fairness
(`flowcontrol.ticket.work`: prompt tokens that were not cached, and two for each generated one), all of it at the moment of dispatch,
because that is when the queue decides. The dispatch that leaves a tenant with nothing waiting still belongs to the interval.

At the ends of an interval a tenant may be ahead or behind by one request. Intervals in which all together got less than `LEAST` requests
each of the largest size that there was say nothing and are left out; `Shares.covered` tells how much time is left.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from beaconry.flowcontrol.ticket import work
from beaconry.router.effects import CancelLeg, Effect, Ended, StartLeg
from beaconry.router.facts import Fact, LegFinished, RequestArrived
from beaconry.router.router import Router

LEAST = 10
"""Largest requests per tenant: where one of three is ahead by one and another one behind, Jain's index is still 0.993."""


class Shares(Struct, frozen=True, kw_only=True):
    """What tenants got side by side."""

    work: dict[str, float]
    """Tokens, by tenant, over all intervals that count."""
    jain: float | None
    """Jain's index of those: 1 if all are equal, 1/n if one has all. None if no interval counts."""
    backlogged: float
    """Share of the time in which all had something waiting."""
    covered: float
    """Share of the time in intervals that count."""


class _Interval(Struct):
    """Time in which all were backlogged, and who was dispatched."""

    since_s: float
    until_s: float
    dispatched: list[tuple[str, str]]
    """Tenant and request."""


class Backlog:
    """Follows what waits in one band. Facts come in the order in which they happened.

    Invariant: an interval is open (`_open`) exactly while each of the tenants has something waiting.
    """

    def __init__(self, tenants: Sequence[str], since_s: float, until_s: float) -> None:
        """What is before and after is followed, but not counted."""
        self._since_s, self._until_s = since_s, until_s
        self._waiting: dict[str, set[str]] = {tenant: set() for tenant in tenants}
        self._work: dict[str, float] = {}
        """Of requests that have ended."""
        self._of: dict[str, _Interval] = {}
        """Where a request was dispatched last."""
        self._open: _Interval | None = None
        self._intervals: list[_Interval] = []

    def waits(self, tenant: str, request: str, now_s: float) -> None:
        """A request has joined the queue."""
        self._waiting[tenant].add(request)
        if self._open is None and all(self._waiting.values()):
            self._open = _Interval(since_s=now_s, until_s=now_s, dispatched=[])

    def dispatched(self, tenant: str, request: str, now_s: float) -> None:
        """It goes to an engine: out of the queue, if it was there."""
        if self._open is not None and self._since_s <= now_s < self._until_s:
            self._open.dispatched.append((tenant, request))
            self._of[request] = self._open
        self.left(tenant, request, now_s)

    def returned(self, tenant: str, request: str, now_s: float) -> None:
        """It was taken back from its engine and waits again: what was dispatched is nothing."""
        interval = self._of.pop(request, None)
        if interval is not None:
            interval.dispatched.remove((tenant, request))
        self.waits(tenant, request, now_s)

    def left(self, tenant: str, request: str, now_s: float) -> None:
        """It does not wait any longer, if it did."""
        self._waiting[tenant].discard(request)
        if self._open is not None and not self._waiting[tenant]:
            self._close(self._open, now_s)

    def ended(self, request: str, work: float) -> None:
        """It has been served, and took so much."""
        self._work[request] = work

    def shares(self) -> Shares:
        """What came of it. All that was dispatched in intervals has to have ended."""
        if self._open is not None:
            self._close(self._open, self._until_s)
        enough = LEAST * len(self._waiting) * max(self._work.values(), default=0.0)
        counted = [one for one in self._intervals if one.dispatched and self._served(one) >= enough]
        got = dict.fromkeys(self._waiting, 0.0)
        for interval in counted:
            for tenant, request in interval.dispatched:
                got[tenant] += self._work[request]
        return Shares(
            work=got,
            jain=jain(list(got.values())),
            backlogged=self._share(self._intervals),
            covered=self._share(counted),
        )

    def _close(self, interval: _Interval, now_s: float) -> None:
        interval.until_s = now_s
        self._intervals.append(interval)
        self._open = None

    def _served(self, interval: _Interval) -> float:
        return sum(self._work[request] for _, request in interval.dispatched)

    def _share(self, intervals: Sequence[_Interval]) -> float:
        """Of the time that counts."""
        begin_s, end_s = self._since_s, self._until_s
        return sum(max(min(i.until_s, end_s) - max(i.since_s, begin_s), 0.0) for i in intervals) / (end_s - begin_s)


def jain(shares: Sequence[float]) -> float | None:
    """Jain, Chiu and Hawe's index of equality (1984); None if nobody has anything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


class Watched(Router):
    """A router that keeps the record of one band."""

    def __init__(self, *args: Any, backlog: Backlog, priority: int, **parts: Any) -> None:
        super().__init__(*args, **parts)
        self._backlog = backlog
        self._priority = priority
        """The band's."""
        self._tenants: dict[str, str] = {}
        """Of its requests, by request."""
        self._of: dict[int, str] = {}
        """The requests of its legs."""

    def handle(self, fact: Fact, now_s: float) -> list[Effect]:
        """As the router does."""
        backlog, tenants = self._backlog, self._tenants
        match fact:
            case RequestArrived(request=request) if request.priority == self._priority:
                tenants[request.id] = request.tenant
                backlog.waits(request.tenant, request.id, now_s)
            case LegFinished(leg=leg, usage=usage) if usage is not None and leg in self._of:
                computed = usage.prompt_tokens - (usage.cached_tokens or 0)
                backlog.ended(self._of[leg], work(computed, usage.completion_tokens))
            case _:
                pass
        effects = super().handle(fact, now_s)
        for effect in effects:
            match effect:
                case StartLeg(request_id=name, leg=leg) if name in tenants:
                    self._of[leg] = name
                    backlog.dispatched(tenants[name], name, now_s)
                case CancelLeg(request_id=name) if name in tenants:
                    backlog.returned(tenants[name], name, now_s)
                case Ended(request_id=name) if name in tenants:
                    backlog.left(tenants[name], name, now_s)
                case _:
                    pass
        return effects
