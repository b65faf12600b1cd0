"""One endpoint as the router knows it: what is in flight there, and whether it may get more.

Health has two sources. Active checks make it unhealthy after several failures and healthy again after one success. Legs that fail in
a row eject it for a while that doubles each time; then one request probes it, and its success ends the ejection.
"""

from enum import StrEnum
from math import inf
from typing import Protocol

from msgspec import Struct

from beaconry.config.gateway import Health
from beaconry.router.caches import View
from beaconry.router.statistics import LATENCY_BOUNDS_S, EndpointStatistics, Histogram
from beaconry.values.candidate import Candidate
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.errors import InternalError

_ROUNDING = 1e-3
_DOUBLINGS = 32
"""Of the first ejection, at most: who fails for days is ejected more often than a float can be doubled."""


class InFlight(Protocol):
    """What an endpoint's ledger needs to know of a leg."""

    id: int
    dispatched_s: float
    prompt_tokens: int
    uncached_tokens: int
    loose_tokens: float
    fresh_tokens: int
    block_tokens: float
    began_s: float

    def gives_way(self, priority: int) -> bool:
        """It is taken back for a request of this priority."""
        ...


class Ahead(Struct, frozen=True, gc=False):
    """What a request meets at an endpoint once those have been taken back that give way to it."""

    prefilling: int
    """Requests in prefill that stay; the following are theirs."""
    prefill_tokens: int
    oldest_wait_s: float
    freed_requests: int
    """Those that give way."""
    freed_tokens: int
    """KV tokens that they leave."""


class State(StrEnum):
    """Whether an endpoint may get requests."""

    READY = "ready"
    DRAINING = "draining"
    EJECTED = "ejected"
    PROBING = "probing"
    UNHEALTHY = "unhealthy"


class Member:
    """The ledger and the health of one endpoint."""

    def __init__(self, endpoint: Endpoint, knobs: Health) -> None:
        self.endpoint = endpoint
        self._knobs = knobs
        self.gone = False
        """Discovery no longer names it; it stays until its last leg has ended."""
        self.ready = not endpoint.draining
        """Neither gone nor draining, unhealthy or ejected: it may get any request, whatever the time."""
        self.adapters: tuple[str, ...] = ()
        """Names of the LoRA adapters that it serves beside its model."""
        self.sample: LoadSample | None = None
        self.prefilling: dict[int, InFlight] = {}
        """Legs without first byte, oldest first."""
        self.decoding: dict[int, InFlight] = {}
        """Legs with first byte and without end, oldest first. A leg is in exactly one of the two."""
        self.oldest_s = inf
        """When the first of `prefilling` was dispatched; infinity while there is none."""
        self.in_flight = 0
        """How many are in both."""
        self.prefill_tokens = 0
        """Sum of `uncached_tokens` over `prefilling`."""
        self.context_tokens = 0
        """Sum of `prompt_tokens` over both."""
        self.loose_tokens = 0.0
        """Sum of `loose_tokens` over both: what of the prompts the index does not count in blocks."""
        self.block_tokens = 1.0
        """Tokens per block in the index: as in the latest prompt sent."""
        self.turn_s = 0.0
        """Since when the oldest leg in prefill may have been computed."""
        self.began_s = 0.0
        """Sum of `began_s` over `decoding`; exactly 0 while there is none."""
        self.changes = 0
        """Of what is in flight: a leg was sent, has got its first byte, or has ended."""
        self.ended = 0
        """Legs that have ended, in whichever way."""
        self.prefilled_tokens = 0
        """Sum of `uncached_tokens` over all legs that ever got their first byte: a clock that advances with prefill work."""
        self._failed_checks = 0
        self._unhealthy = False
        self._failures = 0
        """Failed legs in a row."""
        self._ejections = 0
        """Ejections without a success since: the exponent of the next one."""
        self.ejected_until_s = 0.0
        """When the latest ejection ends, or has ended."""
        self.dispatched = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.predicted_cached_tokens = self.output_tokens = 0
        self.ttft = Histogram(LATENCY_BOUNDS_S)

    # -- may it serve?

    def state(self, now_s: float) -> State:
        """The present state."""
        if self.gone or self.endpoint.draining:
            return State.DRAINING
        if self._unhealthy:
            return State.UNHEALTHY
        if self._ejections and now_s < self.ejected_until_s:
            return State.EJECTED
        return State.PROBING if self._ejections else State.READY

    def admits(self, now_s: float) -> bool:
        """It may get a request now. A probing endpoint takes one at a time."""
        return self.ready or (self.state(now_s) is State.PROBING and not self.prefilling)

    @property
    def last_resort(self) -> bool:
        """Ejected at most: better than refusing when no other is left."""
        return not (self.gone or self.endpoint.draining or self._unhealthy)

    def seen(self, endpoint: Endpoint) -> None:
        """Discovery names it, perhaps with news."""
        self.endpoint = endpoint
        self.gone = False
        self._judge()

    def lost(self) -> None:
        """Discovery no longer names it."""
        self.gone = True
        self._judge()

    def checked(self, *, healthy: bool) -> bool:
        """Note an active check. True if the endpoint has just become unhealthy."""
        if healthy:
            self._failed_checks = 0
            self._unhealthy = False
            self._judge()
            return False
        self._failed_checks += 1
        if self._unhealthy or self._failed_checks < self._knobs.unhealthy_after:
            return False
        self._unhealthy = True
        self._judge()
        return True

    def succeeded(self) -> None:
        """Note a leg that ended well."""
        if self._failures or self._ejections:
            self._failures = self._ejections = 0
            self._judge()

    def failed_leg(self, now_s: float) -> None:
        """Note a leg that failed by the endpoint's fault."""
        self.failed += 1
        self._failures += 1
        probing = self._ejections and now_s >= self.ejected_until_s
        if probing or (not self._ejections and self._failures >= self._knobs.eject_after):
            doublings = min(self._ejections, _DOUBLINGS)
            pause_s = min(self._knobs.eject_base_s * 2.0**doublings, self._knobs.eject_max_s)
            self.ejected_until_s = now_s + pause_s
            self._ejections += 1
            self._judge()

    def _judge(self) -> None:
        self.ready = not (self._ejections or self._unhealthy or self.gone or self.endpoint.draining)

    # -- what is in flight?

    def dispatch(self, leg: InFlight) -> None:
        """A leg is sent here."""
        if not self.prefilling:
            self.oldest_s = self.turn_s = leg.dispatched_s
        self.prefilling[leg.id] = leg
        self.changes += 1
        self.in_flight += 1
        self.block_tokens = leg.block_tokens
        self.prefill_tokens += leg.uncached_tokens
        self.context_tokens += leg.prompt_tokens
        self.loose_tokens += leg.loose_tokens
        self.dispatched += 1

    def first_byte(self, leg: InFlight, now_s: float) -> None:
        """A leg's prefill is over; of one whose first byte does not tell, it is said ahead, and the second time changes nothing."""
        if self.prefilling.pop(leg.id, None) is None:
            return
        self._left_prefill(leg, now_s)
        self.decoding[leg.id] = leg
        self.changes += 1
        leg.began_s = now_s
        self.began_s += now_s
        self.prefilled_tokens += leg.uncached_tokens

    def end(self, leg: InFlight, now_s: float) -> None:
        """A leg is over, in whichever way."""
        self.changes += 1
        self.in_flight -= 1
        self.context_tokens -= leg.prompt_tokens
        self.loose_tokens -= leg.loose_tokens
        self.ended += 1
        if self.prefilling.pop(leg.id, None) is not None:
            self._left_prefill(leg, now_s)
        else:
            del self.decoding[leg.id]
            self.began_s = self.began_s - leg.began_s if self.decoding else 0.0

    def _left_prefill(self, leg: InFlight, now_s: float) -> None:
        self.prefill_tokens -= leg.uncached_tokens
        first = next(iter(self.prefilling.values()), None)
        if first is None or first.id > leg.id:  # it was the oldest
            self.turn_s = now_s
            self.oldest_s = inf if first is None else first.dispatched_s

    def oldest_wait_s(self, now_s: float) -> float:
        """Age of the oldest leg without first byte, 0 if there is none."""
        return now_s - self.oldest_s if self.prefilling else 0.0

    def ahead(self, priority: int, now_s: float) -> Ahead:
        """What a request of `priority` meets here. Walks over the legs in prefill: a few, where flow control is on."""
        prefilling = prefill_tokens = freed = freed_tokens = 0
        oldest_wait_s = 0.0
        for leg in self.prefilling.values():
            if leg.gives_way(priority):
                freed += 1
                freed_tokens += leg.fresh_tokens
            else:
                oldest_wait_s = oldest_wait_s if prefilling else now_s - leg.dispatched_s
                prefilling += 1
                prefill_tokens += leg.uncached_tokens
        return Ahead(prefilling, prefill_tokens, oldest_wait_s, freed, freed_tokens)

    def candidate(self, view: View, now_s: float, urgency: int | None = None) -> Candidate:
        """A snapshot for the scheduler; `view` is what the endpoint's cache holds of the prompt.

        `urgency`: the request's priority, if lower ones give way to it.
        """
        if urgency is None:
            prefilling, prefill_tokens, oldest_wait_s = (
                len(self.prefilling),
                self.prefill_tokens,
                self.oldest_wait_s(now_s),
            )
        else:
            ahead = self.ahead(urgency, now_s)
            prefilling, prefill_tokens, oldest_wait_s = ahead.prefilling, ahead.prefill_tokens, ahead.oldest_wait_s
        return Candidate(
            endpoint=self.endpoint,
            prefilling=prefilling,
            prefill_tokens=prefill_tokens,
            decoding=len(self.decoding),
            context_tokens=self.context_tokens,
            matched_tokens=view.matched_tokens,
            loads=view.loads,
            load_s=view.load_s,
            known_tokens=view.known_tokens,
            displaced_tokens=view.displaced_tokens,
            sharers=view.sharers,
            exact=view.exact,
            oldest_wait_s=oldest_wait_s,
            sample=self.sample,
        )

    # -- looking in

    def statistics(self, now_s: float, kv_state: str | None, *, exact: bool) -> EndpointStatistics:
        """As it is now; the rest is what its KV events say."""
        return EndpointStatistics(
            endpoint=self.endpoint,
            state=self.state(now_s).value,
            prefilling=len(self.prefilling),
            prefill_tokens=self.prefill_tokens,
            decoding=len(self.decoding),
            context_tokens=self.context_tokens,
            sample=self.sample,
            dispatched=self.dispatched,
            failed=self.failed,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            predicted_cached_tokens=self.predicted_cached_tokens,
            output_tokens=self.output_tokens,
            ttft=self.ttft.snapshot(),
            kv_state=kv_state,
            exact=exact,
        )

    def check(self) -> None:
        """Raise InternalError if a counter does not equal what it sums."""
        legs = [*self.prefilling.values(), *self.decoding.values()]
        if self.prefilling.keys() & self.decoding.keys():
            raise InternalError(f"{self.endpoint.name}: a leg is both in prefill and in decode")
        if self.oldest_s != min((leg.dispatched_s for leg in self.prefilling.values()), default=inf):
            raise InternalError(f"{self.endpoint.name}: oldest_s is {self.oldest_s}, and no leg's")
        if self.in_flight != len(legs):
            raise InternalError(f"{self.endpoint.name}: in_flight is {self.in_flight}, not {len(legs)}")
        if self.prefill_tokens != sum(leg.uncached_tokens for leg in self.prefilling.values()):
            raise InternalError(
                f"{self.endpoint.name}: prefill_tokens is {self.prefill_tokens}, not the sum over its legs"
            )
        if abs(self.loose_tokens - sum(leg.loose_tokens for leg in legs)) > _ROUNDING * (1 + self.loose_tokens):
            raise InternalError(f"{self.endpoint.name}: loose_tokens is {self.loose_tokens}, not the sum over its legs")
        if abs(self.began_s - sum(leg.began_s for leg in self.decoding.values())) > _ROUNDING * (1 + abs(self.began_s)):
            raise InternalError(f"{self.endpoint.name}: began_s is {self.began_s}, not the sum over its legs")
        if self.context_tokens != sum(leg.prompt_tokens for leg in legs):
            raise InternalError(
                f"{self.endpoint.name}: context_tokens is {self.context_tokens}, not the sum over its legs"
            )
        if self.ready != (self.state(0.0) is State.READY):
            raise InternalError(f"{self.endpoint.name}: ready is {self.ready}, its state is {self.state(0.0).value}")
