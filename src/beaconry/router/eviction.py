"""Which running requests give way to a higher band that starves; opt-in (`flow.evictSheddable`).

A request starves that waits for longer than what may wait in an engine anyway (`flow.engineWaitS`): at the head of the queue, or in an
engine for a place or memory. For each such request one sheddable one (negative priority, and lower than its own) ends: of the lowest band
the one that was sent last, which has the least work to lose. If that does not help, the next one goes no sooner than after as long again,
and never are more than ten ended in a second. What has its first byte goes only where places or memory are short: for a prefill it makes
no way.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from math import inf

from beaconry.config.flow import Flow
from beaconry.flowcontrol.ticket import Ticket
from beaconry.router.admission import Admission
from beaconry.router.exchange import Leg
from beaconry.router.member import Member
from beaconry.router.members import Members
from beaconry.values.stage import Stage

PAUSE_S = 0.1
"""Between two evictions: what the first one frees has to be seen before the second."""


class Eviction:
    """Watches who starves. Invariant: `_watched` has no more than the legs without first byte, and those that have left them since."""

    def __init__(self, flow: Flow, admission: Admission, members: Members) -> None:
        self.enabled = flow.evict_sheddable
        self._patience_s = flow.engine_wait_s
        self._admission = admission
        self._members = members
        self._watched: list[tuple[float, int, Leg]] = []
        """Legs without first byte, by the time from which they starve."""
        self._again_s = -inf
        """When the next eviction may be."""
        self._helped: dict[str, tuple[int, float]] = {}
        """By lane: the number of the queued request that was helped last, and until when that has to do."""

    def watch(self, leg: Leg) -> None:
        """A leg was sent: it may have to wait."""
        request = leg.request
        if self.enabled and request.stream and request.priority >= 0 and leg.stage is Stage.WHOLE:
            heappush(self._watched, (leg.dispatched_s + self._patience_s, leg.id, leg))

    def due_s(self) -> float:
        """When somebody begins to starve."""
        due_s = self._watched[0][0] if self._watched else inf
        for ticket in self._admission.queue.heads():
            if ticket.band.priority >= 0:
                due_s = min(due_s, self._starves_s(ticket))
        return max(due_s, self._again_s)

    def victim(self, legs: Iterable[Leg], now_s: float) -> Leg | None:
        """Who has to go now, if anybody has to."""
        if now_s < self._again_s:
            return None
        victim = self._for_a_leg(legs, now_s) or self._for_the_queue(legs, now_s)
        if victim is not None:
            self._again_s = now_s + PAUSE_S
        return victim

    def _for_a_leg(self, legs: Iterable[Leg], now_s: float) -> Leg | None:
        while self._watched and self._watched[0][0] <= now_s:
            _, _, leg = heappop(self._watched)
            if leg.id not in leg.member.prefilling:
                continue
            heappush(self._watched, (now_s + self._patience_s, leg.id, leg))
            victim = self._lightest(legs, leg.request.priority, [leg.member], now_s)
            if victim is not None:
                return victim
        return None

    def _for_the_queue(self, legs: Iterable[Leg], now_s: float) -> Leg | None:
        for ticket in self._admission.queue.heads():
            if ticket.band.priority >= 0 and self._starves_s(ticket) <= now_s:
                self._helped[ticket.lane] = (ticket.number, now_s + self._patience_s)
                members = self._members.open_to(ticket.request.model, now_s)
                victim = self._lightest(legs, ticket.band.priority, members, now_s)
                if victim is not None:
                    return victim
        return None

    def _starves_s(self, ticket: Ticket) -> float:
        number, until_s = self._helped.get(ticket.lane, (0, 0.0))
        return until_s if number == ticket.number else ticket.queued_s + self._patience_s

    def _lightest(self, legs: Iterable[Leg], priority: int, members: list[Member], now_s: float) -> Leg | None:
        short = {member.endpoint.name for member in members if self._admission.is_short(member, now_s)}
        may_go = [
            leg
            for leg in legs
            if leg.request.priority < min(priority, 0)
            and leg.member in members
            and (leg.first_byte_s is None or leg.member.endpoint.name in short)
        ]
        return min(may_go, key=lambda leg: (leg.request.priority, -leg.dispatched_s, -leg.id), default=None)
