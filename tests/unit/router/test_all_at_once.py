"""Queue, limits, adapters and news of everything in any order: one outcome each, and every counter agrees with what is open."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from beaconry.config.tenants import TenantLimits
from beaconry.router.effects import StartLeg
from beaconry.router.facts import (
    AdaptersSeen,
    Drain,
    EndpointGone,
    Fault,
    LegFailed,
    LegFinished,
    LegProgressed,
    LegStarted,
    LoadSampled,
    TenantsChanged,
)
from beaconry.values.endpoint import LoadSample
from beaconry.values.outcome import Outcome
from tests.unit.router.test_admission import Bench, Life, outcomes

LIMITS = {
    "wide": TenantLimits(requests_per_s=50.0, output_tokens_per_minute=1_000_000),
    "narrow": TenantLimits(requests_per_s=2.0, concurrency=2, input_tokens_per_minute=20_000),
}
FAULTS = [(Fault.RESET, 0), (Fault.STATUS, 500), (Fault.STATUS, 503)]


def test_who_waits_for_an_adapter_that_is_taken_away_is_answered():
    bench = Bench("ab", ttl_s=5.0)
    bench.tell(AdaptersSeen("a", ("lora",)))
    starts = bench.fill("r", "s")
    legs = {start.endpoint.name: start.leg for start in starts.values()}
    assert bench.arrive("t", model="lora") == []
    bench.tell(AdaptersSeen("a", ()))
    assert bench.tell(LegStarted(legs["b"]), after_s=0.25) == []
    bench.now_s = 5.0
    answer, end = bench.timer()
    assert (answer.status, end.request_id, end.outcome) == (503, "t", Outcome.NO_ENDPOINT)


def test_a_request_that_the_engine_refuses_costs_its_tenant_no_turns():
    bench = Bench("a")
    first = bench.fill("r")["r"].leg
    assert bench.arrive("n", tenant="x", sequences=2**31 - 1) == []  # taken here, and by no engine
    for name, tenant in [("y1", "y"), ("y2", "y"), ("x1", "x"), ("x2", "x")]:
        assert bench.arrive(name, tenant=tenant) == []
    (start,) = bench.tell(LegStarted(first), after_s=0.25)
    assert start.request_id == "n"
    leg = start.leg
    effects = bench.tell(LegFinished(leg, 400, None), after_s=0.1)
    assert outcomes(effects) == {"n": Outcome.ENGINE_REFUSED}
    order = []
    while starts := [effect for effect in effects if isinstance(effect, StartLeg)]:
        order += [start.request_id[0] for start in starts]
        effects = bench.tell(LegStarted(starts[-1].leg), after_s=0.25)
    assert sorted(order[:2]) == ["x", "y"]


class Everything(Life):
    """`Life` with tenants that come, go and change, adapters that come and go, and engines that report, refuse and time out."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts: dict[str, str | None] = {}
        """Whose each open request is; None if it was not charged."""
        self.tell(TenantsChanged(LIMITS))
        self.tell(AdaptersSeen("a", ("lora",)))

    @rule(
        account=st.sampled_from(sorted(LIMITS)), model=st.sampled_from(["m", "lora", "none"]), stream=st.booleans(),
        tokens=st.sampled_from([1, 500, 5000]), priority=st.sampled_from([-1, 0, 1]), sequences=st.sampled_from([1, 2**31 - 1]),
    )  # fmt: skip
    def ask(self, account, model, stream, tokens, priority, sequences) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.open[name] = None
        if account in self.bench.router.statistics(self.bench.now_s).tenants:
            self.accounts[name] = account
        self.note(
            self.bench.arrive(
                name, account=account, tenant=account, model=model, stream=stream, prompt_tokens=tokens,
                priority=priority, sequences=sequences,
            )
        )  # fmt: skip

    @rule(names=st.sets(st.sampled_from(sorted(LIMITS))), concurrency=st.none() | st.integers(1, 3))
    def reload(self, names, concurrency) -> None:
        left = self.bench.router.statistics(self.bench.now_s).tenants.keys() - names
        # who comes back is somebody new: what he left running is not his any more
        self.accounts = {name: account for name, account in self.accounts.items() if account not in left}
        self.tell(TenantsChanged({name: TenantLimits(requests_per_s=2.0, concurrency=concurrency) for name in names}))

    @rule(name=st.sampled_from("abc"), there=st.booleans())
    def adapt(self, name: str, there: bool) -> None:
        self.tell(AdaptersSeen(name, ("lora",) if there else ()))

    @rule(name=st.sampled_from("abc"))
    def sample(self, name: str) -> None:
        self.tell(LoadSampled(name, LoadSample(at_s=self.bench.now_s, running=3, waiting=1, kv_usage=0.5)))

    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        if (leg := self.leg(data)) is not None:
            self.tell(LegProgressed(leg), 1.0)

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        if (leg := self.leg(data)) is not None:
            self.tell(LegFinished(leg, 400, None))

    @rule(data=st.data(), fault=st.sampled_from(FAULTS))
    def fail_so(self, data: st.DataObject, fault: tuple[Fault, int]) -> None:
        if (leg := self.leg(data)) is not None:
            name = next(name for name, its in self.open.items() if its == leg)
            self.open[name] = None
            self.tell(LegFailed(leg, fault[0], fault[1]))

    @rule(leg=st.integers(0, 40))
    def late_news(self, leg: int) -> None:
        if leg not in self.open.values():
            self.tell(LegStarted(leg))
            self.tell(LegFinished(leg, 200, None))

    @rule()
    def all_leave_with_their_engines(self) -> None:
        for name in "abc":
            self.tell(EndpointGone(name))

    @rule(after_s=st.sampled_from([0.0, 5.0, 31.0]))
    def drain(self, after_s: float) -> None:
        if self.count % 7 == 6:
            self.tell(Drain(self.bench.now_s + after_s))

    @invariant()
    def nothing_waits_in_vain(self) -> None:
        """Other than in `Life` an adapter's requests may wait while its model's engines are open."""
        waiting = sum(leg is None for leg in self.open.values())
        assert waiting <= 4
        if waiting:
            assert self.bench.wake_s < float("inf")

    @invariant()
    def tenants_are_charged_for_what_is_open(self) -> None:
        statistics = self.bench.router.statistics(self.bench.now_s)
        assert statistics.in_flight == len(self.open)
        for name, tenant in statistics.tenants.items():
            assert tenant.running == sum(self.accounts.get(request) == name for request in self.open)

    def teardown(self) -> None:
        super().teardown()
        statistics = self.bench.router.statistics(self.bench.now_s)
        ended = sum(sum(model.outcomes.values()) for model in statistics.models.values()) + statistics.refused
        assert (ended, statistics.in_flight) == (self.count, 0)
        assert all(endpoint.prefill_tokens == endpoint.context_tokens == 0 for endpoint in statistics.endpoints)


Everything.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestEverything = Everything.TestCase
