"""All waiting is bounded: three queues of equal deadlines, and one wake-up for the earliest of them."""

from beaconry.config.gateway import Deadlines
from beaconry.router.deadlines import NEVER, DeadlineQueue
from beaconry.router.effects import Effect, WakeAt
from beaconry.router.exchange import Exchange, Leg
from beaconry.values.errors import InternalError

EARLY_S = 0.001
"""Timers of event loops may go off so much before their time."""


class Timers:
    """The deadlines of legs and exchanges."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._first_byte: DeadlineQueue[int, Leg] = DeadlineQueue(deadlines.first_byte_s)
        """Legs without first byte, of streams. (The first byte of a whole answer is its last: only the total deadline bounds it.)"""
        self._progress: DeadlineQueue[int, Leg] = DeadlineQueue(deadlines.idle_s)
        """Legs with first byte."""
        self._total: DeadlineQueue[str, Exchange] = DeadlineQueue(deadlines.total_s)
        """All exchanges."""
        self.wake_s = NEVER
        """The earliest time at which something is due, or was when it was noted."""
        self.asked_s = NEVER
        """What the driver was last asked for: after each fact the same."""

    def arrived(self, exchange: Exchange, now_s: float) -> None:
        """A request is to end in time."""
        self.wake_by(self._total.touch(exchange.request.id, exchange, now_s))

    def ended(self, exchange: Exchange) -> None:
        """It has."""
        self._total.discard(exchange.request.id)

    def sent(self, leg: Leg, now_s: float) -> None:
        """A leg is to have its first byte in time."""
        self.wake_by(self._first_byte.touch(leg.id, leg, now_s))

    def began(self, leg: Leg) -> None:
        """It has; what it owes next shows with its progress."""
        self._first_byte.discard(leg.id)

    def progressed(self, leg: Leg, now_s: float) -> None:
        """A leg is to go on in time."""
        self.wake_by(self._progress.touch(leg.id, leg, now_s))

    def over(self, leg: Leg) -> None:
        """A leg owes nothing any more."""
        (self._first_byte if leg.first_byte_s is None else self._progress).discard(leg.id)

    def late_legs(self, now_s: float) -> list[Leg]:
        """Take those that should have begun or gone on by now."""
        return [*self._first_byte.take_due(now_s), *self._progress.take_due(now_s)]

    def late_exchanges(self, now_s: float) -> list[Exchange]:
        """Take those that should have ended by now."""
        return self._total.take_due(now_s)

    def wake_by(self, due_s: float) -> None:
        """Something is due at `due_s`."""
        if due_s < self.wake_s:
            self.wake_s = due_s

    def ask(self, effects: list[Effect]) -> None:
        """Ask for what a fact has left due, once: of several times noted for it only the earliest matters."""
        self.asked_s = self.wake_s
        effects.append(WakeAt(self.asked_s))

    def woken(self, now_s: float) -> bool:
        """A time asked for has come. False if it is one of those before the last: answering each by asking anew would multiply them."""
        if now_s < self.asked_s - EARLY_S:
            return False
        self.wake_s = self.asked_s = NEVER
        return True

    def wake_again(self, due_s: float) -> None:
        """Note the earliest of all deadlines and `due_s`."""
        self.wake_by(min(due_s, self._earliest_s()))

    def _earliest_s(self) -> float:
        return min(self._first_byte.due_s(), self._progress.due_s(), self._total.due_s())

    def check(self, exchanges: int, legs: int) -> None:
        """Raise InternalError if a deadline outlives what it is for, or would pass unnoticed."""
        if len(self._total) != exchanges:
            raise InternalError(f"{len(self._total)} requests have a deadline, {exchanges} are running")
        if len(self._progress) + len(self._first_byte) > legs:
            raise InternalError("a deadline outlives its leg")
        if self._earliest_s() < self.asked_s:
            raise InternalError(f"something is due at {self._earliest_s()}, and asked for is {self.asked_s}")
