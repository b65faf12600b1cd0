"""Which running requests give way to a higher band that starves; opt-in (`flow.evictSheddable`).

A request starves that waits for longer than what may wait in an engine anyway (`flow.engineWaitS`): at the head of the queue, or in an
engine for a place or memory. For each such request one sheddable one (negative priority, and lower than its own) ends: of the lowest band
the one that was sent last, which has the least work to lose. What was sent after the other one began to wait is left alone: it was let
in because the other one could not use that room, and were it ended, the next of its kind would take it. If that does not help, the next
one goes no sooner than after as long again, and never are more than ten ended in a second. What has its first byte goes only where places
or memory are short: for a prefill it makes no way.
"""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from math import inf

from beaconry.config.flow import Flow
from beaconry.flowcontrol.ticket import Ticket
from beaconry.router.admission import Admission
from beaconry.router.exchange import Leg
from beaconry.router.member import Member
from beaconry.router.members import Members
from beaconry.values.errors import InternalError
from beaconry.values.stage import Stage

PAUSE_S = 0.1
"""Between two evictions: what the first one frees has to be seen before the second."""


class Eviction:
    """Watches who starves. Invariants: `_watched` has no more than the legs without first byte, and those that have left them since;
    `_sheddable` has exactly the legs of negative priority that have not ended, and no priority that none has.
    """

    def __init__(self, flow: Flow, admission: Admission, members: Members) -> None:
        self.enabled = flow.evict_sheddable
        self._patience_s = flow.engine_wait_s
        self._admission = admission
        self._members = members
        self._watched: list[tuple[float, int, Leg]] = []
        """Legs without first byte, by the time from which they starve."""
        self._sheddable: dict[int, dict[int, Leg]] = {}
        """By priority and number, in the order in which they were sent."""
        self._again_s = -inf
        """When the next eviction may be."""
        self._helped: dict[str, tuple[int, float]] = {}
        """By lane: the number of the queued request that was helped last, and until when that has to do."""

    def sent(self, leg: Leg) -> None:
        """A leg was sent: it may have to wait, or to go."""
        request = leg.request
        if not self.enabled:
            return
        if request.priority < 0:
            self._sheddable.setdefault(request.priority, {})[leg.id] = leg
        elif request.stream and leg.stage is Stage.WHOLE:
            heappush(self._watched, (leg.dispatched_s + self._patience_s, leg.id, leg))

    def over(self, leg: Leg) -> None:
        """A leg has ended, in whichever way."""
        priority = leg.request.priority
        if self.enabled and priority < 0:
            del self._sheddable[priority][leg.id]
            if not self._sheddable[priority]:
                del self._sheddable[priority]

    def due_s(self) -> float:
        """When somebody begins to starve."""
        due_s = self._watched[0][0] if self._watched else inf
        for ticket in self._admission.queue.heads():
            if ticket.band.priority >= 0:
                due_s = min(due_s, self._starves_s(ticket))
        return max(due_s, self._again_s)

    def victim(self, now_s: float) -> Leg | None:
        """Who has to go now, if anybody has to."""
        if now_s < self._again_s:
            return None
        victim = self._for_a_leg(now_s) or self._for_the_queue(now_s)
        if victim is not None:
            self._again_s = now_s + PAUSE_S
        return victim

    def check(self, running: Iterable[Leg]) -> None:
        """Raise InternalError if it is not the legs that run that it would end."""
        kept = {leg for legs in self._sheddable.values() for leg in legs.values()}
        if self.enabled and kept != {leg for leg in running if leg.request.priority < 0}:
            raise InternalError("the legs that may be shed are not those that run")

    def _for_a_leg(self, now_s: float) -> Leg | None:
        while self._watched and self._watched[0][0] <= now_s:
            _, _, leg = heappop(self._watched)
            if leg.id not in leg.member.prefilling:
                continue
            heappush(self._watched, (now_s + self._patience_s, leg.id, leg))
            victim = self._lightest([leg.member], leg.dispatched_s, now_s)
            if victim is not None:
                return victim
        return None

    def _for_the_queue(self, now_s: float) -> Leg | None:
        for ticket in self._admission.queue.heads():
            if ticket.band.priority >= 0 and self._starves_s(ticket) <= now_s:
                self._helped[ticket.lane] = (ticket.number, now_s + self._patience_s)
                if not self._sheddable:
                    continue
                members = self._members.open_to(ticket.request.model, now_s)
                victim = self._lightest(members, ticket.queued_s, now_s)
                if victim is not None:
                    return victim
        return None

    def _starves_s(self, ticket: Ticket) -> float:
        number, until_s = self._helped.get(ticket.lane, (0, 0.0))
        return until_s if number == ticket.number else ticket.queued_s + self._patience_s

    def _lightest(self, members: Sequence[Member], before_s: float, now_s: float) -> Leg | None:
        """Of the lowest band the one that was sent last to one of `members`, but not after `before_s`."""
        short: dict[str, bool] = {}
        for priority in sorted(self._sheddable):
            for leg in reversed(self._sheddable[priority].values()):
                member = leg.member
                if leg.dispatched_s > before_s or member not in members:
                    continue
                if leg.first_byte_s is None:
                    return leg
                name = member.endpoint.name
                if name not in short:
                    short[name] = self._admission.is_short(member, now_s)
                if short[name]:
                    return leg
        return None
