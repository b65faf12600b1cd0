"""Waiting in the router: requests wait for capacity, go in their order, and end once, whatever happens meanwhile."""

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from beaconry.config.flow import BandConfig, Flow
from beaconry.config.tenants import ModelConfig, Target
from beaconry.router.effects import Answer, CancelLeg, Effect, Ended, StartLeg, WakeAt
from beaconry.router.facts import (
    AdaptersSeen,
    ClientLeft,
    Drain,
    EndpointGone,
    EndpointSeen,
    Fact,
    Fault,
    HealthChecked,
    KvSourceChanged,
    LegFailed,
    LegFinished,
    LegStarted,
    LoadSampled,
    RequestArrived,
    TimerDue,
)
from beaconry.scheduling.scheduler import Scheduler
from beaconry.values.candidate import Forecast, Source
from beaconry.values.decision import Ranking
from beaconry.values.endpoint import LoadSample
from beaconry.values.kv_events import SourceState
from beaconry.values.outcome import DROPPED_REASONS, Outcome
from beaconry.values.request import Api, Request, Usage
from beaconry.values.stage import Stage
from tests.unit.router.made import endpoint, make_router
from tests.unit.router.remains import keys_within


class Bench:
    """A router whose engines can use 0.1 s of prefill: half a prompt of 2,000 tokens, by the rates believed at the start."""

    def __init__(self, names: str = "ab", models: dict[str, ModelConfig] | None = None, **knobs: object) -> None:
        flow = Flow(engine_wait_s=0.1, **knobs)
        self.router = make_router(policy="least-requests", flow=flow, models=models or {})
        self.now_s = 0.0
        self.wake_s = float("inf")
        for name in names:
            self.tell(EndpointSeen(endpoint(name)))

    def tell(self, fact: Fact, after_s: float = 0.0) -> list[Effect]:
        self.now_s += after_s
        if isinstance(fact, TimerDue):
            self.wake_s = float("inf")
        effects = self.router.handle(fact, self.now_s)
        self.router.check()
        self.wake_s = min([self.wake_s, *(effect.at_s for effect in effects if isinstance(effect, WakeAt))])
        return [effect for effect in effects if not isinstance(effect, WakeAt)]

    def arrive(self, name: str, **fields: object) -> list[Effect]:
        given = {"model": "m", "prompt_tokens": 2000, "stream": True, **fields}
        return self.tell(RequestArrived(Request(id=name, api=Api.CHAT, arrived_s=self.now_s, **given)))

    def fill(self, *names: str) -> dict[str, StartLeg]:
        """Requests that find room, by name."""
        starts = {}
        for name in names:
            (start,) = self.arrive(name)
            assert isinstance(start, StartLeg)
            starts[name] = start
        return starts

    def timer(self) -> list[Effect]:
        """Let the next wake-up come, at its time."""
        self.now_s = max(self.now_s, self.wake_s)
        return self.tell(TimerDue())


def outcomes(effects: list[Effect]) -> dict[str, Outcome]:
    return {effect.request_id: effect.outcome for effect in effects if isinstance(effect, Ended)}


def test_what_the_engines_cannot_use_waits_and_goes_when_a_first_byte_makes_room():
    bench = Bench("ab")
    starts = bench.fill("r", "s")
    assert bench.arrive("t") == []
    (start,) = bench.tell(LegStarted(starts["r"].leg), after_s=0.25)
    assert start.request_id == "t"
    assert (start.decision.queued_s, start.decision.waited_for) == (pytest.approx(0.25), "capacity")


def test_who_does_not_wait_has_no_wait_in_its_decision():
    (start,) = Bench().arrive("r")
    assert (start.decision.queued_s, start.decision.waited_for) == (0.0, "")


def test_who_waited_is_charged_for_what_its_engine_does_not_hold_yet():
    bench = Bench("a")
    prefix = {"prefix": tuple(range(30)), "block_tokens": 64, "output_tokens": 10}
    (start,) = bench.arrive("r", **prefix)
    assert bench.arrive("t", **prefix) == []
    bench.tell(LegStarted(start.leg), after_s=0.25)
    assert bench.router._exchanges["t"].ticket.charged == 2000 - 30 * 64 + 2 * 10


@pytest.mark.parametrize(("fairness", "kept"), [("tokens", False), ("least-attained", True)])
def test_who_does_not_wait_passes_the_queue_by_unless_somebody_keeps_accounts(fairness: str, kept: bool):
    bench = Bench(bands=(BandConfig(name="d", priority=0, fairness=fairness),))
    bench.fill("r")
    assert (bench.router._exchanges["r"].ticket is not None) == kept
    (band,) = [band for band in bench.router.statistics(0.0).flow.bands if band.band == "d"]
    assert band.waits.count == 1


def test_who_would_be_too_late_behind_the_queue_is_told_so_at_once_if_it_may_be_shed():
    bench = Bench("a")
    now = bench.fill("r")["r"]
    for i in range(6):  # a pace of two a second, and four that wait
        assert bench.arrive(f"w{i}") == []
    for _ in range(2):
        (now,) = bench.tell(LegStarted(now.leg), after_s=0.5)
    answer, ended = bench.arrive("late", priority=-1, slo_ttft_s=0.5)
    assert isinstance(answer, Answer)
    assert (answer.status, ended.outcome) == (429, Outcome.OBJECTIVE_MISSED)
    assert 1.0 < answer.retry_after_s < 3.0
    assert bench.arrive("patient", priority=-1, slo_ttft_s=60.0) == []
    assert bench.arrive("promised", priority=0, slo_ttft_s=0.5) == []
    assert bench.arrive("whenever", priority=-1) == []


@pytest.mark.parametrize("fairness", ["tokens", "least-attained"])
def test_whose_turn_it_is_at_once_is_not_too_late_because_nobody_came_for_a_while(fairness: str):
    bench = Bench("a", bands=(BandConfig(name="d", priority=0, fairness=fairness),))
    bench.tell(EndpointSeen(endpoint("b", "n")))
    for name in "rst":
        (start,) = bench.arrive(name, model="n", prompt_tokens=10)
        bench.tell(LegStarted(start.leg), after_s=0.1)
    bench.now_s += 120.0
    bench.fill("full")
    assert bench.arrive("waits") == []
    (start,) = bench.arrive("next", model="n", priority=-1, slo_ttft_s=1.0, prompt_tokens=10)
    assert (start.request_id, start.endpoint.name) == ("next", "b")


def test_who_would_be_too_late_is_not_sent_away_for_longer_than_the_pace_can_tell():
    bench = Bench("a")
    leg = bench.fill("r")["r"].leg
    bench.tell(LegStarted(leg), after_s=0.1)
    bench.fill("s")
    bench.now_s += 200.0  # an engine that hangs
    answer, ended = bench.arrive("late", priority=-1, slo_ttft_s=0.5)
    assert (answer.retry_after_s, ended.outcome) == (60.0, Outcome.OBJECTIVE_MISSED)


class Foreseeing:
    """A policy that foresees the same first token everywhere, with its range."""

    def __init__(self, low_s: float) -> None:
        self.low_s = low_s

    def rank(self, request: Request, candidates: object, now_s: float, rng: Random) -> Ranking:
        ttft = {"ttft_s": self.low_s + 1.0, "ttft_low_s": self.low_s, "ttft_high_s": self.low_s + 2.0}
        itl = {"itl_s": 0.1, "itl_mean_s": 0.1, "itl_low_s": 0.1, "itl_high_s": 0.1}
        return Ranking(winner=0, forecasts={0: Forecast(source=Source.SHADOW, tail=0.1, **ttft, **itl)})


@pytest.mark.parametrize(
    ("priority", "slo_ttft_s", "low_s", "served"),
    [(-1, 2.0, 2.5, False), (-1, 2.0, 1.5, True), (0, 2.0, 2.5, True), (-1, None, 2.5, True)],
)
def test_what_is_forecast_to_be_too_late_everywhere_is_refused_if_it_may_be_shed(
    priority: int, slo_ttft_s: float | None, low_s: float, served: bool
):
    bench = Bench("ab")
    bench.router._placing._scheduler = Scheduler("foreseeing", Foreseeing(low_s))
    effects = bench.arrive("r", priority=priority, slo_ttft_s=slo_ttft_s)
    if served:
        assert isinstance(effects[0], StartLeg)
    else:
        assert outcomes(effects) == {"r": Outcome.OBJECTIVE_MISSED}
        assert effects[0].retry_after_s == pytest.approx(0.5)


def test_who_is_refused_when_its_turn_has_come_costs_its_tenant_no_turns():
    bench = Bench("a")
    bench.router._placing._scheduler = Scheduler("foreseeing", Foreseeing(2.5))
    (first,) = bench.arrive("r", priority=-1)
    assert bench.arrive("late", tenant="x", priority=-1, slo_ttft_s=2.0, sequences=100) == []
    for name in ("y1", "y2", "x1", "x2"):
        assert bench.arrive(name, tenant=name[0], priority=-1) == []
    effects = bench.tell(LegStarted(first.leg), after_s=0.25)
    assert outcomes(effects) == {"late": Outcome.OBJECTIVE_MISSED}
    order = []
    while starts := [effect for effect in effects if isinstance(effect, StartLeg)]:
        order += [start.request_id[0] for start in starts]
        effects = bench.tell(LegStarted(starts[-1].leg), after_s=0.25)
    assert sorted(order[:2]) == ["x", "y"]


def test_without_flow_control_nothing_waits():
    bench = Bench("a", enabled=False)
    assert all(isinstance(bench.arrive(f"r{i}")[0], StartLeg) for i in range(50))


def test_a_higher_band_goes_first_and_tenants_take_turns():
    bench = Bench("a", recall=False)
    leg = bench.fill("r")["r"].leg
    for name, tenant, priority in [("x1", "x", 0), ("x2", "x", 0), ("y1", "y", 0), ("top", "x", 3), ("low", "z", -1)]:
        assert bench.arrive(name, tenant=tenant, priority=priority) == []
    order = []
    for _ in range(5):
        (start,) = bench.tell(LegStarted(leg), after_s=0.25)
        order.append(start.request_id)
        leg = start.leg
    assert order == ["top", "x1", "y1", "x2", "low"]


def test_a_ceiling_keeps_room_for_the_bands_before():
    bench = Bench("a", bands=(BandConfig(name="low", priority=-1, ceiling=0.5),))
    bench.arrive("r", prompt_tokens=600)
    assert bench.arrive("low", priority=-1) == []
    (start,) = bench.arrive("high", priority=0)
    assert start.request_id == "high"


def test_time_to_live_ends_in_429_at_its_very_moment():
    bench = Bench("a", ttl_s=5.0)
    bench.fill("r")
    bench.tell(TimerDue(), after_s=1.0)
    assert bench.arrive("s", ttl_s=2.0) == []
    assert bench.wake_s == 3.0
    answer, end = bench.timer()
    assert (answer.status, answer.retry_after_s, end.outcome, bench.now_s) == (429, 1.0, Outcome.QUEUE_EXPIRED, 3.0)
    assert DROPPED_REASONS[answer.outcome] == "rejected-ttl-expired"


def test_a_full_queue_answers_429_at_once_and_the_lowest_band_gives_way():
    bench = Bench("a", queued_requests=1, recall=False)
    bench.fill("r")
    assert bench.arrive("low", priority=-1) == []
    answer, end = bench.arrive("top", priority=1)
    assert (end.request_id, answer.status, end.outcome) == ("low", 429, Outcome.DISPLACED)
    answer, end = bench.arrive("mid", priority=0)
    assert (end.request_id, answer.status, end.outcome) == ("mid", 429, Outcome.QUEUE_FULL)


def test_bounds_are_on_waiting_only():
    bench = Bench("a", queued_requests=0, queued_tokens=10)
    assert isinstance(bench.arrive("r")[0], StartLeg)
    assert outcomes(bench.arrive("s")) == {"s": Outcome.QUEUE_FULL}


def test_a_client_that_leaves_the_queue_is_gone_at_once():
    bench = Bench("a")
    leg = bench.fill("r")["r"].leg
    bench.arrive("s")
    assert outcomes(bench.tell(ClientLeft("s"))) == {"s": Outcome.CLIENT_GONE}
    assert bench.tell(LegStarted(leg)) == []


def test_new_endpoints_are_used_at_once():
    bench = Bench("a")
    bench.fill("r")
    bench.arrive("s")
    (start,) = bench.tell(EndpointSeen(endpoint("b")))
    assert (start.request_id, start.endpoint.name) == ("s", "b")


def test_requests_are_held_while_nobody_serves_and_then_answered_with_503():
    bench = Bench("a", hold_s=20.0, ttl_s=5.0)
    bench.tell(HealthChecked("a", healthy=False))
    bench.tell(HealthChecked("a", healthy=False))
    assert bench.arrive("r") == bench.arrive("s") == []
    (start, *_) = bench.tell(HealthChecked("a", healthy=True), after_s=10.0)
    assert (start.request_id, start.decision.waited_for) == ("r", "endpoint")
    bench.tell(EndpointSeen(endpoint("a", draining=True)))
    bench.now_s = 20.0
    answer, end = bench.tell(TimerDue())
    assert (answer.status, end.outcome, end.request_id) == (503, Outcome.NO_ENDPOINT, "s")


def test_a_model_whose_engines_are_gone_is_known_while_its_requests_are_held():
    bench = Bench("a", hold_s=20.0)
    bench.tell(EndpointGone("a"))
    assert bench.arrive("r") == []
    (start,) = bench.tell(EndpointSeen(endpoint("b")), after_s=10.0)
    assert (start.request_id, start.decision.waited_for) == ("r", "endpoint")


def test_adapters_wait_for_the_same_engines_as_their_base_model_in_one_order():
    bench = Bench("a", recall=False)
    bench.tell(AdaptersSeen("a", {"lora": ""}))
    leg = bench.fill("r")["r"].leg
    bench.arrive("base")
    bench.arrive("adapted", model="lora", priority=1)
    (start,) = bench.tell(LegStarted(leg), after_s=0.25)
    assert start.request_id == "adapted"


def test_a_request_whose_adapter_is_gone_waits_for_it_in_nobodys_way_and_is_then_answered_with_503():
    bench = Bench("a", ttl_s=5.0)
    bench.tell(AdaptersSeen("a", {"lora": ""}))
    leg = bench.fill("r")["r"].leg
    bench.arrive("adapted", model="lora")
    bench.arrive("base")
    bench.tell(AdaptersSeen("a", {}))
    (start,) = bench.tell(LegStarted(leg), after_s=0.25)
    assert start.request_id == "base"
    bench.now_s = 5.0
    answer, end = bench.tell(TimerDue())
    assert (answer.status, end.outcome, end.request_id) == (503, Outcome.NO_ENDPOINT, "adapted")


def test_an_adapters_own_engine_is_not_overfilled_because_another_one_is_open():
    bench = Bench("ab")
    bench.tell(AdaptersSeen("a", {"lora": ""}))
    (first,) = bench.arrive("first", model="lora")
    assert bench.arrive("second", model="lora") == []
    (base,) = bench.arrive("base")
    assert (first.endpoint.name, base.endpoint.name) == ("a", "b")
    (second,) = bench.tell(LegStarted(first.leg), after_s=0.25)
    assert (second.request_id, second.endpoint.name) == ("second", "a")


def test_the_end_of_an_ejection_sends_on_what_waits():
    bench = Bench("ab")
    starts = bench.fill("r", "s")
    failing = starts["r"].endpoint.name
    bench.tell(LegFailed(starts["r"].leg, Fault.CONNECT))
    (again,) = bench.arrive("t")
    assert again.endpoint.name == failing
    bench.tell(LegFailed(again.leg, Fault.CONNECT))  # the second failure ejects it for 5 s
    assert bench.arrive("u") == []
    (start,) = bench.timer()
    assert (bench.now_s, start.request_id, start.endpoint.name) == (5.0, "u", failing)


def test_a_model_that_is_configured_is_held_before_anybody_serves_it_and_an_unknown_one_is_not():
    models = {"m": ModelConfig(), "alias": ModelConfig(targets=(Target(model="later"),))}
    bench = Bench("", models=models, hold_s=20.0)
    assert bench.arrive("r") == bench.arrive("s", model="later") == []
    answer, _ = bench.arrive("t", model="no-such")
    assert answer.status == 404
    (start,) = bench.tell(EndpointSeen(endpoint("a")), after_s=10.0)
    assert (start.request_id, start.decision.waited_for) == ("r", "endpoint")


def test_statistics_tell_what_waits_what_has_waited_and_what_was_dropped():
    bench = Bench("a", queued_requests=2)
    leg = bench.fill("r")["r"].leg
    bench.arrive("s")
    bench.arrive("t")
    bench.arrive("u")
    bench.tell(LegStarted(leg), after_s=0.25)
    flow = bench.router.statistics(bench.now_s).flow
    (band,) = [b for b in flow.bands if b.band == "default"]
    assert (band.queued_requests, band.queued_tokens, band.waits.count) == (1, 2000, 2)
    assert band.waits.total == pytest.approx(0.25)
    assert band.dropped == {Outcome.QUEUE_FULL: 1}
    assert flow.saturation == {("m", Stage.WHOLE): 1.0}
    assert flow.room["requests"] == 0.5


def test_whole_answers_count_as_prefilled_after_the_predicted_time():
    bench = Bench("a")
    assert isinstance(bench.arrive("r", stream=False)[0], StartLeg)
    assert bench.arrive("s", stream=False) == []
    (start,) = bench.timer()
    assert start.request_id == "s"
    assert bench.now_s == pytest.approx(0.24, rel=0.01)  # the prior: 40 ms and 10,000 tokens a second
    assert bench.router.statistics(bench.now_s).endpoints[0].decoding == 1


def test_an_engine_where_nobody_waits_for_a_first_byte_is_probed_beyond_what_was_learnt():
    bench = Bench("a")
    legs = []
    for i in range(8):
        (start,) = bench.arrive(str(i), prompt_tokens=10)
        bench.tell(LegStarted(start.leg), after_s=20.0)  # so slow that it looks full
        legs.append(start.leg)
    assert isinstance(bench.arrive("next", prompt_tokens=10)[0], StartLeg)


def test_draining_serves_what_waits_until_its_deadline():
    bench = Bench("a")
    leg = bench.fill("r")["r"].leg
    bench.arrive("s")
    bench.arrive("t")
    bench.tell(Drain(5.0))
    (start,) = bench.tell(LegStarted(leg), after_s=0.25)
    assert start.request_id == "s"
    ended = {}
    while bench.now_s < 5.0:
        ended.update(outcomes(bench.timer()))
    assert ended == dict.fromkeys("rst", Outcome.SHUTTING_DOWN)


def test_what_has_room_nowhere_is_not_sent_to_wait_behind_others_while_an_engine_is_open():
    """The policy alone would send it to "a", which has fewer in flight."""
    bench = Bench("ab")
    for name in "ab":
        bench.tell(LoadSampled(name, LoadSample(at_s=0.0, running=0, kv_usage=0.0, kv_blocks=400, block_tokens=16)))
    small = [start for i in range(6) for start in bench.arrive(str(i), prompt_tokens=100, priority=i % 2)]
    for start in small:
        bench.tell(LegStarted(start.leg))
        if start.endpoint.name == "a":
            bench.tell(LegFinished(start.leg, 200, Usage(prompt_tokens=100, completion_tokens=5)))
    (prefilling,) = bench.arrive("prefilling", priority=1)
    (large,) = bench.arrive("large", prompt_tokens=6300, priority=1)
    assert (prefilling.endpoint.name, large.endpoint.name) == ("a", "b")


def busy_in_b(bench: Bench, prefix: tuple[int, ...] = ()) -> list[StartLeg]:
    """Short requests, of which those in "b" go on, so that "a" has the fewest; the first one has the `prefix`."""
    starts = []
    for i in range(6):
        starts += bench.arrive(str(i), prompt_tokens=100, prefix=prefix if i == 0 else ())
    for start in starts:
        bench.tell(LegStarted(start.leg))
        if start.endpoint.name == "a":
            bench.tell(LegFinished(start.leg, 200, Usage(prompt_tokens=100, completion_tokens=5)))
    return starts


def test_what_has_waited_goes_to_the_engine_that_opened_whatever_the_policy_prefers():
    bench = Bench("ab")
    busy_in_b(bench)
    large = []
    while effects := bench.arrive(f"large-{len(large)}"):
        large += effects
    last = large[-1]
    assert last.endpoint.name == "b"
    (start,) = bench.tell(LegStarted(last.leg))
    assert start.endpoint.name == "b"


def test_what_has_an_objective_between_tokens_goes_where_the_policy_prefers():
    bench = Bench("ab")
    busy_in_b(bench)
    large = []
    while effects := bench.arrive(f"large-{len(large)}", slo_itl_s=0.05):
        large += effects
    last = large[-1]
    assert last.endpoint.name == "b"
    (start,) = bench.tell(LegStarted(last.leg))
    assert start.endpoint.name == "a"


def test_with_one_band_an_engine_where_more_of_the_prompt_was_cached_stays_a_choice_however_little_it_is():
    """What a copy would displace elsewhere is known to the policy alone; here it wants the fewest requests, which are in "a"."""
    bench = Bench("ab")
    assert busy_in_b(bench, prefix=(1,))[0].endpoint.name == "a"
    large = []
    while effects := bench.arrive(f"large-{len(large)}"):
        large += effects
    bench.tell(ClientLeft(f"large-{len(large)}"))
    assert not bench.arrive("waiting", prefix=(1,))
    (start,) = bench.tell(LegStarted(large[-1].leg))
    assert (large[-1].endpoint.name, start.endpoint.name) == ("b", "a")


def test_of_an_endpoint_that_is_gone_nothing_is_known_once_its_last_leg_has_ended():
    """Clusters name each engine anew: what stays of each is a leak."""
    bench = Bench("ab")
    starts = {start.endpoint.name: start.leg for start in bench.fill("r", "s").values()}
    bench.tell(LegStarted(starts["a"]), after_s=0.1)
    bench.tell(EndpointGone("a"))
    sample = LoadSample(at_s=0.1, running=3, waiting=1, kv_usage=0.5, kv_blocks=1000, block_tokens=16)
    bench.tell(LoadSampled("a", sample))
    bench.tell(KvSourceChanged("a", 0, SourceState.EXACT, ""))
    assert "a" in keys_within(bench.router)
    bench.tell(LegFinished(starts["a"], 200, Usage(prompt_tokens=2000, completion_tokens=50)), after_s=1.0)
    assert keys_within(bench.router) & {"a", "b"} == {"b"}


class Life(RuleBasedStateMachine):
    """Any facts in any order: one outcome each, bounds hold, and nothing waits for an engine that is open."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(
            "ab", queued_requests=4, ttl_s=6.0, hold_s=3.0, bands=(BandConfig(name="low", priority=-1, ceiling=0.5),)
        )
        self.open: dict[str, int | None] = {}
        self.told: set[str] = set()
        """Requests whose clients have something of their answer."""
        self.count = 0

    def tell(self, fact: Fact, after_s: float = 0.0) -> None:
        self.note(self.bench.tell(fact, after_s))

    def note(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartLeg():
                    assert self.open[effect.request_id] is None
                    assert effect.request_id not in self.told
                    self.open[effect.request_id] = effect.leg
                case CancelLeg():
                    self.open[effect.request_id] = None
                case Answer():
                    assert self.open[effect.request_id] is None
                case Ended():
                    del self.open[effect.request_id]

    def leg(self, data: st.DataObject) -> int | None:
        legs = sorted(leg for leg in self.open.values() if leg is not None)
        return data.draw(st.sampled_from(legs)) if legs else None

    @rule(
        stream=st.booleans(), tokens=st.sampled_from([1, 500, 5000]), priority=st.sampled_from([-1, 0, 1]),
        tenant=st.sampled_from("xy"), ttl_s=st.none() | st.sampled_from([0.0, 1.0]),
    )  # fmt: skip
    def arrive(self, stream, tokens, priority, tenant, ttl_s) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.open[name] = None
        given = {"stream": stream, "prompt_tokens": tokens, "priority": priority, "tenant": tenant, "ttl_s": ttl_s}
        self.note(self.bench.arrive(name, **given))

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        if (leg := self.leg(data)) is not None:
            self.told.update(name for name, its in self.open.items() if its == leg)
            self.tell(LegStarted(leg), 0.05)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if (leg := self.leg(data)) is not None:
            self.tell(LegFinished(leg, 200, Usage(prompt_tokens=640, completion_tokens=5)), 0.05)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        if (leg := self.leg(data)) is not None:
            name = next(name for name, its in self.open.items() if its == leg)
            self.open[name] = None
            self.tell(LegFailed(leg, Fault.RESET))

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.open:
            self.tell(ClientLeft(data.draw(st.sampled_from(sorted(self.open)))))

    @rule(name=st.sampled_from("abc"), draining=st.booleans())
    def see(self, name: str, draining: bool) -> None:
        self.tell(EndpointSeen(endpoint(name, draining=draining)))

    @rule(name=st.sampled_from("abc"))
    def lose(self, name: str) -> None:
        self.tell(EndpointGone(name))

    @rule(name=st.sampled_from("abc"), healthy=st.booleans())
    def check_health(self, name: str, healthy: bool) -> None:
        self.tell(HealthChecked(name, healthy))

    @rule()
    def wake(self) -> None:
        if self.bench.wake_s < float("inf"):
            self.note(self.bench.timer())

    @invariant()
    def nothing_waits_in_vain(self) -> None:
        waiting = sum(leg is None for leg in self.open.values())
        router = self.bench.router
        assert waiting <= 4
        admission, now_s = router._admission, self.bench.now_s
        top = {ticket.request.priority for ticket in admission.queue._by_expiry.tickets()}
        for lines in router._lines(now_s):
            assert admission.first(lines, now_s) is None
        for member in (
            router._members.open_to("m", now_s) if top and not admission._contested else ()
        ):  # bands leave room
            assert not admission.is_open(member, now_s, 1.0 if max(top) >= 0 else 0.5), "work is conserved"
        if waiting:
            assert self.bench.wake_s < float("inf")

    def teardown(self) -> None:
        self.tell(Drain(self.bench.now_s))
        self.tell(TimerDue(), 1.0)
        assert self.open == {}


Life.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
