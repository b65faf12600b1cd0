"""The gateway's queue: who may wait, who goes next, who has waited for too long.

    arrival  `offer` finds a place for a request, or says who has to go instead: itself, or some of a lower band or a longer flow
    turn     `next` names the request to be dispatched; `dispatch` takes it out, and `settle` says later what it really took
    return   `put_back` lets one wait again that was dispatched, before all others of its flow
    ends     `remove` when its client leaves, `expired` when its time is up

A lane for all that waits for the same engines, mostly one per model; all bounds hold at any time; every operation takes O(log n) steps at
most, however many wait.
"""

from collections.abc import Callable, Iterable

from msgspec import Struct

from beaconry.config.flow import BandConfig, Flow
from beaconry.flowcontrol.band import NEVER, Band
from beaconry.flowcontrol.lane import OTHER, Lane
from beaconry.flowcontrol.room import Room
from beaconry.flowcontrol.ticket import Ticket, TicketHeap, Why, work
from beaconry.values.errors import InternalError
from beaconry.values.request import Request

MAX_RETRY_AFTER_S = 60.0
"""Beyond that a guess from the present rate says nothing."""


class QueueStatistics(Struct, frozen=True, kw_only=True):
    """What waits in one band of one lane."""

    lane: str
    band: str
    """Its name; "other" for all that are not configured."""
    requests: int
    tokens: int
    prompt_bytes: int


class FlowControl:
    """All lanes and what they hold together.

    Invariants (`check`): `_room` sums up all lanes and is within its bounds; what waits is in exactly one flow, and in `_by_expiry`.
    """

    def __init__(self, config: Flow) -> None:
        self.config = config
        self.bands = config.bands
        """As configured, with one of priority 0."""
        if all(band.priority for band in config.bands):
            self.bands = (*config.bands, BandConfig(name="default", priority=0))
        self.keeps_accounts = any(band.fairness == "least-attained" for band in self.bands)
        """Who is served at once, with nobody waiting, has to be noted too: there is fairness over all that a program ever had."""
        self._lanes: dict[str, Lane] = {}
        """By name: a model's, or one of its parts that waits for other engines. They stay: the models are those that engines serve or
        served."""
        self._by_expiry = TicketHeap()
        self._numbers = 0
        """Tickets given out: each has a number of its own, in order of arrival. Those put back have negative ones, the later the lower."""
        self._returned = 0
        self._room = Room(config)

    @property
    def waiting(self) -> int:
        """Requests that wait, of all models."""
        return self._room.requests

    # -- arrival

    def ticket(self, name: str, request: Request, output_tokens: float, now_s: float) -> Ticket:
        """A ticket for a request that has just come. `name`: the lane's; `output_tokens`: what it is expected to generate."""
        lane = self.lane(name)
        band = lane.band(request.priority)
        self._numbers += 1
        ticket = Ticket(request, self._numbers, work(request.prompt_tokens, output_tokens), name, band)
        ticket.queued_s = now_s
        ticket.expires_s = request.arrived_s + (band.ttl_s if request.ttl_s is None else request.ttl_s)
        return ticket

    def offer(self, ticket: Ticket, *, passing: bool) -> list[Ticket]:
        """Queue it if the bounds allow. Returns those that had to leave the queue for it: itself if it may not wait.

        `passing`: it is its turn at once, so it does not wait and no bound applies.
        """
        victims = [] if passing else self._make_room(ticket)
        if victims is None:
            self.lane(ticket.lane).tidy(ticket.band)
            return [ticket]
        ticket.band.push(ticket)
        self._by_expiry.push(ticket.expires_s, ticket)
        self._room.add(ticket.request)
        return victims

    def put_back(self, ticket: Ticket, spent: Ticket | None, sent_s: float, now_s: float) -> list[Ticket] | None:
        """Let a request wait again that was dispatched at `sent_s` and has come back, as if it had waited all the time but for when it was
        away; for as long as may wait in an engine at least, so that it is not sent in vain. Returns those that had to leave the queue for
        it, which have waited for less; None, and nothing has changed, if that does not make room.

        `ticket` is a fresh one; `spent` the one with which it was dispatched, None if it had not been queued.
        """
        victims = self._make_room(ticket, returning=True)
        if victims is None:
            self.lane(ticket.lane).tidy(ticket.band)
            return None
        self._returned += 1
        ticket.number = -self._returned
        ticket.why = Why.RECALLED
        if spent is not None:
            ticket.queued_s = now_s - spent.queued_s
            ticket.expires_s = spent.expires_s
            ticket.charged, ticket.served_s = spent.charged, spent.served_s
        ticket.expires_s = max(ticket.expires_s + now_s - sent_s, now_s + self.config.engine_wait_s)
        ticket.band.push(ticket, again=True)
        self._by_expiry.push(ticket.expires_s, ticket)
        self._room.add(ticket.request)
        return victims

    def _make_room(self, ticket: Ticket, *, returning: bool = False) -> list[Ticket] | None:
        """Let go of the newest in lower bands, lowest first, or of one in its own with more waiting, or, if the ticket's request returns,
        just later. None: there is no room for it."""
        request, band, room = ticket.request, ticket.band, self._room
        if band.room.lacks(request):
            return self._swap(ticket, returning=returning)
        if not room.lacks(request):
            return []
        lower = [b for lane in self._lanes.values() for b in lane.bands.values() if b.priority < band.priority]
        if room.lacks(request, _sums(b.room for b in lower)):
            return self._swap(ticket, returning=returning)
        victims: list[Ticket] = []
        for one in sorted(lower, key=lambda b: b.priority):
            while one.room.requests and room.lacks(request):
                victims.append(one.newest_of_largest())
                self._leave(victims[-1])
        return victims

    def _swap(self, ticket: Ticket, *, returning: bool) -> list[Ticket] | None:
        band = ticket.band
        if not band.room.requests:
            return None
        victim = band.newest_of_largest()
        if not (returning or band.gives_way(victim, ticket)):
            return None
        leaving = (1, victim.request.prompt_tokens, victim.request.prompt_bytes)
        if band.room.lacks(ticket.request, leaving) or self._room.lacks(ticket.request, leaving):
            return None
        band.remove(victim)  # and is not forgotten if it is empty now: the ticket is about to be in it
        self._left(victim)
        return [victim]

    # -- turn

    def lanes(self) -> list[str]:
        """Those in which something waits."""
        return [name for name, lane in self._lanes.items() if lane.requests]

    def heads(self) -> list[Ticket]:
        """Whose turn it is in the highest band of each lane in which something waits."""
        return [ticket for lane in self._lanes.values() if (ticket := lane.next(lambda _: True)) is not None]

    def next(self, name: str, admits: Callable[[Band], bool]) -> Ticket | None:
        """Whose turn it is in the highest band of a lane that `admits` lets pass; None if there is nobody."""
        lane = self._lanes.get(name)
        return None if lane is None else lane.next(admits)

    def dispatch(self, ticket: Ticket, now_s: float) -> None:
        """Take it out: it goes to an engine."""
        ticket.band.serve(ticket, now_s)
        self._left(ticket)
        lane = self.lane(ticket.lane)
        lane.pace.note(now_s)
        lane.tidy(ticket.band)
        ticket.queued_s = now_s - ticket.queued_s

    def placed(self, ticket: Ticket, cached_tokens: int, now_s: float) -> None:
        """It is known to which engine, and so how much of the prompt is likely to be cached: that costs nothing."""
        ticket.band.expect(ticket, ticket.tokens - cached_tokens, now_s)

    def settle(self, ticket: Ticket, computed_tokens: int, output_tokens: int, now_s: float) -> None:
        """A dispatched request has ended: so many prompt tokens were not cached, so many were generated."""
        ticket.band.settle(ticket, work(computed_tokens, output_tokens), now_s)

    # -- ends

    def remove(self, ticket: Ticket) -> None:
        """Its client has left, or it is answered for another reason."""
        if ticket.waiting:
            self._leave(ticket)

    def expired(self, now_s: float) -> list[Ticket]:
        """Take out those whose time is up."""
        tickets: list[Ticket] = []
        while (due_s := self._by_expiry.least()) is not None and due_s <= now_s:
            ticket = self._by_expiry.first()
            assert ticket is not None
            self._leave(ticket)
            tickets.append(ticket)
        return tickets

    def due_s(self) -> float:
        """When the next one's time is up."""
        due_s = self._by_expiry.least()
        return NEVER if due_s is None else due_s

    # -- looking in

    def predicted_wait_s(self, ticket: Ticket, now_s: float) -> float | None:
        """How long it waits if it is queued now, at the present pace; None without one."""
        lane = self.lane(ticket.lane)
        per_s = lane.pace.per_s(now_s)
        return lane.requests_before(ticket) / per_s if per_s else None

    def retry_after_s(self, ticket: Ticket, now_s: float) -> float:
        """When to come back: once what waits before it now is gone. 1 to 60 s."""
        wait_s = self.predicted_wait_s(ticket, now_s)
        return 1.0 if wait_s is None else min(max(wait_s, 1.0), MAX_RETRY_AFTER_S)

    def room_used(self) -> dict[str, float]:
        """Shares of the bounds in use: requests, tokens, bytes."""
        names = ("requests", "tokens", "bytes")
        return {
            name: used / bound if bound else 1.0
            for name, used, bound in zip(names, self._room.sums, self._room.bounds, strict=True)
        }

    def statistics(self) -> tuple[QueueStatistics, ...]:
        """All bands of all lanes, by lane and priority; those that are not configured as one."""
        rows = []
        for key, lane in self._lanes.items():
            for name in (*(config.name for config in self.bands), OTHER):
                rooms = [band.room for band in lane.bands.values() if band.config.name == name]
                requests, tokens, prompt_bytes = _sums(rooms)
                rows.append(
                    QueueStatistics(lane=key, band=name, requests=requests, tokens=tokens, prompt_bytes=prompt_bytes)
                )
        return tuple(rows)

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        bands = [band for lane in self._lanes.values() for band in lane.bands.values()]
        for lane in self._lanes.values():
            lane.check()
        sums = _sums(band.room for band in bands)
        if sums != self._room.sums or len(self._by_expiry) != sums[0]:
            raise InternalError(f"flow control: {sums} wait, {self._room.sums} are counted")
        if any(
            one > bound
            for room in (self._room, *(b.room for b in bands))
            for one, bound in zip(room.sums, room.bounds, strict=True)
        ):
            raise InternalError(f"flow control: a bound is exceeded: {sums}")

    def lane(self, name: str) -> Lane:
        """A lane, made if it is not there. Names are of models that some engine serves."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(self.bands, self.config.ttl_s)
        return lane

    def _leave(self, ticket: Ticket) -> None:
        ticket.band.remove(ticket)
        self._left(ticket)
        self.lane(ticket.lane).tidy(ticket.band)

    def _left(self, ticket: Ticket) -> None:
        self._by_expiry.left()
        self._room.add(ticket.request, -1)


def _sums(rooms: Iterable[Room]) -> tuple[int, int, int]:
    requests = tokens = prompt_bytes = 0
    for room in rooms:
        requests += room.requests
        tokens += room.tokens
        prompt_bytes += room.prompt_bytes
    return requests, tokens, prompt_bytes
