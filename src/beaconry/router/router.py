"""The composed machine: facts in, effects out, synchronously and without I/O.

Theory of operation. A request becomes an Exchange; it is placed on an endpoint as a Leg; a leg that fails before its first byte may be
followed by another one elsewhere, within the retry budget; every exchange ends exactly once, through `_end`. A fact about a leg that
is no longer known is late news and changes nothing. All waiting is bounded by three queues of equal deadlines (first byte, progress,
total); the earliest of them is asked for with WakeAt.
"""

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from msgspec.structs import replace

from beaconry.config.flow import Flow
from beaconry.config.gateway import Deadlines, Health, Retry
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.rates import RateBook
from beaconry.router.admission import WHY_DROPPED, Admission
from beaconry.router.caches import Caches, CachesStatistics
from beaconry.router.deadlines import NEVER, DeadlineQueue
from beaconry.router.effects import Answer, BreakStream, CancelLeg, Effect, Ended, StartLeg, TellAllowance, WakeAt
from beaconry.router.exchange import Exchange, Leg
from beaconry.router.facts import (
    AdaptersSeen,
    ClientLeft,
    Drain,
    EndpointGone,
    EndpointSeen,
    Fact,
    Fault,
    HealthChecked,
    KvCleared,
    KvEvents,
    KvSourceChanged,
    LegFailed,
    LegFinished,
    LegProgressed,
    LegStarted,
    LoadSampled,
    RequestArrived,
    RequestRefused,
    TenantsChanged,
    TimerDue,
)
from beaconry.router.learning import Learning
from beaconry.router.members import Members
from beaconry.router.retries import RetryBudget
from beaconry.router.statistics import ModelCounters, RouterStatistics
from beaconry.scheduling.scheduler import Scheduler
from beaconry.tenancy.allowances import Allowances
from beaconry.values.candidate import Forecast
from beaconry.values.errors import InternalError
from beaconry.values.outcome import Outcome
from beaconry.values.request import Request
from beaconry.wire.errors import no_such_model

BUSY_STATUSES = frozenset({429, 503})
"""An engine that answers so is full, not broken."""


class Router:
    """The life of all requests. `handle` is the only way in."""

    def __init__(  # noqa: PLR0913 its parts
        self,
        *,
        scheduler: Scheduler,
        caches: Caches,
        rates: RateBook,
        rng: Random,
        deadlines: Deadlines,
        retry: Retry,
        health: Health,
        forecasts: Forecasts | None = None,
        flow: Flow = Flow(),  # noqa: B008 frozen
        shortlist_above: int = 16,
    ) -> None:
        """`forecasts`: those that the scheduler asks, if it asks any."""
        self._scheduler = scheduler
        self._caches = caches
        self._learning = Learning(caches, rates, Forecasts(rates, idle=True) if forecasts is None else forecasts)
        self._admission = Admission(flow, rates)
        self._rng = rng
        self._flow = flow
        self._retry = retry
        self._members = Members(health, shortlist_above)
        self._exchanges: dict[str, Exchange] = {}
        """Requests that have not ended."""
        self._legs: dict[int, Leg] = {}
        """Legs that have not ended: exactly the `leg` of each exchange."""
        self._last_leg = 0
        self._first_byte: DeadlineQueue[int, Leg] = DeadlineQueue(deadlines.first_byte_s)
        """Streams without first byte. (The first byte of a whole answer is its last: only the total deadline bounds it.)"""
        self._progress: DeadlineQueue[int, Leg] = DeadlineQueue(deadlines.idle_s)
        """Legs with first byte."""
        self._total: DeadlineQueue[str, Exchange] = DeadlineQueue(deadlines.total_s)
        """All exchanges."""
        self._allowances = Allowances()
        self._drain_s: float | None = None
        """When what still runs is cut off; None while not draining."""
        self._wake_s = NEVER
        """The time last asked for."""
        self._budget = RetryBudget(retry.budget_ratio, retry.budget_floor)
        self._counters: dict[str, ModelCounters] = {}
        """By model or adapter; only those that some endpoint serves or served, so clients cannot grow it."""
        self._refused = 0
        self._retries = 0
        self._on: dict[type, Callable[[Any, float, list[Effect]], None]] = {
            RequestArrived: self._arrived,
            RequestRefused: self._refused_at_door,
            ClientLeft: self._client_left,
            LegStarted: self._leg_started,
            LegProgressed: self._leg_progressed,
            LegFinished: self._leg_finished,
            LegFailed: self._leg_failed,
            EndpointSeen: self._endpoint_seen,
            EndpointGone: self._endpoint_gone,
            HealthChecked: self._health_checked,
            LoadSampled: self._load_sampled,
            AdaptersSeen: self._adapters_seen,
            KvEvents: self._kv_events,
            KvCleared: self._kv_cleared,
            KvSourceChanged: self._kv_source_changed,
            TenantsChanged: self._tenants_changed,
            TimerDue: self._timer_due,
            Drain: self._drain,
        }

    def handle(self, fact: Fact, now_s: float) -> list[Effect]:
        """Take one fact at its time, return what is to be done, in order. Time never runs backwards."""
        effects: list[Effect] = []
        admission = self._admission
        if admission.silent_due_s <= now_s:
            admission.settle_silent(now_s)
        self._on[type(fact)](fact, now_s, effects)
        if admission.queue.waiting:
            self._move_queue(now_s, effects)
        return effects

    def tokens_per_byte(self, model: str) -> float:
        """How many prompt tokens a byte of text makes, as the engines' usage reports have shown."""
        return self._learning.tokens_per_byte(model)

    def models(self) -> tuple[str, ...]:
        """All models that some endpoint serves, in order of appearance."""
        return self._members.models()

    # -- requests

    def _arrived(self, fact: RequestArrived, now_s: float, effects: list[Effect]) -> None:
        request = fact.request
        serving = self._members.serving(request.model)
        if not serving and not (self._flow.hold_s > 0 and request.model in self._counters):
            self._refused += 1
            message = no_such_model(request.asked_model or request.model)
            effects.append(
                Answer(
                    request_id=request.id, status=404, outcome=Outcome.REFUSED, message=message, code="model_not_found"
                )
            )
            effects.append(_ended(request, Outcome.REFUSED, now_s))
            return
        if request.account is not None and not self._within_limits(request, now_s, effects):
            return
        exchange = Exchange(request)
        self._exchanges[request.id] = exchange
        self._counters[request.model].running += 1
        self._total.touch(request.id, exchange, now_s)
        self._wake_by(now_s + self._total.timeout_s, effects)
        self._budget.request(now_s)
        if self._drain_s is not None:
            self._answer(exchange, 503, Outcome.SHUTTING_DOWN, "this gateway is shutting down", now_s, effects)
        elif self._admission.passes(request, serving, now_s):
            if not self._place(exchange, now_s, effects):
                self._drop(exchange, Outcome.NO_ENDPOINT, now_s, effects)
        else:
            self._queue(exchange, now_s, effects)

    def _within_limits(self, request: Request, now_s: float, effects: list[Effect]) -> bool:
        """Charge a request to its tenant; if there is no room for it, answer so."""
        refusal = self._allowances.arrive(request, now_s)
        left = self._allowances.left(request.account, now_s)
        if left:
            effects.append(TellAllowance(request.id, left))
        if refusal is None:
            return True
        outcomes = self._counters[request.model].outcomes
        outcomes[Outcome.RATE_LIMITED] = outcomes.get(Outcome.RATE_LIMITED, 0) + 1
        effects.append(
            Answer(
                request_id=request.id,
                status=429,
                outcome=Outcome.RATE_LIMITED,
                message=refusal.message,
                code="rate_limit_exceeded",
                retry_after_s=refusal.retry_after_s,
            )
        )
        effects.append(_ended(request, Outcome.RATE_LIMITED, now_s))
        return False

    def _tenants_changed(self, fact: TenantsChanged, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        self._allowances.configure(fact.limits, now_s)

    def _refused_at_door(self, fact: RequestRefused, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        self._refused += 1

    # -- waiting and placing

    def _queue(self, exchange: Exchange, now_s: float, effects: list[Effect]) -> None:
        """Let a request wait for its turn, which may come before the router is done with this fact."""
        members = self._members.open_to(exchange.request.model, now_s)
        if not members and not self._flow.hold_s:
            self._drop(exchange, Outcome.NO_ENDPOINT, now_s, effects)
            return
        ticket, victims = self._admission.arrive(exchange.request, members, now_s)
        exchange.ticket = ticket
        for victim in victims:
            outcome = Outcome.QUEUE_FULL if victim is ticket else Outcome.DISPLACED
            self._drop(self._exchanges[victim.request.id], outcome, now_s, effects)
        if ticket.waiting:
            self._refused_late(exchange, (), now_s, effects)

    def _refused_late(
        self, exchange: Exchange, forecasts: Iterable[Forecast], now_s: float, effects: list[Effect]
    ) -> bool:
        """Tell the truth early to who would be served too late, if its band is to be told."""
        exchange.late_s = self._admission.late_s(exchange, forecasts, now_s)
        if exchange.late_s:
            self._drop(exchange, Outcome.OBJECTIVE_MISSED, now_s, effects)
        return exchange.late_s > 0.0

    def _move_queue(self, now_s: float, effects: list[Effect]) -> None:
        """Drop what has waited for too long, place whose turn it is, and see to it that the next expiry is noticed."""
        admission = self._admission
        for ticket in admission.queue.expired(now_s):
            served = self._members.open_to(ticket.request.model, now_s)
            outcome = Outcome.QUEUE_EXPIRED if served else Outcome.NO_ENDPOINT
            self._drop(self._exchanges[ticket.request.id], outcome, now_s, effects)
        for model in admission.queue.models():
            members = self._members.open_to(model, now_s)
            while (turn := admission.next(model, members, now_s)) is not None:
                admission.dispatch(turn, now_s)
                exchange = self._exchanges[turn.request.id]
                if not self._place(exchange, now_s, effects):
                    self._drop(exchange, Outcome.NO_ENDPOINT, now_s, effects)  # its LoRA adapter is gone
        self._wake_by(admission.due_s(), effects)

    def _drop(self, exchange: Exchange, outcome: Outcome, now_s: float, effects: list[Effect]) -> None:
        """Answer a request that is not to be served."""
        status = 503 if outcome is Outcome.NO_ENDPOINT else 429
        self._answer(exchange, status, outcome, WHY_DROPPED[outcome], now_s, effects)

    def _place(self, exchange: Exchange, now_s: float, effects: list[Effect]) -> bool:
        """Choose an endpoint and start a leg there, or refuse what would be too late anywhere. False if there is none."""
        request = exchange.request
        finding = self._caches.find(request)
        members = self._members.worth_judging(request, exchange.tried, finding, now_s, self._rng)
        if not members:
            return False
        candidates = [member.candidate(finding.view(member.endpoint), now_s) for member in members]
        decision = self._scheduler.schedule(request, candidates, now_s, self._rng)
        if decision.ranking.forecasts and self._refused_late(
            exchange, decision.ranking.forecasts.values(), now_s, effects
        ):
            return True
        ticket = exchange.ticket
        if ticket is not None and ticket.queued_s > 0 and not exchange.attempts:
            decision = replace(decision, queued_s=ticket.queued_s, waited_for=ticket.why.value)
        name = decision.endpoint.name
        candidate = decision.candidates[decision.ranking.winner]
        self._last_leg += 1
        placement = self._caches.approximate.routed(name, request.prefix) if request.prefix else None
        leg = Leg(self._last_leg, exchange, self._members[name], candidate, placement, now_s)
        exchange.leg = leg
        exchange.attempts += 1
        self._legs[leg.id] = leg
        leg.member.dispatch(leg)
        self._learning.dispatched(leg)
        predictions = decision.ranking.predictions
        self._admission.dispatched(leg, predictions[decision.ranking.winner] if predictions else None)
        if request.stream:
            self._first_byte.touch(leg.id, leg, now_s)
            self._wake_by(now_s + self._first_byte.timeout_s, effects)
        effects.append(StartLeg(request.id, leg.id, decision.endpoint, decision))
        return True

    def _client_left(self, fact: ClientLeft, now_s: float, effects: list[Effect]) -> None:
        exchange = self._exchanges.get(fact.request_id)
        if exchange is not None:
            self._cancel_leg(exchange, now_s, effects)
            self._end(exchange, Outcome.CLIENT_GONE, now_s, effects)

    # -- legs

    def _leg_started(self, fact: LegStarted, now_s: float, effects: list[Effect]) -> None:
        leg = self._legs.get(fact.leg)
        if leg is not None and leg.first_byte_s is None:
            self._first_byte_came(leg, now_s)
            self._progress.touch(leg.id, leg, now_s)
            self._wake_by(now_s + self._progress.timeout_s, effects)

    def _first_byte_came(self, leg: Leg, now_s: float) -> None:
        request, member = leg.exchange.request, leg.member
        leg.first_byte_s = now_s
        member.first_byte(leg)
        self._admission.reopen(member)
        leg.batch_at_first = len(member.decoding)
        leg.prefilled_mark = member.prefilled_tokens
        self._first_byte.discard(leg.id)
        if request.stream:
            self._learning.first_byte(leg)
            member.ttft.add(now_s - leg.dispatched_s)
            self._counters[request.model].ttft.add(now_s - request.arrived_s)

    def _leg_progressed(self, fact: LegProgressed, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        leg = self._legs.get(fact.leg)
        if leg is not None and leg.first_byte_s is not None:
            self._progress.touch(leg.id, leg, now_s)

    def _leg_finished(self, fact: LegFinished, now_s: float, effects: list[Effect]) -> None:
        leg = self._legs.get(fact.leg)
        if leg is None:
            return
        if leg.first_byte_s is None:
            self._first_byte_came(leg, now_s)
        assert leg.first_byte_s is not None
        batch_at_end = len(leg.member.decoding)
        self._close_leg(leg, now_s, finished=True)
        leg.member.succeeded()
        refused = fact.status >= 400
        if fact.usage is not None and not refused:
            self._counters[leg.exchange.request.model].count_usage(fact.usage, now_s - leg.first_byte_s)
            if leg.exchange.request.account is not None:
                self._allowances.reported(leg.exchange.request.id, fact.usage, now_s)
            if leg.exchange.ticket is not None:
                self._admission.settle(leg.exchange.ticket, fact.usage, now_s)
        self._learning.finished(leg, None if refused else fact.usage, batch_at_end, now_s)
        self._end(leg.exchange, Outcome.ENGINE_REFUSED if refused else Outcome.COMPLETED, now_s, effects)

    def _leg_failed(self, fact: LegFailed, now_s: float, effects: list[Effect]) -> None:
        leg = self._legs.get(fact.leg)
        if leg is None:
            return
        busy = fact.fault is Fault.STATUS and fact.status in BUSY_STATUSES
        if not busy:
            leg.member.failed_leg(now_s)
        self._close_leg(leg, now_s)
        what = (
            f"the engine answered {fact.status}" if fact.fault is Fault.STATUS else f"{fact.fault.value}: {fact.detail}"
        )
        if leg.first_byte_s is not None:
            self._break(
                leg.exchange, Outcome.STREAM_BROKEN, f"the engine failed while it answered ({what})", now_s, effects
            )
        else:
            self._try_again(leg, what, now_s, effects, status=503 if busy else 502)

    def _try_again(self, leg: Leg, what: str, now_s: float, effects: list[Effect], *, status: int) -> None:
        """Place the exchange elsewhere if attempts and budget allow, else answer with what went wrong."""
        exchange = leg.exchange
        exchange.tried.append(leg.member.endpoint.name)
        running = 0 if status == 503 else len(self._exchanges)
        if (
            exchange.attempts < self._retry.attempts
            and self._budget.try_retry(now_s, running)
            and self._place(exchange, now_s, effects)
        ):
            self._retries += 1
            return
        message = f"the engine failed before its answer began ({what}); attempts: {exchange.attempts}"
        self._answer(exchange, status, Outcome.ENGINE_FAILED, message, now_s, effects)

    def _close_leg(self, leg: Leg, now_s: float, *, finished: bool = False) -> None:
        """Forget a leg: the counterpart of what `_place` has noted."""
        del self._legs[leg.id]
        self._first_byte.discard(leg.id)
        self._progress.discard(leg.id)
        leg.exchange.leg = None
        member = leg.member
        member.end(leg)
        self._admission.reopen(member)
        if not finished:
            self._learning.cut_short(leg, now_s)
        if member.gone:
            self._members.tidy(member)

    def _cancel_leg(self, exchange: Exchange, now_s: float, effects: list[Effect]) -> Leg | None:
        leg = exchange.leg
        if leg is not None:
            effects.append(CancelLeg(exchange.request.id, leg.id))
            self._close_leg(leg, now_s)
        return leg

    # -- ends

    def _answer(
        self, exchange: Exchange, status: int, outcome: Outcome, message: str, now_s: float, effects: list[Effect]
    ) -> None:
        """End an exchange whose answer has not begun."""
        retry_after_s = 1.0 if status == 503 else None
        if exchange.late_s:
            retry_after_s = exchange.late_s
        elif status == 429 and exchange.ticket is not None:
            retry_after_s = self._admission.queue.retry_after_s(exchange.ticket, now_s)
        effects.append(
            Answer(
                request_id=exchange.request.id,
                status=status,
                outcome=outcome,
                message=message,
                code=outcome.value.replace("-", "_"),
                retry_after_s=retry_after_s,
            )
        )
        self._end(exchange, outcome, now_s, effects)

    def _break(self, exchange: Exchange, outcome: Outcome, message: str, now_s: float, effects: list[Effect]) -> None:
        """End an exchange whose answer has begun."""
        effects.append(
            BreakStream(
                request_id=exchange.request.id, outcome=outcome, message=message, code=outcome.value.replace("-", "_")
            )
        )
        self._end(exchange, outcome, now_s, effects)

    def _cut(self, exchange: Exchange, outcome: Outcome, message: str, now_s: float, effects: list[Effect]) -> None:
        """End an exchange wherever it stands."""
        leg = self._cancel_leg(exchange, now_s, effects)
        if leg is not None and leg.first_byte_s is not None:
            self._break(exchange, outcome, message, now_s, effects)
        else:
            status = 503 if outcome is Outcome.SHUTTING_DOWN else 504
            self._answer(exchange, status, outcome, message, now_s, effects)

    def _end(self, exchange: Exchange, outcome: Outcome, now_s: float, effects: list[Effect]) -> None:
        request = exchange.request
        if exchange.ticket is not None:
            self._admission.ended(exchange.ticket, outcome, now_s, dispatched=exchange.attempts > 0)
        del self._exchanges[request.id]
        self._total.discard(request.id)
        counters = self._counters[request.model]
        counters.running -= 1
        counters.outcomes[outcome] = counters.outcomes.get(outcome, 0) + 1
        counters.e2e.add(now_s - request.arrived_s)
        if request.account is not None:
            self._allowances.end(request.id, outcome, exchange.attempts, now_s)
        effects.append(_ended(request, outcome, now_s, exchange.attempts))

    # -- time

    def _timer_due(self, fact: TimerDue, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        self._wake_s = NEVER
        for leg in [*self._first_byte.take_due(now_s), *self._progress.take_due(now_s)]:
            leg.member.failed_leg(now_s)
            what = "begin its answer" if leg.first_byte_s is None else "go on with its answer"
            self._cut(leg.exchange, Outcome.ENGINE_TIMEOUT, f"the engine did not {what} in time", now_s, effects)
        for exchange in self._total.take_due(now_s):
            self._cut(
                exchange, Outcome.ENGINE_TIMEOUT, "the request took longer than this gateway allows", now_s, effects
            )
        if self._drain_s is not None and now_s >= self._drain_s:
            self._drain_s = NEVER
            for exchange in list(self._exchanges.values()):
                self._cut(exchange, Outcome.SHUTTING_DOWN, "this gateway is shutting down", now_s, effects)
        due_s = min(self._first_byte.due_s(), self._progress.due_s(), self._total.due_s())
        self._wake_by(due_s if self._drain_s is None else min(due_s, self._drain_s), effects)

    def _drain(self, fact: Drain, now_s: float, effects: list[Effect]) -> None:
        self._drain_s = max(fact.deadline_s, now_s)
        self._wake_by(self._drain_s, effects)

    def _wake_by(self, due_s: float, effects: list[Effect]) -> None:
        """Ask to be woken at `due_s`, unless that is asked for already or earlier."""
        if due_s < self._wake_s:
            self._wake_s = due_s
            effects.append(WakeAt(due_s))

    # -- endpoints

    def _endpoint_seen(self, fact: EndpointSeen, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        endpoint = fact.endpoint
        member = self._members.get(endpoint.name)
        if member is not None and (member.endpoint.address != endpoint.address or member.gone):
            self._learning.forget(endpoint.name)
            member.adapters = ()
        self._admission.reopen(self._members.seen(endpoint))
        self._counters.setdefault(endpoint.model, ModelCounters())

    def _endpoint_gone(self, fact: EndpointGone, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        member = self._members.get(fact.name)
        if member is None:
            return
        self._admission.forget(member)
        self._learning.forget(fact.name)
        self._members.lose(member)

    def _health_checked(self, fact: HealthChecked, now_s: float, effects: list[Effect]) -> None:
        member = self._members.get(fact.name)
        if member is None:
            return
        failed = member.checked(healthy=fact.healthy)
        self._admission.reopen(member)
        if not failed:
            return
        self._admission.forget(member)
        # It has just become unhealthy: what waits there for a first byte is moved; what streams has its own deadline.
        self._learning.forget(fact.name)
        for leg in [leg for leg in self._legs.values() if leg.member is member and leg.first_byte_s is None]:
            self._cancel_leg(leg.exchange, now_s, effects)
            self._try_again(leg, "it stopped answering health checks", now_s, effects, status=502)

    def _load_sampled(self, fact: LoadSampled, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        member = self._members.get(fact.name)
        if member is not None:
            member.sample = fact.sample
            self._learning.sampled(member.endpoint, fact.sample)
            self._admission.reopen(member)

    def _adapters_seen(self, fact: AdaptersSeen, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        member = self._members.get(fact.name)
        if member is not None:
            self._members.adapt(member, tuple(fact.adapters))
            for model in self._members.models():
                self._counters.setdefault(model, ModelCounters())

    # -- engines' caches. News of an endpoint that is not known (any more) would be held for ever: it is dropped.

    def _kv_events(self, fact: KvEvents, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        if fact.name in self._members:
            self._caches.exact.apply(fact.name, fact.rank, fact.events)

    def _kv_cleared(self, fact: KvCleared, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        self._caches.exact.clear_rank(fact.name, fact.rank)

    def _kv_source_changed(self, fact: KvSourceChanged, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        if fact.name in self._members:
            self._caches.changed(fact.name, fact.rank, fact.state)

    # -- looking in

    def statistics(self, now_s: float) -> RouterStatistics:
        """Everything counted, as it is now."""
        return RouterStatistics(
            at_s=now_s,
            endpoints=tuple(
                member.statistics(now_s, self._caches.state(name), exact=self._caches.is_known(name))
                for name, member in self._members.items()
            ),
            models={model: counters.snapshot() for model, counters in self._counters.items()},
            tenants=self._allowances.statistics(),
            refused=self._refused,
            retries=self._retries,
            in_flight=len(self._exchanges),
            draining=self._drain_s is not None,
            predictions=self._learning.statistics(),
            flow=self._admission.statistics(self._members, now_s),
            plugin_failures={name: failures.count for name, failures in self._scheduler.failures().items()},
        )

    def cache_statistics(self) -> CachesStatistics:
        """What is known of the engines' caches, for a scrape."""
        return self._caches.statistics()

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        self._allowances.check()
        self._members.check(set(self._legs))
        waiting = [e for e in self._exchanges.values() if e.ticket is not None and e.ticket.waiting]
        placed = {e.leg for e in self._exchanges.values()} - {None}
        if set(self._legs.values()) != placed or len(placed) + len(waiting) != len(self._exchanges):
            raise InternalError("not every exchange either waits or has exactly one leg")
        if any(e.leg is not None for e in waiting):
            raise InternalError("an exchange that waits has a leg")
        self._admission.check(len(waiting))
        running = sum(counters.running for counters in self._counters.values())
        if running != len(self._exchanges) or running != len(self._total):
            raise InternalError(f"{running} requests are counted as running, {len(self._exchanges)} are")
        if len(self._progress) + len(self._first_byte) > len(self._legs):
            raise InternalError("a deadline outlives its leg")
        self._learning.check()
        self._caches.approximate.check()
        self._caches.exact.check()


def _ended(request: Request, outcome: Outcome, now_s: float, attempts: int = 0) -> Ended:
    return Ended(request_id=request.id, outcome=outcome, attempts=attempts, e2e_s=now_s - request.arrived_s)
