"""The composed machine: facts in, effects out, synchronously and without I/O.

Theory of operation. A request becomes an Exchange; it is placed on an endpoint as a Leg; a leg that fails before its first byte may be
followed by another one elsewhere; every exchange ends exactly once. The parts, in the order in which a request meets them: `admission.py`
(when), `placing.py` (where), `legs.py` (what happens there), `exchanges.py` (how it ends), `timers.py` (until when); `news.py` is about
endpoints. This file knows the facts, and what waits.
"""

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from beaconry.config.gateway import GatewayConfig
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.rates import RateBook
from beaconry.router.admission import Admission, Line
from beaconry.router.caches import Caches, CachesStatistics
from beaconry.router.deadlines import NEVER
from beaconry.router.effects import Answer, Effect, TellAllowance
from beaconry.router.eviction import Eviction
from beaconry.router.exchange import Exchange
from beaconry.router.exchanges import Exchanges, ended
from beaconry.router.facts import (
    AdaptersSeen,
    ClientLeft,
    Drain,
    EndpointGone,
    EndpointSeen,
    Fact,
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
from beaconry.router.legs import Legs
from beaconry.router.member import Member
from beaconry.router.members import Members
from beaconry.router.news import EndpointNews
from beaconry.router.placing import Placing, Planned
from beaconry.router.statistics import ModelCounters, RouterStatistics
from beaconry.router.timers import Timers
from beaconry.scheduling.scheduler import Scheduler
from beaconry.values.outcome import Outcome
from beaconry.values.request import Request
from beaconry.values.stage import Stage
from beaconry.wire.errors import no_such_model


class Router:
    """The life of all requests. `handle` is the only way in."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        scheduler: Scheduler,
        caches: Caches,
        rates: RateBook,
        rng: Random,
        forecasts: Forecasts | None = None,
    ) -> None:
        """`forecasts`: those that the scheduler asks, if it asks any. Of `config` the sections about serving matter here."""
        self._flow = config.flow
        self._caches = caches
        self._members = Members(config.health, config.shortlist_above)
        self._learning = Learning(caches, rates, forecasts or Forecasts(rates, config.forecasts.coverage, idle=True))
        self._admission = Admission(config.flow, rates, caches.approximate)
        self._timers = Timers(config.deadlines)
        self._exchanges = Exchanges(self._admission, self._timers)
        for name, model in config.models.items():
            for served in (target.model for target in model.targets) if model.targets else (name,):
                self._exchanges.counters.setdefault(
                    served, ModelCounters()
                )  # known, so held while nobody serves it yet
        self._placing = Placing(scheduler, caches, self._members, self._admission, rng, config.disaggregation)
        self._eviction = Eviction(config.flow, self._admission, self._members)
        self._legs = Legs(
            placing=self._placing,
            exchanges=self._exchanges,
            learning=self._learning,
            eviction=self._eviction,
            config=config,
        )
        self._refused = 0
        self._drain_s: float | None = None
        """When what still runs is cut off; None while not draining."""
        news = EndpointNews(self._members, caches, self._learning, self._admission, self._exchanges, self._legs)
        self._on: dict[type, Callable[[Any, float, list[Effect]], None]] = {
            RequestArrived: self._arrived,
            RequestRefused: self._refused_at_door,
            ClientLeft: self._client_left,
            LegStarted: self._legs.started,
            LegProgressed: self._legs.progressed,
            LegFinished: self._legs.finished,
            LegFailed: self._legs.failed,
            EndpointSeen: news.seen,
            EndpointGone: news.gone,
            HealthChecked: news.health_checked,
            LoadSampled: news.load_sampled,
            AdaptersSeen: news.adapters_seen,
            KvEvents: news.kv_events,
            KvCleared: news.kv_cleared,
            KvSourceChanged: news.kv_source_changed,
            TenantsChanged: self._tenants_changed,
            TimerDue: self._timer_due,
            Drain: self._drain,
        }

    def handle(self, fact: Fact, now_s: float) -> list[Effect]:
        """Take one fact at its time, return what is to be done, in order. Time never runs backwards."""
        effects: list[Effect] = []
        admission, timers = self._admission, self._timers
        if admission.silent_due_s <= now_s:
            admission.settle_silent(now_s)
        self._on[type(fact)](fact, now_s, effects)
        if admission.queue.waiting:
            self._move_queue(now_s, effects)
        if self._eviction.enabled:
            self._relieve(now_s, effects)
        if timers.wake_s < timers.asked_s:
            timers.ask(effects)
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
        if not (serving or self._members.serves(request.model)) and not (
            self._flow.hold_s > 0 and request.model in self._exchanges.counters
        ):
            self._refused += 1
            message = no_such_model(request.asked_model or request.model)
            effects.append(
                Answer(
                    request_id=request.id, status=404, outcome=Outcome.REFUSED, message=message, code="model_not_found"
                )
            )
            effects.append(ended(request, Outcome.REFUSED, now_s))
            return
        if request.account is not None and not self._within_limits(request, now_s, effects):
            return
        exchange = self._exchanges.begin(request, now_s)
        self._legs.request(now_s)
        if self._drain_s is not None:
            message = "this gateway is shutting down"
            self._exchanges.answer(exchange, 503, Outcome.SHUTTING_DOWN, message, now_s, effects)
            return
        planned: Planned | None = None
        prefill: Sequence[Member] = ()
        if self._members.splits(request.model):
            planned = self._placing.plan(exchange, now_s)
            if planned.plan.splits:
                prefill = self._members.open_to(request.model, now_s, stage=Stage.PREFILL)
        if self._admission.passes(request, serving, now_s, prefill):
            self._place(exchange, now_s, effects, planned)
        else:
            self._queue(exchange, prefill, now_s, effects)

    def _within_limits(self, request: Request, now_s: float, effects: list[Effect]) -> bool:
        """Charge a request to its tenant; if there is no room for it, answer so."""
        refusal = self._exchanges.allowances.arrive(request, now_s)
        left = self._exchanges.allowances.left(request.account, now_s)
        if left:
            effects.append(TellAllowance(request.id, left))
        if refusal is None:
            return True
        outcomes = self._exchanges.counters[request.model].outcomes
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
        effects.append(ended(request, Outcome.RATE_LIMITED, now_s))
        return False

    def _tenants_changed(self, fact: TenantsChanged, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        self._exchanges.allowances.configure(fact.limits, now_s)

    def _refused_at_door(self, fact: RequestRefused, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        self._refused += 1

    def _client_left(self, fact: ClientLeft, now_s: float, effects: list[Effect]) -> None:
        exchange = self._exchanges.get(fact.request_id)
        if exchange is not None:
            self._legs.cancel(exchange, now_s, effects)
            self._exchanges.end(exchange, Outcome.CLIENT_GONE, now_s, effects)

    # -- waiting

    def _place(self, exchange: Exchange, now_s: float, effects: list[Effect], planned: Planned | None = None) -> None:
        if not self._legs.place(exchange, now_s, effects, planned):
            self._exchanges.drop(exchange, Outcome.NO_ENDPOINT, now_s, effects)

    def _queue(self, exchange: Exchange, prefill: Sequence[Member], now_s: float, effects: list[Effect]) -> None:
        """Let a request wait for its turn, which may come before the router is done with this fact."""
        members = self._members.open_to(exchange.request.model, now_s)
        if not members and not self._flow.hold_s:
            self._exchanges.drop(exchange, Outcome.NO_ENDPOINT, now_s, effects)
            return
        ticket, victims = self._admission.arrive(exchange.request, members, now_s, prefill)
        exchange.ticket = ticket
        if victims == [ticket]:
            self._exchanges.drop(exchange, Outcome.QUEUE_FULL, now_s, effects)
        else:
            self._exchanges.displace(victims, now_s, effects)
        if ticket.waiting and ticket.why:  # else it is its turn at once, whatever the pace has been
            self._exchanges.refused_late(exchange, (), now_s, effects)

    def _move_queue(self, now_s: float, effects: list[Effect]) -> None:
        """Drop what has waited for too long, place whose turn it is, and see to it that the next expiry is noticed."""
        admission = self._admission
        for ticket in admission.queue.expired(now_s):
            served = self._members.open_to(ticket.request.model, now_s)
            outcome = Outcome.QUEUE_EXPIRED if served else Outcome.NO_ENDPOINT
            self._exchanges.drop(self._exchanges[ticket.request.id], outcome, now_s, effects)
        recalls = -1
        while recalls != self._legs.recalls:  # what is taken back may wait where nobody did
            recalls = self._legs.recalls
            for lines in self._lines(now_s):
                while (turn := admission.first(lines, now_s)) is not None:
                    admission.dispatch(turn, now_s)
                    self._place(self._exchanges[turn.request.id], now_s, effects)
        self._timers.wake_by(admission.due_s())

    def _lines(self, now_s: float) -> Iterable[list[Line]]:
        """What waits, together that for which the same engines may be open."""
        lines: dict[str, list[Line]] = {}
        for model in self._admission.models():
            members = self._members.open_to(model, now_s)
            if members:
                prefill = self._members.open_to(model, now_s, stage=Stage.PREFILL)
                lines.setdefault(members[0].endpoint.model, []).append(Line(model, members, prefill))
        return lines.values()

    def _relieve(self, now_s: float, effects: list[Effect]) -> None:
        """End what may be shed for what starves, and see to it that the next one to starve is noticed."""
        if self._legs.evict(now_s, effects) and self._admission.queue.waiting:
            self._move_queue(now_s, effects)
        due_s = self._eviction.due_s()
        if due_s < NEVER:
            self._timers.wake_by(due_s)

    # -- time

    def _timer_due(self, fact: TimerDue, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        if not self._timers.woken(now_s):
            return
        self._legs.cut_late(now_s, effects)
        for exchange in self._timers.late_exchanges(now_s):
            message = "the request took longer than this gateway allows"
            self._legs.cut(exchange, Outcome.ENGINE_TIMEOUT, message, now_s, effects)
        if self._drain_s is not None and now_s >= self._drain_s:
            self._drain_s = NEVER
            for exchange in self._exchanges.running():
                message = "this gateway is shutting down"
                self._legs.cut(exchange, Outcome.SHUTTING_DOWN, message, now_s, effects)
        self._timers.wake_again(NEVER if self._drain_s is None else self._drain_s)

    def _drain(self, fact: Drain, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        self._drain_s = max(fact.deadline_s, now_s)
        self._timers.wake_by(self._drain_s)

    # -- looking in

    def statistics(self, now_s: float) -> RouterStatistics:
        """Everything counted, as it is now."""
        return RouterStatistics(
            at_s=now_s,
            endpoints=tuple(
                member.statistics(now_s, self._caches.state(name), exact=self._caches.is_known(name))
                for name, member in self._members.items()
            ),
            models={model: counters.snapshot() for model, counters in self._exchanges.counters.items()},
            tenants=self._exchanges.allowances.statistics(),
            refused=self._refused,
            retries=self._legs.retries,
            recalls=self._legs.recalls,
            in_flight=len(self._exchanges),
            draining=self._drain_s is not None,
            predictions=self._learning.statistics(),
            flow=self._admission.statistics(self._members, now_s),
            plugin_failures={name: failures.count for name, failures in self._placing.failures().items()},
        )

    def cache_statistics(self) -> CachesStatistics:
        """What is known of the engines' caches, for a scrape."""
        return self._caches.statistics()

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        self._exchanges.check()
        self._legs.check()
        self._learning.check()
        self._caches.approximate.check()
        self._caches.exact.check()
