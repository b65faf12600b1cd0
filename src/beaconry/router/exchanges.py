"""The requests that have not ended, and how each of them ends: exactly once, through `end`."""

from collections.abc import Iterable

from beaconry.flowcontrol.control import MAX_RETRY_AFTER_S
from beaconry.flowcontrol.ticket import Ticket
from beaconry.router.admission import Admission
from beaconry.router.effects import Answer, BreakStream, Effect, Ended
from beaconry.router.exchange import Exchange
from beaconry.router.statistics import ModelCounters
from beaconry.router.timers import Timers
from beaconry.tenancy.allowances import Allowances
from beaconry.values.candidate import Forecast
from beaconry.values.errors import InternalError
from beaconry.values.outcome import Outcome
from beaconry.values.request import Request

_WHY_DROPPED = {
    Outcome.NO_ENDPOINT: "no engine can serve this model at present",
    Outcome.QUEUE_FULL: "too many requests are waiting; try again later",
    Outcome.DISPLACED: "too many requests are waiting, and others went first; try again later",
    Outcome.OBJECTIVE_MISSED: "the first token would come after this request's objective; try again later",
    Outcome.QUEUE_EXPIRED: "the engines had no room for this request in time; try again later",
}
"""What callers are told who are not served."""


class Exchanges:
    """The registry, and what is counted by model and tenant."""

    def __init__(self, admission: Admission, timers: Timers) -> None:
        self.allowances = Allowances()
        self.counters: dict[str, ModelCounters] = {}
        """By model or adapter; only those that some endpoint serves or served, so clients cannot grow it."""
        self.admission = admission
        self.timers = timers
        self._running: dict[str, Exchange] = {}
        """By request."""

    def begin(self, request: Request, now_s: float) -> Exchange:
        """A request is let in."""
        exchange = Exchange(request)
        self._running[request.id] = exchange
        self.counters[request.model].running += 1
        self.timers.arrived(exchange, now_s)
        return exchange

    def get(self, request_id: str) -> Exchange | None:
        """That of a request, unless it has ended."""
        return self._running.get(request_id)

    def __getitem__(self, request_id: str) -> Exchange:
        return self._running[request_id]

    def __len__(self) -> int:
        return len(self._running)

    def running(self) -> list[Exchange]:
        """All of them."""
        return list(self._running.values())

    # -- ends

    def refused_late(
        self, exchange: Exchange, forecasts: Iterable[Forecast], now_s: float, effects: list[Effect]
    ) -> bool:
        """Tell the truth early to who would be served too late, if its band is to be told."""
        exchange.late_s = self.admission.late_s(exchange, forecasts, now_s)
        if exchange.late_s:
            self.drop(exchange, Outcome.OBJECTIVE_MISSED, now_s, effects)
        return exchange.late_s > 0.0

    def drop(self, exchange: Exchange, outcome: Outcome, now_s: float, effects: list[Effect]) -> None:
        """Answer a request that is not to be served."""
        status = 503 if outcome is Outcome.NO_ENDPOINT else 429
        self.answer(exchange, status, outcome, _WHY_DROPPED[outcome], now_s, effects)

    def displace(self, tickets: Iterable[Ticket], now_s: float, effects: list[Effect]) -> None:
        """Answer requests that had to leave the queue for others."""
        for ticket in tickets:
            self.drop(self._running[ticket.request.id], Outcome.DISPLACED, now_s, effects)

    def answer(
        self, exchange: Exchange, status: int, outcome: Outcome, message: str, now_s: float, effects: list[Effect]
    ) -> None:
        """End an exchange whose answer has not begun."""
        retry_after_s = 1.0 if status in (429, 503) else None
        if exchange.late_s:
            retry_after_s = min(exchange.late_s, MAX_RETRY_AFTER_S)
        elif status == 429 and exchange.ticket is not None:
            retry_after_s = self.admission.queue.retry_after_s(exchange.ticket, now_s)
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
        self.end(exchange, outcome, now_s, effects)

    def break_off(
        self, exchange: Exchange, outcome: Outcome, message: str, now_s: float, effects: list[Effect]
    ) -> None:
        """End an exchange whose answer has begun."""
        effects.append(
            BreakStream(
                request_id=exchange.request.id, outcome=outcome, message=message, code=outcome.value.replace("-", "_")
            )
        )
        self.end(exchange, outcome, now_s, effects)

    def end(self, exchange: Exchange, outcome: Outcome, now_s: float, effects: list[Effect]) -> None:
        """It is over: forget and count it."""
        request = exchange.request
        if exchange.ticket is not None:
            self.admission.ended(exchange.ticket, outcome, now_s, dispatched=exchange.attempts > 0)
        del self._running[request.id]
        self.timers.ended(exchange)
        counters = self.counters[request.model]
        counters.running -= 1
        counters.outcomes[outcome] = counters.outcomes.get(outcome, 0) + 1
        counters.e2e.add(now_s - request.arrived_s)
        if request.account is not None:
            self.allowances.end(request.id, outcome, exchange.attempts, now_s)
        effects.append(ended(request, outcome, now_s, exchange.attempts))

    # -- looking in

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        self.allowances.check()
        running = sum(counters.running for counters in self.counters.values())
        if running != len(self._running):
            raise InternalError(f"{running} requests are counted as running, {len(self._running)} are")
        waiting = [e for e in self._running.values() if e.ticket is not None and e.ticket.waiting]
        if any(e.leg is not None for e in waiting):
            raise InternalError("an exchange that waits has a leg")
        if len(waiting) + sum(e.leg is not None for e in self._running.values()) != len(self._running):
            raise InternalError("not every exchange either waits or has a leg")
        self.admission.check(len(waiting))


def ended(request: Request, outcome: Outcome, now_s: float, attempts: int = 0) -> Ended:
    """The word of a request's end."""
    return Ended(request_id=request.id, outcome=outcome, attempts=attempts, e2e_s=now_s - request.arrived_s)
