"""The whole router under whatever may be configured and happen: models, adapters, roles, bands, tenants, evictions, faults, in any order.

A driver as production has it: each wake-up that is asked for comes at its time. What has to hold throughout: one outcome per request, after
effects in an order that a client can be told of; nobody waits whose turn it is; and once all is over, nothing is remembered of any request,
nor of any endpoint that is gone.
"""

from heapq import heappop, heappush
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from beaconry.config.disaggregation import Disaggregation
from beaconry.config.flow import BandConfig, Flow
from beaconry.config.gateway import Deadlines, GatewayConfig, Health, Retry
from beaconry.config.tenants import ModelConfig, TenantLimits
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.kv_links import KvLinks
from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.router.caches import Caches
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
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.values.endpoint import Endpoint, LoadSample, Role
from beaconry.values.outcome import Outcome
from beaconry.values.request import Api, Request, Usage
from beaconry.values.stage import Stage
from tests.unit.router.remains import keys_within

FLEET = {
    "p1": ("m", Role.PREFILL), "p2": ("m", Role.PREFILL), "d1": ("m", Role.DECODE), "b1": ("m", Role.BOTH),
    "n1": ("n", Role.BOTH), "n2": ("n", Role.BOTH),
}  # fmt: skip
NAMES = sorted(FLEET)
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
FLOWS = st.builds(
    Flow,
    enabled=st.sampled_from([True, True, True, False]),
    engine_wait_s=st.sampled_from([0.02, 0.2]),
    ttl_s=st.just(8.0),
    hold_s=st.sampled_from([0.0, 4.0]),
    evict_sheddable=st.booleans(),
    refuse_late_below=st.sampled_from([0, 3]),
    queued_requests=st.sampled_from([3, 100]),
    bands=st.sampled_from(BANDS),
)
SPLITTING = st.builds(
    Disaggregation,
    mode=st.sampled_from(["auto", "always", "never"]),
    min_uncached_tokens=st.just(300),
    on_prefill_failure=st.sampled_from(["aggregate", "error"]),
)
FIELDS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["m", "m", "n", "lora", "later", "none"]),
        "stream": st.booleans(),
        "priority": st.sampled_from([-1, 0, 0, 2, 7]),
        "program": st.none() | st.sampled_from(["x", "y"]),
        "ttl_s": st.none() | st.sampled_from([0.0, 1.0]),
        "slo_ttft_s": st.none() | st.sampled_from([0.05, 2.0]),
        "slo_itl_s": st.none() | st.just(0.03),
        "sequences": st.sampled_from([1, 1, 3]),
    }
)
RETRIES = st.builds(Retry, attempts=st.integers(1, 3), budget_ratio=st.just(0.2), budget_floor=st.sampled_from([0, 10]))


def endpoint(name: str, **fields: object) -> Endpoint:
    model, role = FLEET[name]
    return Endpoint(name=name, host=name, port=1, model=model, role=role, variant=f"{model}-{role.value}", **fields)


class Composed(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.wakes: list[float] = []
        self.open: dict[str, StartLeg | None] = {}
        """Requests that have not ended, and the leg of each."""
        self.begun: set[str] = set()
        """Of those, whose answer has begun."""
        self.count = 0

    @initialize(
        flow=FLOWS, splitting=SPLITTING, retry=RETRIES, seed=st.integers(0, 3), shortlist_above=st.sampled_from([1, 16]),
        policy=st.sampled_from(["expected-cost", "least-requests", "sticky"]),
    )  # fmt: skip
    def begin(self, flow, splitting, retry, seed, shortlist_above, policy) -> None:
        rates = RateBook()
        forecasts = Forecasts(rates)
        self.router = Router(
            GatewayConfig(
                deadlines=Deadlines(first_byte_s=20.0, idle_s=10.0, total_s=60.0),
                retry=retry,
                health=Health(eject_after=2, eject_base_s=2.0, unhealthy_after=2),
                flow=flow,
                disaggregation=splitting,
                models={"later": ModelConfig()},
                shortlist_above=shortlist_above,
            ),
            scheduler=make_scheduler(policy, forecasts, Registry.installed()),
            caches=Caches(ApproximateIndex(limit_bytes=1 << 20), ExactIndex(), links=KvLinks(rates)),
            rates=rates,
            rng=Random(seed),
            forecasts=forecasts,
        )
        self.tell(TenantsChanged(ACCOUNTS))
        for name in ("p1", "d1", "b1", "n1"):
            self.tell(EndpointSeen(endpoint(name)))
        self.tell(AdaptersSeen("b1", {"lora": "/lora"}))

    # -- the driver

    def tell(self, fact: Fact) -> None:
        effects = self.router.handle(fact, self.now_s)
        self.router.check()
        answered = set()
        for effect in effects:
            self.carry_out(effect, answered)
        assert not answered, "who is answered has ended"

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

    def taken(self, data: st.DataObject, *, begun: bool | None = None) -> StartLeg | None:
        """A leg that is over by the fact that follows."""
        legs = {
            name: its
            for name, its in self.open.items()
            if its is not None and (begun is None or (name in self.begun) == begun)
        }
        if not legs:
            return None
        name = data.draw(st.sampled_from(sorted(legs)))
        return legs[name]

    # -- requests

    @rule(
        fields=FIELDS, blocks=st.sampled_from([0, 1, 8, 60]), text=st.integers(0, 2),
        account=st.none() | st.sampled_from(sorted(ACCOUNTS)), flow=st.integers(0, 2),
    )  # fmt: skip
    def ask(self, fields, blocks, text, account, flow) -> None:
        self.count += 1
        name = f"request {self.count}"
        self.open[name] = None
        tokens = 64 * blocks + 5
        request = Request(
            id=name, api=Api.CHAT, arrived_s=self.now_s, prompt_tokens=tokens, prompt_bytes=4 * tokens,
            prefix=tuple(1000 * text + number for number in range(blocks)),
            tenant=f"{account}/{flow}", account=account, **fields,
        )  # fmt: skip
        self.tell(RequestArrived(request))

    @rule(data=st.data())
    def leave(self, data) -> None:
        if self.open:
            name = data.draw(st.sampled_from(sorted(self.open)))
            self.tell(ClientLeft(name))
            assert name not in self.open

    # -- legs

    @rule(data=st.data())
    def start(self, data) -> None:
        its = self.taken(data, begun=False)
        if its is not None and its.stage is not Stage.PREFILL:
            self.begun.add(its.request_id)
            self.tell(LegStarted(its.leg))

    @rule(data=st.data())
    def progress(self, data) -> None:
        if (its := self.taken(data)) is not None:
            self.tell(LegProgressed(its.leg))

    @rule(
        data=st.data(), status=st.sampled_from([200, 200, 200, 400]), handoff=st.booleans(), cached=st.none() | st.integers(0, 500),
        output=st.integers(0, 300),
    )  # fmt: skip
    def finish(self, data, status, handoff, cached, output) -> None:
        if (its := self.taken(data)) is None:
            return
        self.open[its.request_id] = None
        usage = Usage(prompt_tokens=500, completion_tokens=output, cached_tokens=cached)
        prefill = its.stage is Stage.PREFILL
        self.tell(LegFinished(its.leg, status, usage, handoff=prefill and handoff and status == 200))
        assert prefill or its.request_id not in self.open

    @rule(data=st.data(), fault=st.sampled_from(list(Fault)), status=st.sampled_from([500, 503, 429]))
    def fail(self, data, fault, status) -> None:
        if (its := self.taken(data)) is not None:
            begun = its.request_id in self.begun
            self.open[its.request_id] = None
            self.tell(LegFailed(its.leg, fault, status))
            assert not begun or its.request_id not in self.open

    @rule(leg=st.integers(0, 60))
    def late_news(self, leg) -> None:
        if leg not in {its.leg for its in self.open.values() if its is not None}:
            for fact in (LegStarted(leg), LegProgressed(leg), LegFailed(leg, Fault.RESET), LegFinished(leg)):
                self.tell(fact)

    # -- endpoints

    @rule(name=st.sampled_from(NAMES), draining=st.sampled_from([False, False, True]))
    def see(self, name, draining) -> None:
        self.tell(EndpointSeen(endpoint(name, draining=draining)))

    @rule(name=st.sampled_from(NAMES))
    def lose(self, name) -> None:
        self.tell(EndpointGone(name))

    @rule(name=st.sampled_from(NAMES), healthy=st.booleans())
    def check_health(self, name, healthy) -> None:
        self.tell(HealthChecked(name, healthy))

    @rule(name=st.sampled_from(NAMES), adapters=st.sampled_from([{}, {"lora": "/a"}, {"lora": "/a", "n": "/b"}]))
    def adapt(self, name, adapters) -> None:
        self.tell(AdaptersSeen(name, adapters))

    @rule(
        name=st.sampled_from(NAMES), running=st.none() | st.integers(0, 4), waiting=st.none() | st.integers(0, 3),
        usage=st.none() | st.sampled_from([0.0, 0.5, 1.0]), blocks=st.none() | st.sampled_from([0, 10, 1000]),
    )  # fmt: skip
    def sample(self, name, running, waiting, usage, blocks) -> None:
        self.tell(
            LoadSampled(
                name,
                LoadSample(
                    at_s=self.now_s, running=running, waiting=waiting, kv_usage=usage, kv_blocks=blocks, block_tokens=16
                ),
            )
        )

    # -- time and config

    @rule(passed_s=st.sampled_from([0.0, 0.01, 0.3, 0.3, 2.0, 2.0, 15.0]))
    def wait(self, passed_s) -> None:
        until_s = self.now_s + passed_s
        for _ in range(1000):
            if not self.wakes or self.wakes[0] > until_s:
                break
            self.now_s = max(self.now_s, heappop(self.wakes))
            self.tell(TimerDue())
        else:
            raise AssertionError("wake-ups multiply")
        self.now_s = until_s

    @rule(names=st.sets(st.sampled_from(sorted(ACCOUNTS))))
    def reload(self, names) -> None:
        self.tell(TenantsChanged({name: ACCOUNTS[name] for name in names}))

    # -- what holds

    @invariant()
    def whoever_waits_is_noticed_in_time(self) -> None:
        if not hasattr(self, "router"):
            return
        statistics = self.router.statistics(self.now_s)
        assert statistics.in_flight == len(self.open)
        waiting = sum(band.queued_requests for band in statistics.flow.bands)
        assert waiting == sum(its is None for its in self.open.values())
        if self.open:
            assert self.wakes
            assert self.wakes[0] <= self.now_s + 60.0

    @invariant()
    def nobody_waits_whose_turn_it_is(self) -> None:
        if hasattr(self, "router"):
            for lines in self.router._lines(self.now_s):
                assert self.router._admission.first(lines, self.now_s) is None

    def teardown(self) -> None:
        if not hasattr(self, "router"):
            return
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
        remaining = {key for key in keys_within(self.router) if isinstance(key, str) and not isinstance(key, Outcome)}
        assert not remaining & {*NAMES, *(f"request {number + 1}" for number in range(self.count))}


Composed.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestComposed = Composed.TestCase
