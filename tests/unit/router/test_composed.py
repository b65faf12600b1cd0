"""The whole router under whatever may be configured and happen: models, adapters, roles, bands, tenants, evictions, faults, in any order.

A driver as production has it: each wake-up that is asked for comes at its time. What has to hold throughout: one outcome per request, after
effects in an order that a client can be told of; nobody waits whose turn it is; and once all is over, nothing is remembered of any request,
nor of any endpoint that is gone.
"""

from collections import Counter
from heapq import heappop, heappush
from random import Random

import pytest

from beaconry.config.disaggregation import Disaggregation
from beaconry.config.flow import BandConfig, Flow
from beaconry.config.gateway import Deadlines, Health, Retry
from beaconry.config.tenants import ModelConfig, TenantLimits
from beaconry.flowcontrol.ticket import Ticket
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.rates import RateBook
from beaconry.router.effects import Answer, BreakStream, CancelLeg, Effect, Ended, StartLeg, WakeAt
from beaconry.router.facts import (
    AdaptersSeen,
    ClientLeft,
    Drain,
    EndpointGone,
    EndpointSeen,
    Fact,
    Fault,
    HealthChecked,
    LegFailed,
    LegFinished,
    LegProgressed,
    LegStarted,
    LoadSampled,
    RequestArrived,
    TenantsChanged,
    TimerDue,
)
from beaconry.router.member import State
from beaconry.values.endpoint import Endpoint, LoadSample, Role
from beaconry.values.outcome import Outcome
from beaconry.values.request import Api, Request, Usage
from beaconry.values.stage import Stage
from tests.unit.router import made
from tests.unit.router.remains import keys_within

FLEET = {
    "p1": ("m", Role.PREFILL), "p2": ("m", Role.PREFILL), "d1": ("m", Role.DECODE), "b1": ("m", Role.BOTH),
    "n1": ("n", Role.BOTH), "n2": ("n", Role.BOTH),
}  # fmt: skip
NAMES = tuple(FLEET)
ACCOUNTS = {"rich": TenantLimits(requests_per_s=50.0), "poor": TenantLimits(requests_per_s=5.0, concurrency=2)}
BANDS = (
    (),
    (BandConfig(name="only", priority=0),),
    (BandConfig(name="low", priority=-1, ceiling=0.5), BandConfig(name="high", priority=2, ttl_s=3.0)),
    (
        BandConfig(name="fair", priority=0, fairness="least-attained", ordering="slo"),
        BandConfig(name="turns", priority=2, fairness="round-robin", ordering="edf"),
        BandConfig(name="least", priority=-1, fairness="requests", queued_requests=2),
    ),
)


def endpoint(name: str, **fields: object) -> Endpoint:
    model, role = FLEET[name]
    return made.endpoint(name, model, role=role, variant=f"{model}-{role.value}", **fields)


class Chaos:
    """A router of some configuration, and what may happen to it, by chance. See the module."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.now_s = 0.0
        self.wakes: list[float] = []
        self.open: dict[str, StartLeg | None] = {}
        """Requests that have not ended, and the leg of each."""
        self.begun: set[str] = set()
        """Of those, whose answer has begun."""
        self.count = 0
        self.seen: Counter[object] = Counter()
        """Stages that were started, and outcomes."""
        rates = RateBook()
        self.router = made.make_router(
            rates,
            Forecasts(rates),
            deadlines=Deadlines(first_byte_s=20.0, idle_s=10.0, total_s=60.0),
            retry=Retry(attempts=rng.randint(1, 3), budget_ratio=0.2, budget_floor=rng.choice([0, 10])),
            health=Health(eject_after=2, eject_base_s=2.0, unhealthy_after=2),
            flow=Flow(
                enabled=rng.random() < 0.9,
                engine_wait_s=rng.choice([0.02, 0.2]),
                ttl_s=8.0,
                hold_s=rng.choice([0.0, 4.0]),
                evict_sheddable=rng.random() < 0.5,
                refuse_late_below=rng.choice([0, 3]),
                queued_requests=rng.choice([3, 100]),
                bands=rng.choice(BANDS),
            ),
            disaggregation=Disaggregation(
                mode=rng.choice(["auto", "auto", "always", "never"]),
                min_uncached_tokens=300,
                on_prefill_failure=rng.choice(["aggregate", "error"]),
            ),
            models={"later": ModelConfig()},
            shortlist_above=rng.choice([1, 16]),
            policy=rng.choice(["expected-cost", "expected-cost", "least-requests", "sticky"]),
            seed=seed,
        )
        self.tell(TenantsChanged(ACCOUNTS))
        for name in NAMES:
            self.tell(EndpointSeen(endpoint(name)))
        self.tell(AdaptersSeen("b1", {"lora": "/lora"}))

    # -- the driver

    def tell(self, fact: Fact) -> None:
        effects = self.router.handle(fact, self.now_s)
        self.router.check()
        assert sum(isinstance(effect, WakeAt) for effect in effects) <= 1
        answered: set[str] = set()
        for effect in effects:
            self.carry_out(effect, answered)
        assert not answered, "who is answered has ended"
        statistics = self.router.statistics(self.now_s)
        waiting = sum(band.queued_requests for band in statistics.flow.bands)
        assert (statistics.in_flight, waiting) == (len(self.open), sum(its is None for its in self.open.values()))
        assert not self.open or self.wakes[0] <= self.now_s + 60.0
        busy = {its.endpoint.name for its in self.open.values() if its is not None}
        pinned = {name for name in NAMES if self.router._caches.approximate.pinned(name)}
        assert pinned <= busy, "no block is held by what is over"
        # a probe shuts its endpoint to all others in the midst of a fact: what that changes for these shows with the next
        assert self.whose_turn() is None or any(one.state == State.PROBING for one in statistics.endpoints)

    def whose_turn(self) -> Ticket | None:
        """Somebody who waits though nobody keeps it from its turn."""
        admission = self.router._admission
        turns = (admission.first(lines, self.now_s) for lines in self.router._lines(self.now_s))
        return next((turn for turn in turns if turn is not None), None)

    def carry_out(self, effect: Effect, answered: set[str]) -> None:
        match effect:
            case WakeAt():
                heappush(self.wakes, effect.at_s)
            case StartLeg():
                assert self.open[effect.request_id] is None
                assert effect.request_id not in self.begun
                assert (effect.stage is Stage.PREFILL) == (effect.endpoint.role is Role.PREFILL)
                assert (effect.stage is Stage.DECODE) == (effect.source is not None)
                self.open[effect.request_id] = effect
                self.seen[effect.stage] += 1
            case CancelLeg():
                its = self.open[effect.request_id]
                assert its is not None
                assert its.leg == effect.leg
                self.open[effect.request_id] = None
            case Answer():
                assert self.open[effect.request_id] is None
                assert effect.request_id not in self.begun
                assert effect.retry_after_s is None or 0.0 < effect.retry_after_s <= 60.0
                answered.add(effect.request_id)
            case BreakStream():
                assert effect.request_id in self.begun
                answered.add(effect.request_id)
            case Ended():
                assert self.open.pop(effect.request_id) is None
                self.begun.discard(effect.request_id)
                answered.discard(effect.request_id)
                self.seen[effect.outcome] += 1

    def leg(self) -> StartLeg | None:
        """One that has not ended."""
        legs = [its for its in self.open.values() if its is not None]
        return self.rng.choice(legs) if legs else None

    # -- what may happen

    def ask(self) -> None:
        rng = self.rng
        self.count += 1
        name = f"request {self.count}"
        self.open[name] = None
        blocks, text, account = rng.choice([0, 1, 8, 60]), rng.randint(0, 2), rng.choice([None, None, *ACCOUNTS])
        request = Request(
            id=name,
            model=rng.choices(["m", "n", "lora", "later", "none"], [8, 4, 4, 1, 1])[0],
            api=Api.CHAT,
            arrived_s=self.now_s,
            prompt_tokens=64 * blocks + 5,
            prompt_bytes=256 * blocks + 20,
            prefix=tuple(1000 * text + number for number in range(blocks)),
            stream=rng.random() < 0.8,
            sequences=rng.choice([1, 1, 1, 3]),
            tenant=f"{account}/{rng.randint(0, 2)}",
            account=account,
            priority=rng.choice([-1, -1, 0, 0, 2, 7]),
            program=rng.choice([None, "x", "y"]),
            ttl_s=rng.choice([None, None, 0.0, 1.0]),
            slo_ttft_s=rng.choice([None, None, 0.05, 2.0]),
            slo_itl_s=rng.choice([None, 0.03]),
        )
        self.tell(RequestArrived(request))

    def leave(self) -> None:
        if self.open:
            name = self.rng.choice(list(self.open))
            self.tell(ClientLeft(name))
            assert name not in self.open

    def start(self) -> None:
        its = self.leg()
        if its is not None and its.stage is not Stage.PREFILL:
            self.begun.add(its.request_id)
            self.tell(LegStarted(its.leg))

    def progress(self) -> None:
        if (its := self.leg()) is not None:
            self.tell(LegProgressed(its.leg))

    def finish(self) -> None:
        rng = self.rng
        if (its := self.leg()) is None:
            return
        self.open[its.request_id] = None
        usage = Usage(
            prompt_tokens=500, completion_tokens=rng.randint(0, 300), cached_tokens=rng.choice([None, 0, 400])
        )
        status, prefill = rng.choice([*[200] * 8, 400]), its.stage is Stage.PREFILL
        self.tell(LegFinished(its.leg, status, usage, handoff=prefill and status == 200 and rng.random() < 0.8))
        assert prefill or its.request_id not in self.open

    def fail(self) -> None:
        if (its := self.leg()) is not None:
            begun = its.request_id in self.begun
            self.open[its.request_id] = None
            self.tell(LegFailed(its.leg, self.rng.choice(list(Fault)), self.rng.choice([500, 503, 429])))
            assert not begun or its.request_id not in self.open

    def hear_late(self) -> None:
        leg = self.rng.randint(0, 500)
        if leg not in {its.leg for its in self.open.values() if its is not None}:
            for fact in (LegStarted(leg), LegProgressed(leg), LegFailed(leg, Fault.RESET), LegFinished(leg)):
                self.tell(fact)

    def see(self) -> None:
        self.tell(EndpointSeen(endpoint(self.rng.choice(NAMES), draining=self.rng.random() < 0.2)))

    def lose(self) -> None:
        self.tell(EndpointGone(self.rng.choice(NAMES)))

    def check_health(self) -> None:
        self.tell(HealthChecked(self.rng.choice(NAMES), self.rng.random() < 0.7))

    def adapt(self) -> None:
        adapters = self.rng.choice([{}, {"lora": "/a"}, {"lora": "/a", "n": "/b"}])
        self.tell(AdaptersSeen(self.rng.choice(NAMES), adapters))

    def sample(self) -> None:
        rng = self.rng
        sample = LoadSample(
            at_s=self.now_s,
            running=rng.choice([None, 0, 1, 2, 4]),
            waiting=rng.choice([None, 0, 0, 1, 3]),
            kv_usage=rng.choice([None, 0.0, 0.5, 1.0]),
            kv_blocks=rng.choice([None, 0, 10, 1000]),
            block_tokens=16,
        )
        self.tell(LoadSampled(rng.choice(NAMES), sample))

    def reload(self) -> None:
        names = self.rng.choice([set(), {"rich"}, set(ACCOUNTS)])
        self.tell(TenantsChanged({name: ACCOUNTS[name] for name in names}))

    def pass_time(self) -> None:
        self.wait(self.rng.choices([0.0, 0.01, 0.05, 0.3, 2.0, 15.0], [2, 4, 4, 6, 3, 1])[0])

    def wait(self, passed_s: float) -> None:
        """Time passes, and wake-ups come. Nobody's turn comes unnoticed, but for what bands leave each other: that fades with time, and
        shows with the next health check."""
        until_s = self.now_s + passed_s
        while self.wakes and self.wakes[0] <= until_s:
            self.now_s = max(self.now_s, heappop(self.wakes))
            self.tell(TimerDue())
        self.now_s = until_s
        assert self.router._admission._contested or self.whose_turn() is None

    # -- all of it

    def happen(self) -> None:
        """Anything."""
        often = [self.ask] * 35 + [self.start] * 20 + [self.finish] * 15 + [self.pass_time] * 12 + [self.sample] * 6
        seldom = [self.fail] * 4 + [self.progress, self.leave, self.see, self.see, self.check_health, self.check_health]
        self.rng.choice([*often, *seldom, self.lose, self.adapt, self.reload, self.hear_late])()

    def end(self) -> None:
        """All that is left ends, and nothing of it is remembered."""
        for name in NAMES:
            self.tell(EndpointGone(name))
        self.tell(Drain(self.now_s + 5.0))
        self.wait(20.0)
        assert self.open == {}
        statistics = self.router.statistics(self.now_s)
        ended = sum(sum(model.outcomes.values()) for model in statistics.models.values()) + statistics.refused
        assert (ended, statistics.in_flight, statistics.endpoints) == (self.count, 0, ())
        assert all(tenant.running == 0 for tenant in statistics.tenants.values())
        self.wait(120.0)  # until nothing lingers in heaps of times
        remaining = {key for key in keys_within(self.router) if isinstance(key, str)}
        assert not remaining & {*NAMES, *(f"request {number + 1}" for number in range(self.count))}


@pytest.mark.parametrize("first", range(0, 16, 4))
def test_whatever_happens_each_request_ends_once_and_nothing_is_left_behind(first: int):
    seen: Counter[object] = Counter()
    for seed in range(first, first + 4):
        chaos = Chaos(seed)
        for _ in range(250):
            chaos.happen()
        chaos.end()
        seen += chaos.seen
    assert {Stage.WHOLE, Stage.PREFILL, Stage.DECODE, Outcome.COMPLETED, Outcome.QUEUE_EXPIRED} <= set(seen)
