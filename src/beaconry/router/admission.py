"""When a request is sent on: the queue, and which endpoints can use more than they have.

An endpoint is *open* while what waits there before its prefill, as the learnt rates predict, is less than `engineWaitS`. Its capacity is
therefore learnt: from prefill and decode times, from the requests that it was seen to run at once, and from how long the oldest one there
has been without an answer. Where nobody is without a first byte it is always open. So a guess that is too low corrects itself with the
next request, an endpoint is closed only while a first byte is due that will reopen it, and nothing has to be polled.

Requests that are to run in two legs wait in a lane of their own, for a prefill endpoint and one that answers to be open at once; so those
that need no prefill endpoint pass them by while the prefill pool is full. Of both lanes' heads the higher band goes first, then the older.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf

from msgspec import Struct

from beaconry.config.flow import Flow
from beaconry.flowcontrol.band import Band
from beaconry.flowcontrol.control import FlowControl
from beaconry.flowcontrol.demand import Claim, Demand
from beaconry.flowcontrol.pace import Pace
from beaconry.flowcontrol.ticket import Ticket, Why
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.latency.rates import RateBook
from beaconry.router.ajar import Ajar
from beaconry.router.capacity import Capacity
from beaconry.router.exchange import Exchange, Leg
from beaconry.router.member import Member
from beaconry.router.reserve import Reserve
from beaconry.router.statistics import WAIT_BOUNDS_S, BandFigures, FlowStatistics, Histogram
from beaconry.scheduling.objectives import hopeless_s
from beaconry.values.candidate import Candidate, Forecast, Prediction
from beaconry.values.endpoint import LoadSample, Role
from beaconry.values.errors import InternalError
from beaconry.values.outcome import Outcome
from beaconry.values.request import Request, Usage
from beaconry.values.stage import DECODE, PREFILL, WHOLE, Stage

SPLIT = "\0prefill"
"""Ends the name of a lane of requests that are to run in two legs; no model's name has such an ending."""
PRESSED_S = 5.0
"""For so long after some engines had no room to spare it is looked for room for each request."""
_BEHIND = 0.2
"""Share of what lower bands may else have waiting for prefill in an engine, while higher bands send: one begun prefill cannot be overtaken
there, two are one too many. Measured with long prompts: the higher band's 99th percentile a fifth lower, 1 % less done, with engines 10 ms
away neither more."""
_UNSERVED = frozenset({Outcome.OBJECTIVE_MISSED, Outcome.NO_ENDPOINT, Outcome.ENGINE_REFUSED, Outcome.ENGINE_FAILED})
"""Ends after which nobody has got anything, dispatched or not."""


class Line(Struct, frozen=True):
    """What waits for one model or LoRA adapter, and the endpoints that may take it."""

    model: str
    members: list[Member]
    prefill: list[Member]


class _Way(Struct, frozen=True):
    """Past the queue, for requests of one model and priority: what it takes to go by, and where it is noted."""

    ceiling: float
    pace: Pace
    demand: Demand
    waits: Histogram


class Admission:
    """The queue in front of all endpoints."""

    def __init__(self, flow: Flow, rates: RateBook, index: ApproximateIndex) -> None:
        self.queue = FlowControl(flow)
        self._flow = flow
        self._recalls = flow.enabled and flow.recall
        self._rates = rates
        self._capacity = Capacity(rates, index)
        self.reserve = Reserve(rates, self._capacity)
        self._contested = False
        """Some model has requests of more than one band: only then room is kept for any."""
        self._lowest: float = inf
        """The lowest priority seen."""
        self._pressed_until_s = -inf
        """Until then it is looked for room; later there is enough for everybody."""
        self._ajar = Ajar()
        self._silent: list[tuple[float, int, Member]] = []
        """Legs whose prefill will not show in a first byte, by the time when it should be over, and where they are; also some that have
        ended."""
        self._ejected: list[tuple[float, int, Member]] = []
        """Endpoints by the end of their ejection."""
        self._numbers = count()
        self.silent_due_s = inf
        """The earliest of all these times: when something changes without an event."""
        self._waits: dict[tuple[str, str], Histogram] = {}
        """Seconds from arrival to dispatch, by model and band."""
        self._ways: dict[tuple[str, int], _Way] = {}
        """By model and priority: as many as operators have configured."""
        self._dropped: dict[tuple[str, str], Counter[Outcome]] = {}
        """Ended without dispatch."""

    # -- the queue

    def arrive(
        self, request: Request, members: list[Member], now_s: float, prefill: Sequence[Member] = ()
    ) -> tuple[Ticket, list[Ticket]]:
        """Queue a request. Returns its ticket, and those that have to leave the queue for it: itself if there is no room.

        `prefill`: those of which it needs one as well; none if it is to run in one leg.
        """
        variant = members[0].endpoint.variant if members else "default"
        ticket = self._ticket(request, variant, now_s, split=bool(prefill))
        if not members:
            ticket.expires_s = request.arrived_s + self._flow.hold_s
            ticket.why = Why.ENDPOINT
        self._pressed_until_s = now_s + PRESSED_S
        passing = not ticket.band.room.requests and self._admits(ticket.band, request, members, now_s, prefill)
        if not (passing or ticket.why):
            ticket.why = self._why(ticket, members, now_s)
        return ticket, self.queue.offer(ticket, passing=passing)

    def passes(self, request: Request, members: Sequence[Member], now_s: float, prefill: Sequence[Member] = ()) -> bool:
        """A request has come: if nobody waits, and one of `members` is open for it, and one of `prefill` if there are any, it goes on at
        once, and no account of it has to be kept."""
        queue = self.queue
        if not members:
            return False
        lane, priority = members[0].endpoint.model, request.priority
        if prefill:
            lane += SPLIT
        way = self._ways.get((lane, priority)) or self._way(lane, priority)
        demand = way.demand
        contested = demand.contested
        if contested or demand.lowest != priority:
            demand.note(priority, request.prompt_tokens, now_s)
            contested = demand.contested
            self._contested = self._contested or contested
            self._lowest = min(self._lowest, priority)
        if queue.waiting or queue.keeps_accounts:
            return False
        if prefill and not self.any_open(request, prefill, now_s, way.ceiling):
            return False
        claim = demand.claim(priority, now_s)
        roomy: set[str] | None = None
        if contested and not self._is_ample(members, claim, request, now_s) and claim is not None:
            roomy = self.reserve.roomy(claim, request, members, members, now_s)
        urgency = self.urgency(request, now_s) if claim is None else None
        ceiling = way.ceiling if roomy is None else _BEHIND * way.ceiling
        for member in members:
            if (
                (member.ready or member.admits(now_s))
                and (not member.prefilling or self.is_open(member, now_s, ceiling, urgency))
                and (roomy is None or member.endpoint.name in roomy)
            ):
                way.pace.note(now_s)
                way.waits.add(0.0)
                return True
        return False

    def choice(
        self, request: Request, members: list[Member], candidates: list[Candidate], now_s: float
    ) -> list[Candidate]:
        """Those of `candidates`, which are `members`, where the request is to be placed. One for which room is kept: where its first token
        comes soonest. Any other: where it would run at once, and takes no room from higher bands; or where so much is cached that it is
        worth the wait. If it would run at once nowhere, those that are open: a policy may prefer an engine where much waits already,
        because it disturbs nobody there. With one band also those where more of the prompt was cached before. All, if none is open, or
        the request has an objective between tokens."""
        if now_s >= self._pressed_until_s or not self._flow.enabled:
            return candidates
        demand, reserve = self.queue.lane(members[0].endpoint.model).demand, self.reserve
        claim = demand.claim(request.priority, now_s)
        if claim is None and demand.contested:
            return self._soonest(request, members, candidates, now_s)
        if claim is None and request.slo_itl_s is not None:
            return candidates  # the policy weighs the wait against the streams that a prefill disturbs
        roomy: set[str] = set()  # where there is one band no room is kept
        if claim is not None:
            leaving = reserve.leaving(claim, members, candidates, request.prompt_tokens, now_s)
            ceiling = _BEHIND * self._ceiling(members[0].endpoint.model, request.priority)
            roomy = {m.endpoint.name for m in members if m.endpoint.name in leaving and self.is_open(m, now_s, ceiling)}
        roomy = roomy or {m.endpoint.name for m in members if self.is_open(m, now_s)}
        if not roomy:
            return candidates
        if claim is None:  # what a new home displaces is known to the policy alone
            known = max(c.known_tokens for c in candidates if c.endpoint.name in roomy)
            return [c for c in candidates if c.endpoint.name in roomy or c.known_tokens > known]
        matched = max(c.matched_tokens for c in candidates if c.endpoint.name in roomy)
        return [
            c for c in candidates if c.endpoint.name in roomy or reserve.worth_waiting(c, c.matched_tokens - matched)
        ]

    def urgency(self, request: Request, now_s: float) -> int | None:
        """Its priority, if what lower bands have waiting for prefill in engines gives way to it; None where nothing does: there is one
        band, or room enough for everybody."""
        if not self._contested or now_s >= self._pressed_until_s or not self._recalls:
            return None
        return request.priority if request.priority > self._lowest else None

    def put_back(self, leg: Leg, now_s: float) -> list[Ticket] | None:
        """Let the request of a leg that may return wait again. Returns those that had to leave the queue for it; None, and nothing has
        changed, if there is no room for it."""
        exchange = leg.exchange
        ticket = self._ticket(exchange.request, leg.member.endpoint.variant, now_s, split=leg.stage is PREFILL)
        victims = self.queue.put_back(ticket, exchange.ticket, leg.dispatched_s, now_s)
        if victims is not None:
            exchange.ticket = ticket
        return victims

    def _soonest(
        self, request: Request, members: list[Member], candidates: list[Candidate], now_s: float
    ) -> list[Candidate]:
        """Of the open endpoints, if there are any, those where a request for which room is kept begins soonest."""
        urgency = self.urgency(request, now_s)
        pairs = list(zip(members, candidates, strict=True))
        pairs = [(m, c) for m, c in pairs if self.is_open(m, now_s, urgency=urgency)] or pairs
        chosen, found_room = self.reserve.soonest(request, urgency, pairs, now_s)
        self.queue.lane(members[0].endpoint.model).demand.placed(found_room=found_room)
        return chosen

    def late_s(self, exchange: Exchange, forecasts: Iterable[Forecast], now_s: float) -> float:
        """By how much a request that may be refused for it misses its objective at best; 0: it may be in time, or is served late.

        Before it is queued (no `forecasts` yet) by the time that those before it take.
        """
        request, ticket = exchange.request, exchange.ticket
        if request.slo_ttft_s is None or request.priority >= self._flow.refuse_late_below or exchange.attempts:
            return 0.0
        if ticket is None or not ticket.waiting:
            return hopeless_s(request, forecasts, now_s) or 0.0
        wait_s = self.queue.predicted_wait_s(ticket, now_s) or 0.0
        return max(now_s + wait_s - request.arrived_s - request.slo_ttft_s, 0.0)

    def models(self) -> list[str]:
        """Those for which something waits."""
        return list(dict.fromkeys(lane.removesuffix(SPLIT) for lane in self.queue.lanes()))

    def first(self, lines: Iterable[Line], now_s: float) -> Ticket | None:
        """Whose turn it is of those that wait for the same engines: of the highest band, who came first among those whose turn it is."""
        turns = [turn for line in lines for turn in self._turns(line, now_s) if turn is not None]
        return min(turns, key=lambda ticket: (-ticket.band.priority, ticket.number)) if turns else None

    def _turns(self, line: Line, now_s: float) -> tuple[Ticket | None, Ticket | None]:
        """The turns of one model's two lanes, if one of its endpoints is open for it, and for those to be split one of `prefill` too."""
        model, members, prefill = line.model, line.members, line.prefill
        whole = self.queue.next(model, lambda band: self._admits(band, band.head().request, members, now_s))
        split = self.queue.next(
            model + SPLIT, lambda band: self._admits(band, band.head().request, members, now_s, prefill)
        )
        return whole, split

    def dispatch(self, ticket: Ticket, now_s: float) -> None:
        """Take a request out of the queue: it is its turn."""
        self.queue.dispatch(ticket, now_s)
        self._waits_of(ticket.lane, ticket.band).add(ticket.queued_s)

    def settle(self, ticket: Ticket, usage: Usage, now_s: float) -> None:
        """A request has completed: its tenant is charged for what it took instead of what was expected."""
        self.queue.settle(ticket, usage.prompt_tokens - (usage.cached_tokens or 0), usage.completion_tokens, now_s)

    def ended(self, ticket: Ticket, outcome: Outcome, now_s: float, *, dispatched: bool) -> None:
        """A request has ended, in whichever way. What no engine has served costs its tenant nothing."""
        served = not ticket.waiting and outcome not in _UNSERVED
        self.queue.remove(ticket)
        if ticket.charged > 0 and not served:
            self.queue.settle(ticket, 0, 0, now_s)
        if not dispatched:
            key = (ticket.lane, ticket.band.config.name)
            self._dropped.setdefault(key, Counter())[outcome] += 1

    def due_s(self) -> float:
        """When something happens without an event: a request has waited for too long, or a silent prefill should be over."""
        if not self.queue.waiting:
            return inf
        return min(self.queue.due_s(), self.silent_due_s)

    # -- endpoints

    def reopen(self, member: Member) -> None:
        """Something has happened that may leave an endpoint with room."""
        if member.ready or member.last_resort:
            self._ajar.reopen(member.endpoint.name)

    def first_byte(self, leg: Leg, now_s: float) -> None:
        """A leg has got its first byte."""
        self._capacity.first_byte(leg, now_s)
        self.reopen(leg.member)

    def sampled(self, member: Member, sample: LoadSample, now_s: float) -> None:
        """An engine's metrics were read."""
        self._capacity.sampled(member, sample, now_s)
        self.reopen(member)

    def forget(self, member: Member) -> None:
        """It gets nothing more."""
        self._capacity.forget(member.endpoint.name)
        self._ajar.forget(member.endpoint.name)

    def dispatched(self, leg: Leg, prediction: Prediction | None) -> None:
        """A leg was sent. Of a whole answer the first byte is the last: it counts as prefilled once the predicted time has passed."""
        request, ticket = leg.request, leg.exchange.ticket
        if ticket is not None and leg.stage is not DECODE:
            self.queue.placed(ticket, leg.prompt_tokens - leg.uncached_tokens, leg.dispatched_s)
        if self._contested:
            self._capacity.dispatched(leg)
            # the leg that answers takes the place, once per request
            if leg.stage is not PREFILL and not leg.exchange.recalls:
                self.queue.lane(leg.member.endpoint.model).demand.sent(leg.dispatched_s)
        if not request.stream:
            if prediction is None:
                prediction = self._rates.predict(request, leg.candidate)
            due_s = leg.dispatched_s + prediction.ttft_s
            heappush(self._silent, (due_s, leg.id, leg.member))
            if due_s < self.silent_due_s:
                self.silent_due_s = due_s

    def ejected(self, member: Member) -> None:
        """An endpoint gets nothing for a while."""
        heappush(self._ejected, (member.ejected_until_s, next(self._numbers), member))
        self.silent_due_s = min(self.silent_due_s, self._ejected[0][0])

    def settle_silent(self, now_s: float) -> None:
        """Count as prefilled what should be by now, and open again whose ejection is over."""
        silent = self._silent
        while silent:
            due_s, leg_id, member = silent[0]
            leg = member.prefilling.get(leg_id)
            if leg is not None:
                if due_s > now_s:
                    break
                member.first_byte(leg, now_s)
                self.reopen(member)
            heappop(silent)
        ejected = self._ejected
        while ejected and ejected[0][0] <= now_s:
            self.reopen(heappop(ejected)[2])
        self.silent_due_s = min(silent[0][0] if silent else inf, ejected[0][0] if ejected else inf)

    def is_open(self, member: Member, now_s: float, ceiling: float = 1.0, urgency: int | None = None) -> bool:
        """The endpoint can use one more request, of a band with this ceiling and `urgency`."""
        if not self._flow.enabled or not member.prefilling:
            return True
        limit_s = ceiling * self._flow.engine_wait_s
        if urgency is None:
            if now_s - member.oldest_s >= limit_s:
                return False
            return self._rates.wait_s(member.endpoint, member.in_flight + 1, member.prefill_tokens) < limit_s
        ahead = member.ahead(urgency, now_s)
        if not ahead.prefilling:
            return True
        running = len(member.decoding) + ahead.prefilling + 1
        return max(self._rates.wait_s(member.endpoint, running, ahead.prefill_tokens), ahead.oldest_wait_s) < limit_s

    def any_open(self, request: Request, members: Sequence[Member], now_s: float, ceiling: float = 1.0) -> bool:
        """One of `members` is open for the request, if need be by what gives way to it."""
        if any(self.is_open(member, now_s, ceiling) for member in members):
            return True
        self._pressed_until_s = now_s + PRESSED_S
        urgency = self.urgency(request, now_s)
        return urgency is not None and any(self.is_open(member, now_s, ceiling, urgency) for member in members)

    def is_short(self, member: Member, now_s: float) -> bool:
        """What waits there waits for a place, or for memory."""
        waited_s = member.oldest_wait_s(now_s)
        return self._rates.is_late(member.endpoint, waited_s, member.prefill_tokens) or not self._capacity.fits(
            member, 0.0, now_s
        )

    def statistics(self, members: Iterable[Member], now_s: float) -> FlowStatistics:
        """What waits and has waited, and how full the endpoints are."""
        full: dict[tuple[str, Stage], list[float]] = {}
        for member in members:
            if member.last_resort:
                share = self.wait_s(member, now_s) / self._flow.engine_wait_s if member.prefilling else 0.0
                stage = PREFILL if member.endpoint.role is Role.PREFILL else WHOLE
                full.setdefault((member.endpoint.model, stage), []).append(min(share, 1.0))
        bands = tuple(
            BandFigures(
                model=queue.lane.removesuffix(SPLIT),
                stage=PREFILL if queue.lane.endswith(SPLIT) else WHOLE,
                band=queue.band,
                queued_requests=queue.requests,
                queued_tokens=queue.tokens,
                queued_bytes=queue.prompt_bytes,
                waits=self._waits.get((queue.lane, queue.band), Histogram(WAIT_BOUNDS_S)).snapshot(),
                dropped=dict(self._dropped.get((queue.lane, queue.band), {})),
            )
            for queue in self.queue.statistics()
        )
        saturation = {(b.model, b.stage): 1.0 for b in bands} | {key: sum(s) / len(s) for key, s in full.items()}
        return FlowStatistics(
            bands=bands, saturation=saturation, room=self.queue.room_used(), enabled=self._flow.enabled
        )

    def check(self, waiting: int) -> None:
        """Raise InternalError if the queue is inconsistent, or does not hold `waiting` requests."""
        self.queue.check()
        if self.queue.waiting != waiting:
            raise InternalError(f"{self.queue.waiting} requests are queued, {waiting} wait")

    def _ticket(self, request: Request, variant: str, now_s: float, *, split: bool) -> Ticket:
        output = self._rates.rates(variant).output_tokens
        if request.output_tokens is not None:
            output = min(output, request.output_tokens)
        return self.queue.ticket(lane_of(request, split=split), request, output * request.sequences, now_s)

    def _waits_of(self, lane: str, band: Band) -> Histogram:
        histogram = self._waits.get((lane, band.config.name))
        if histogram is None:
            histogram = self._waits[lane, band.config.name] = Histogram(WAIT_BOUNDS_S)
        return histogram

    def _way(self, name: str, priority: int) -> "_Way":
        lane = self.queue.lane(name)
        band = lane.band(priority)
        demand = self.queue.lane(name.removesuffix(SPLIT)).demand
        way = self._ways[name, priority] = _Way(band.config.ceiling, lane.pace, demand, self._waits_of(name, band))
        lane.tidy(band)
        return way

    def wait_s(self, member: Member, now_s: float) -> float:
        """How long a request would wait there before its prefill."""
        wait_s = self._rates.wait_s(member.endpoint, member.in_flight + 1, member.prefill_tokens)
        return max(wait_s, member.oldest_wait_s(now_s))

    def step_s(self, member: Member) -> float:
        """What a prompt of no length would take there."""
        return self._rates.rates(member.endpoint.variant).base_s

    def _is_ample(self, members: Sequence[Member], claim: Claim | None, request: Request, now_s: float) -> bool:
        """There is room enough for everybody, so that it need not be looked for. If not, it is not for a while."""
        for member in members:
            if (member.ready or member.admits(now_s)) and self._capacity.ample(member, claim, request.prompt_tokens):
                return True
        self._pressed_until_s = now_s + PRESSED_S
        return False

    def _ceiling(self, model: str, priority: int) -> float:
        return (self._ways.get((model, priority)) or self._way(model, priority)).ceiling

    def _claim(self, request: Request, members: Sequence[Member], now_s: float) -> Claim | None:
        """What higher bands are about to send, and the request has to leave room for; None: there is no such band."""
        if not members or not self._flow.enabled:
            return None
        return self.queue.lane(members[0].endpoint.model).demand.claim(request.priority, now_s)

    def _admits(
        self, band: Band, request: Request, members: list[Member], now_s: float, prefill: Sequence[Member] = ()
    ) -> bool:
        """One of `members` is open for the band's next request, and one of `prefill` if there are any; ejected ones count if there are no
        others."""
        if prefill and not self.any_open(request, prefill, now_s, band.config.ceiling):
            return False
        claim = self._claim(request, members, now_s)
        urgency = self.urgency(request, now_s) if claim is None else None
        ceiling = band.config.ceiling * (1.0 if claim is None else _BEHIND)
        ajar = self._ajar.to((ceiling, urgency))
        if not ajar:
            return False
        serving: list[Member] = []
        for member in members:
            name = member.endpoint.name
            if name not in ajar:
                continue
            if not self.is_open(member, now_s, ceiling, urgency):
                ajar.discard(name)
                continue
            ample = claim is None or self._capacity.ample(member, claim, request.prompt_tokens)
            if ample and member.admits(now_s):
                return True
            serving.append(member)
        if claim is not None and serving:
            roomy = self.reserve.roomy(claim, request, members, serving, now_s)
            serving = [member for member in serving if member.endpoint.name in roomy]
        if any(member.admits(now_s) for member in serving):
            return True
        return bool(serving) and not any(member.admits(now_s) for member in members)

    def _why(self, ticket: Ticket, members: list[Member], now_s: float) -> Why:
        if ticket.band.room.requests:
            return Why.TURN
        return Why.CEILING if any(self.is_open(member, now_s) for member in members) else Why.CAPACITY


def lane_of(request: Request, *, split: bool) -> str:
    """What a request waits with: those of its model, or of its LoRA adapter, which not all engines of the base model need serve."""
    return request.model + SPLIT if split else request.model
