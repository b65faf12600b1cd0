"""The legs that have not ended: how each begins, what it meets, and what follows from its end.

A leg that fails before its first byte may be followed by another one elsewhere, within the retry budget. A fact about a leg that is no
longer known is late news and changes nothing.

A prefill leg's end is its first byte: the client has seen nothing yet, and the leg that is to answer is placed only now. If that one fails
before it begins, nobody knows whether the KV is still there to be fetched: the request starts anew.
"""

from msgspec.structs import replace

from beaconry.config.gateway import GatewayConfig
from beaconry.disagg.plan import Reason
from beaconry.router.effects import CancelLeg, Effect, StartLeg
from beaconry.router.eviction import Eviction
from beaconry.router.exchange import Exchange, Leg
from beaconry.router.exchanges import Exchanges
from beaconry.router.facts import Fault, LegFailed, LegFinished, LegProgressed, LegStarted
from beaconry.router.learning import Learning
from beaconry.router.member import Member
from beaconry.router.placing import Placing, Planned
from beaconry.router.retries import RetryBudget
from beaconry.values.decision import Decision
from beaconry.values.errors import InternalError
from beaconry.values.outcome import COMPLETED, Outcome
from beaconry.values.request import Request
from beaconry.values.stage import DECODE, PREFILL

BUSY_STATUSES = frozenset({429, 503})
"""An engine that answers so is full, not broken."""
_CUT_STATUS = {Outcome.SHUTTING_DOWN: 503, Outcome.EVICTED: 429}
"""What those are told that are cut off before their answer has begun; the others have met a deadline."""


class Legs:
    """The life of all legs."""

    def __init__(
        self,
        *,
        placing: Placing,
        exchanges: Exchanges,
        learning: Learning,
        eviction: Eviction,
        config: GatewayConfig,
    ) -> None:
        self._placing = placing
        self._members = placing.members
        self._exchanges = exchanges
        self._admission = exchanges.admission
        self._learning = learning
        self._eviction = eviction
        self._timers = exchanges.timers
        self._attempts = config.retry.attempts
        self._budget = RetryBudget(config.retry.budget_ratio, config.retry.budget_floor)
        self._aggregates = config.disaggregation.on_prefill_failure == "aggregate"
        self.retries = self.recalls = 0
        self._legs: dict[int, Leg] = {}
        """Exactly the `leg` of each exchange."""
        self._last = 0

    # -- begin

    def request(self, now_s: float) -> None:
        """A request has come: retries are measured by their number."""
        self._budget.request(now_s)

    def place(self, exchange: Exchange, now_s: float, effects: list[Effect], planned: Planned | None = None) -> bool:
        """Choose an endpoint and start a leg there, or refuse what would be too late anywhere. False if there is none."""
        decision = self._placing.choose(exchange, now_s, planned)
        if decision is None:
            return False
        forecasts = decision.ranking.forecasts
        if forecasts and self._exchanges.refused_late(exchange, forecasts.values(), now_s, effects):
            return True
        ticket = exchange.ticket
        if ticket is not None and ticket.queued_s > 0 and (not exchange.attempts or exchange.prefill is not None):
            decision = replace(decision, queued_s=ticket.queued_s, waited_for=ticket.why.value)
        self._start(exchange, decision, now_s, effects)
        return True

    def _start(self, exchange: Exchange, decision: Decision, now_s: float, effects: list[Effect]) -> None:
        winner = decision.ranking.winner
        member = self._members[decision.endpoint.name]
        self._make_way(exchange.request, member, now_s, effects)
        self._last += 1
        placement = self._learning.routed(member.endpoint.name, exchange.request)
        leg = Leg(self._last, exchange, member, decision.candidates[winner], placement, now_s)
        request, source = leg.request, exchange.prefill
        exchange.leg = leg
        exchange.attempts += 1
        self._legs[leg.id] = leg
        member.dispatch(leg)
        self._learning.dispatched(leg)
        predictions = decision.ranking.predictions
        self._admission.dispatched(leg, predictions[winner] if predictions else None)
        if request.stream:
            self._timers.sent(leg, now_s)
        self._eviction.sent(leg)
        if decision.plan and leg.stage is not DECODE:
            plans = self._exchanges.counters[request.model].plans
            exchange.plan = decision.plan
            key = (leg.stage, decision.plan)
            plans[key] = plans.get(key, 0) + 1
        holder = None if source is None else source.candidate.endpoint
        priority = decision.endpoint.told_priority(request.priority)
        effects.append(StartLeg(request.id, leg.id, decision.endpoint, decision, leg.stage, holder, priority))

    def _make_way(self, request: Request, member: Member, now_s: float, effects: list[Effect]) -> None:
        """Take back what would keep a request of a higher band from its prefill at `member`; the latest first, so the oldest is next."""
        urgency = self._admission.urgency(request, now_s)
        if urgency is None or not self._admission.reserve.is_in_the_way(request, urgency, member, now_s):
            return
        for number in [leg.id for leg in reversed(member.prefilling.values()) if leg.gives_way(urgency)]:
            leg = self._legs[number]
            victims = self._admission.put_back(leg, now_s)
            if victims is not None:
                self._recall(leg, now_s, effects)
                self._exchanges.displace(victims, now_s, effects)

    def _recall(self, leg: Leg, now_s: float, effects: list[Effect]) -> None:
        """End a leg whose request waits again."""
        there_tokens = leg.candidate.matched_tokens + self._admission.reserve.computed_tokens(leg, now_s)
        effects.append(CancelLeg(leg.request.id, leg.id))
        self._close(leg, now_s, there_tokens=there_tokens)
        leg.exchange.attempts -= 1
        leg.exchange.recalls += 1
        self.recalls += 1

    # -- facts

    def started(self, fact: LegStarted, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        """A leg's first byte has come."""
        leg = self._legs.get(fact.leg)
        if leg is not None and leg.first_byte_s is None:
            self._first_byte_came(leg, now_s)
            self._timers.progressed(leg, now_s)

    def progressed(self, fact: LegProgressed, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        """A leg goes on."""
        leg = self._legs.get(fact.leg)
        if leg is not None and leg.first_byte_s is not None:
            self._timers.progressed(leg, now_s)

    def finished(self, fact: LegFinished, now_s: float, effects: list[Effect]) -> None:
        """A leg's answer is complete."""
        leg = self._legs.get(fact.leg)
        if leg is None:
            return
        if leg.first_byte_s is None:
            self._first_byte_came(leg, now_s)
        assert leg.first_byte_s is not None
        if leg.stage is PREFILL:
            self._prefilled(leg, fact, now_s, effects)
            return
        exchange, refused = leg.exchange, fact.status >= 400
        self._learning.finished(leg, None if refused else fact.usage, len(leg.member.decoding), now_s)
        self._close(leg, now_s, finished=True)
        leg.member.succeeded()
        if fact.usage is not None and not refused:
            request = exchange.request
            self._exchanges.counters[request.model].count_usage(fact.usage, now_s - leg.first_byte_s)
            if request.account is not None:
                self._exchanges.allowances.reported(request.id, fact.usage, now_s)
            if exchange.ticket is not None:
                self._admission.settle(exchange.ticket, fact.usage, now_s)
        self._exchanges.end(exchange, Outcome.ENGINE_REFUSED if refused else COMPLETED, now_s, effects)

    def failed(self, fact: LegFailed, now_s: float, effects: list[Effect]) -> None:
        """A leg has ended without a complete answer."""
        leg = self._legs.get(fact.leg)
        if leg is None:
            return
        busy = fact.fault is Fault.STATUS and fact.status in BUSY_STATUSES
        if not busy and self._is_to_blame(leg, fact):
            self._blame(leg.member, now_s)
        self._close(leg, now_s)
        what = (
            f"the engine answered {fact.status}" if fact.fault is Fault.STATUS else f"{fact.fault.value}: {fact.detail}"
        )
        if leg.first_byte_s is not None:
            message = f"the engine failed while it answered ({what})"
            self._exchanges.break_off(leg.exchange, Outcome.STREAM_BROKEN, message, now_s, effects)
        else:
            if leg.stage is DECODE and fact.fault is Fault.STATUS and not busy and self._aggregates:
                leg.exchange.whole = Reason.HANDOVER_FAILED
            self._try_again(leg, what, now_s, effects, status=503 if busy else 502)

    def _prefilled(self, leg: Leg, fact: LegFinished, now_s: float, effects: list[Effect]) -> None:
        """A prompt is computed: the leg that answers follows, which takes its KV over. Or there is none to take over."""
        exchange, refused = leg.exchange, fact.status >= 400
        self._learning.finished(leg, None if refused else fact.usage, 0, now_s)
        self._close(leg, now_s, finished=True)
        if fact.handoff or refused:
            leg.member.succeeded()
            if refused:
                exchange.whole = Reason.PREFILL_REFUSED
            else:
                exchange.prefill = leg
            if not self.place(exchange, now_s, effects):
                self._exchanges.drop(exchange, Outcome.NO_ENDPOINT, now_s, effects)
        else:
            self._blame(leg.member, now_s)
            self._try_again(leg, "its answer named no KV to hand over", now_s, effects, status=502)

    def _blame(self, member: Member, now_s: float) -> None:
        """A leg failed by its endpoint's fault; if that ejects it, the end of the ejection is not to be missed."""
        member.failed_leg(now_s)
        if now_s < member.ejected_until_s:
            self._admission.ejected(member)

    def _is_to_blame(self, leg: Leg, fact: LegFailed) -> bool:
        """The leg's endpoint failed by itself: it was not let down by the one whose KV it was to fetch."""
        source = leg.exchange.prefill
        return source is None or fact.fault is not Fault.STATUS or source.member.ready

    def _first_byte_came(self, leg: Leg, now_s: float) -> None:
        request, member = leg.request, leg.member
        leg.first_byte_s = now_s
        member.first_byte(leg, now_s)
        self._admission.first_byte(leg, now_s)
        leg.batch_at_first = len(member.decoding)
        leg.prefilled_mark = member.prefilled_tokens
        if request.stream:
            self._timers.began(leg)
            self._learning.first_byte(leg)
            member.ttft.add(now_s - leg.dispatched_s)
            if leg.stage is not PREFILL:
                self._exchanges.counters[request.model].ttft.add(now_s - request.arrived_s)

    # -- ends

    def leave(self, member: Member, why: str, now_s: float, effects: list[Effect]) -> None:
        """Move what waits for a first byte at `member` elsewhere; what streams has its own deadline."""
        for leg in [leg for leg in self._legs.values() if leg.member is member and leg.first_byte_s is None]:
            self.cancel(leg.exchange, now_s, effects)
            self._try_again(leg, why, now_s, effects, status=502)

    def cut(self, exchange: Exchange, outcome: Outcome, message: str, now_s: float, effects: list[Effect]) -> None:
        """End an exchange wherever it stands."""
        leg = self.cancel(exchange, now_s, effects)
        if leg is not None and leg.first_byte_s is not None:
            self._exchanges.break_off(exchange, outcome, message, now_s, effects)
        else:
            status = _CUT_STATUS.get(outcome, 504)
            self._exchanges.answer(exchange, status, outcome, message, now_s, effects)

    def cut_late(self, now_s: float, effects: list[Effect]) -> None:
        """End what has missed a deadline of its leg."""
        for leg in self._timers.late_legs(now_s):
            self._blame(leg.member, now_s)
            what = "begin its answer" if leg.first_byte_s is None else "go on with its answer"
            message = f"the engine did not {what} in time"
            self.cut(leg.exchange, Outcome.ENGINE_TIMEOUT, message, now_s, effects)

    def evict(self, now_s: float, effects: list[Effect]) -> bool:
        """End a running request for one that starves, if there is such a pair. Then there may be room for what waits."""
        leg = self._eviction.victim(now_s)
        if leg is None:
            return False
        message = "the engines were full, and a request of a higher priority needed the place; try again later"
        self.cut(leg.exchange, Outcome.EVICTED, message, now_s, effects)
        return True

    def cancel(self, exchange: Exchange, now_s: float, effects: list[Effect]) -> Leg | None:
        """Take an exchange's leg from it, if it has one."""
        leg = exchange.leg
        if leg is not None:
            effects.append(CancelLeg(exchange.request.id, leg.id))
            self._close(leg, now_s)
        return leg

    def _try_again(self, leg: Leg, what: str, now_s: float, effects: list[Effect], *, status: int) -> None:
        """Place the exchange elsewhere if attempts and budget allow, else answer with what went wrong.

        What could not be prefilled is run whole if it may be, whatever attempts and budget say: nothing was computed for it so far.
        """
        exchange = leg.exchange
        exchange.tried.append(leg.member.endpoint.name)
        exchange.prefill = None
        prefilling = leg.stage is PREFILL
        could_not_fetch = leg.stage is DECODE and exchange.whole is not None
        if could_not_fetch and not self._placing.can_answer(exchange, now_s):
            exchange.tried.pop()  # nobody else is left, and computing it was not tried there
        running = 0 if status == 503 else len(self._exchanges)
        if (
            len(exchange.tried) < self._attempts
            and (not prefilling or self._placing.can_prefill(exchange, now_s))
            and self._budget.try_retry(now_s, running)
            and self.place(exchange, now_s, effects)
        ):
            self.retries += 1
            return
        if prefilling and self._aggregates:
            exchange.whole = Reason.PREFILL_FAILED
            if self.place(exchange, now_s, effects):
                return
        message = f"the engine failed before its answer began ({what}); attempts: {exchange.attempts}"
        self._exchanges.answer(exchange, status, Outcome.ENGINE_FAILED, message, now_s, effects)

    def _close(self, leg: Leg, now_s: float, *, finished: bool = False, there_tokens: int = 0) -> None:
        """Forget a leg: the counterpart of what `_start` has noted."""
        del self._legs[leg.id]
        self._timers.over(leg)
        self._eviction.over(leg)
        leg.exchange.leg = None
        member = leg.member
        member.end(leg, now_s)
        self._admission.reopen(member)
        if not finished:
            self._learning.cut_short(leg, now_s, there_tokens)
        if member.gone and self._members.tidy(member):  # its last legs, and late news of it, have taught us once more
            self._learning.forget(member.endpoint.name)
            self._admission.forget(member)

    # -- looking in

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        self._members.check(set(self._legs))
        if set(self._legs.values()) != {e.leg for e in self._exchanges.running()} - {None}:
            raise InternalError("the legs are not those of the exchanges")
        self._eviction.check(self._legs.values())
        self._timers.check(len(self._exchanges), len(self._legs))
