"""Two legs: the prompt on a prefill endpoint, the answer on one chosen when it is computed; and what follows when either fails."""

from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from beaconry.config.disaggregation import Disaggregation
from beaconry.config.flow import Flow
from beaconry.config.gateway import Health, Retry
from beaconry.latency.rates import RateBook
from beaconry.router.caches import Caches, Finding
from beaconry.router.effects import Answer, CancelLeg, Effect, Ended, StartLeg, WakeAt
from beaconry.router.facts import (
    ClientLeft,
    Drain,
    EndpointGone,
    EndpointSeen,
    Fact,
    Fault,
    HealthChecked,
    LegFailed,
    LegFinished,
    LegStarted,
    RequestArrived,
    TimerDue,
)
from beaconry.values.endpoint import Endpoint, Role
from beaconry.values.outcome import Outcome
from beaconry.values.request import Api, Request, Usage
from beaconry.values.stage import Stage
from tests.unit.router import made

ROLES = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}
TOKENS = 6400
USAGE = Usage(prompt_tokens=TOKENS, completion_tokens=11, cached_tokens=0)
PREFILLED = Usage(prompt_tokens=TOKENS, completion_tokens=1, cached_tokens=0)


def endpoint(name: str, **fields: object) -> Endpoint:
    role = ROLES[name[0]]
    return made.endpoint(name, role=role, variant=role.value, **fields)


def request(name: str, arrived_s: float, **fields: object) -> Request:
    given = {"prompt_tokens": TOKENS, "prefix": tuple(range(100)), "stream": True, **fields}
    return Request(id=name, model="m", api=Api.CHAT, arrived_s=arrived_s, **given)


class Bench:
    """A router over prefill (p), decode (d) and other (b) endpoints. `sections`: of its configuration."""

    def __init__(self, names: str = "p1 p2 d1 d2", **sections: object) -> None:
        self.rates = RateBook()
        self.router = made.make_router(
            self.rates,
            health=Health(eject_after=2, eject_base_s=5.0, unhealthy_after=1),
            **{"flow": Flow(enabled=False), **sections},
        )
        self.now_s = 0.0
        for name in names.split():
            self.tell(EndpointSeen(endpoint(name)))

    def tell(self, fact: Fact, after_s: float = 0.0) -> list[Effect]:
        self.now_s += after_s
        effects = self.router.handle(fact, self.now_s)
        self.router.check()
        return [effect for effect in effects if not isinstance(effect, WakeAt)]

    def start(self, fact: Fact, after_s: float = 0.0) -> StartLeg:
        (start,) = self.tell(fact, after_s)
        assert isinstance(start, StartLeg)
        return start

    def send(self, name: str = "r", **fields: object) -> StartLeg:
        return self.start(RequestArrived(request(name, self.now_s, **fields)))

    def prefilled(self, leg: StartLeg, after_s: float = 0.5) -> StartLeg:
        return self.start(LegFinished(leg.leg, 200, PREFILLED, handoff=True), after_s)

    def endpoint(self, name: str):
        return next(e for e in self.router.statistics(self.now_s).endpoints if e.endpoint.name == name)

    @property
    def model(self):
        return self.router.statistics(self.now_s).models["m"]


def reason(start: StartLeg) -> str:
    return start.decision.plan


@pytest.mark.parametrize("tokens", [TOKENS, 40])
def test_a_request_that_need_not_wait_is_planned_and_looked_up_once(tokens: int):
    found = []

    class Counting(Caches):
        def find(self, request: Request) -> Finding:
            found.append(request.id)
            return super().find(request)

    rates = RateBook()
    plain = made.make_caches(rates)
    router = made.make_router(rates, caches=Counting(plain.approximate, plain.exact, plain.loads, plain.links))
    for name in ("p1", "d1"):
        router.handle(EndpointSeen(endpoint(name)), 0.0)
    effects = router.handle(RequestArrived(request("r", 0.0, prompt_tokens=tokens)), 0.0)
    (start,) = (effect for effect in effects if isinstance(effect, StartLeg))
    assert start.stage is (Stage.PREFILL if tokens == TOKENS else Stage.WHOLE)
    assert found == ["r"]


def test_a_long_prompt_is_prefilled_then_answered_elsewhere_and_ends_once():
    bench = Bench()
    first = bench.send()
    assert (first.stage, first.endpoint.role, first.source) == (Stage.PREFILL, Role.PREFILL, None)
    assert bench.endpoint("d1").prefilling == bench.endpoint("d2").prefilling == 0
    second = bench.prefilled(first, after_s=0.5)
    assert (second.stage, second.endpoint.role, second.source) == (Stage.DECODE, Role.DECODE, first.endpoint)
    assert (second.decision.source, second.decision.prefill_s) == (first.endpoint.name, 0.5)
    assert bench.tell(LegStarted(second.leg), 0.1) == []
    (end,) = bench.tell(LegFinished(second.leg, 200, USAGE), 1.0)
    assert isinstance(end, Ended)
    assert (end.outcome, end.attempts) == (Outcome.COMPLETED, 2)
    assert bench.model.ttft.total == pytest.approx(0.6)
    assert bench.model.itl.total == pytest.approx(0.1)
    assert bench.model.plans == {(Stage.PREFILL, "uncached-prompt"): 1}
    assert all(e.prefilling == e.decoding == e.context_tokens == 0 for e in bench.router.statistics(0.0).endpoints)


def test_a_short_prompt_is_answered_in_one_leg_by_a_decode_endpoint():
    bench = Bench()
    leg = bench.send(prompt_tokens=100, prefix=(1,))
    assert (leg.stage, leg.endpoint.role, reason(leg)) == (Stage.WHOLE, Role.DECODE, "short-prompt")


def test_a_prompt_that_its_decode_endpoint_has_cached_comes_back_in_one_leg():
    bench = Bench("p1 d1")
    second = bench.prefilled(bench.send())
    bench.tell(LegFinished(second.leg, 200, USAGE), 1.0)
    again = bench.send("again")
    assert (again.stage, again.endpoint.name, reason(again)) == (Stage.WHOLE, "d1", "cached-prompt")


def test_what_the_decode_endpoint_reports_as_cached_was_cached_at_the_prefill_endpoint():
    bench = Bench("p1 d1")
    second = bench.prefilled(bench.send())
    bench.tell(LegFinished(second.leg, 200, USAGE), 1.0)  # 0 cached: where it was prefilled
    assert (bench.endpoint("p1").prompt_tokens, bench.endpoint("d1").prompt_tokens) == (TOKENS, 0)
    assert (bench.endpoint("p1").output_tokens, bench.endpoint("d1").output_tokens) == (0, 11)
    assert bench.send("again", prompt_tokens=TOKENS).decision.candidates[0].matched_tokens >= TOKENS - 64


def test_without_a_healthy_prefill_endpoint_a_request_runs_whole():
    bench = Bench("p1 d1")
    bench.tell(HealthChecked("p1", healthy=False))
    leg = bench.send()
    assert (leg.stage, leg.endpoint.name, reason(leg)) == (Stage.WHOLE, "d1", "no-prefill-endpoint")


def test_a_model_whose_engines_only_prefill_has_nobody_to_serve_it():
    answer, end = Bench("p1").tell(RequestArrived(request("r", 0.0)))
    assert (answer.status, end.outcome) == (503, Outcome.NO_ENDPOINT)


def test_a_model_without_prefill_endpoints_is_not_planned():
    leg = Bench("d1 b1").send()
    assert (leg.stage, reason(leg)) == (Stage.WHOLE, "")


@pytest.mark.parametrize("mode", ["always", "never"])
def test_the_mode_decides_for_all(mode: str):
    bench = Bench(disaggregation=Disaggregation(mode=mode))
    assert {bench.send(str(n), prompt_tokens=n).stage for n in (64, 6400)} == {
        Stage.PREFILL if mode == "always" else Stage.WHOLE
    }


@pytest.mark.parametrize(
    "policy", ["round-robin", "random", "least-requests", "power-of-two", "prefix-only", "sticky", "llm-d-weighted"]
)
def test_every_policy_places_each_stage_among_its_own_endpoints(policy: str):
    bench = Bench(policy=policy)
    used: dict[Stage, set[str]] = {Stage.PREFILL: set(), Stage.DECODE: set()}
    for number in range(12):
        prefix = tuple(range(1000 * number, 1000 * number + 100))
        first = bench.send(str(number), prefix=prefix)
        second = bench.prefilled(first)
        used[Stage.PREFILL].add(first.endpoint.name)
        used[Stage.DECODE].add(second.endpoint.name)
    assert used == {Stage.PREFILL: {"p1", "p2"}, Stage.DECODE: {"d1", "d2"}}


def test_a_prefill_leg_that_fails_is_tried_elsewhere_then_the_request_runs_whole():
    bench = Bench()
    first = bench.send()
    second = bench.start(LegFailed(first.leg, Fault.RESET))
    assert (second.stage, {first.endpoint.name, second.endpoint.name}) == (Stage.PREFILL, {"p1", "p2"})
    third = bench.start(LegFinished(second.leg, 200, PREFILLED, handoff=False))
    assert (third.stage, reason(third)) == (Stage.WHOLE, "prefill-failed")
    assert bench.model.plans == {(Stage.PREFILL, "uncached-prompt"): 2, (Stage.WHOLE, "prefill-failed"): 1}


def test_what_could_not_be_prefilled_runs_whole_even_without_a_retry_left():
    bench = Bench("p1 p2 d1", retry=Retry(attempts=1, budget_ratio=0.0, budget_floor=0))
    whole = bench.start(LegFailed(bench.send().leg, Fault.CONNECT))
    assert (whole.stage, reason(whole)) == (Stage.WHOLE, "prefill-failed")
    assert isinstance(bench.tell(LegFailed(whole.leg, Fault.CONNECT))[0], Answer)


def test_an_operator_may_have_an_error_instead():
    bench = Bench("p1 d1", disaggregation=Disaggregation(on_prefill_failure="error"))
    answer, end = bench.tell(LegFailed(bench.send().leg, Fault.RESET))
    assert (answer.status, end.outcome) == (502, Outcome.ENGINE_FAILED)


def test_what_a_prefill_engine_refuses_is_refused_to_the_client_by_who_would_answer():
    bench = Bench()
    whole = bench.start(LegFinished(bench.send().leg, 400))
    assert (whole.stage, reason(whole)) == (Stage.WHOLE, "prefill-refused")
    assert bench.tell(LegFinished(whole.leg, 400))[-1].outcome is Outcome.ENGINE_REFUSED
    assert bench.endpoint("p1").failed == bench.endpoint("p2").failed == 0


def test_an_engine_that_hands_nothing_over_is_ejected_and_then_spared():
    bench = Bench("p1 d1")
    for name in "ab":
        whole = bench.start(LegFinished(bench.send(name, prefix=(ord(name),)).leg, 200, PREFILLED))
        assert whole.stage is Stage.WHOLE
    assert bench.endpoint("p1").state == "ejected"
    assert reason(bench.send("c", prefix=(3,))) == "no-prefill-endpoint"


def test_when_a_decode_endpoint_dies_before_its_first_byte_the_request_starts_anew():
    bench = Bench()
    second = bench.prefilled(bench.send())
    third = bench.start(LegFailed(second.leg, Fault.RESET))
    assert (third.stage, third.source) == (Stage.PREFILL, None)
    fourth = bench.prefilled(third)
    assert fourth.endpoint.name != second.endpoint.name
    assert bench.tell(LegFinished(fourth.leg, 200, USAGE))[-1].attempts == 4


def test_when_the_kv_cannot_be_taken_over_the_request_runs_whole():
    bench = Bench()
    second = bench.prefilled(bench.send())
    third = bench.start(LegFailed(second.leg, Fault.STATUS, 500))
    assert (third.stage, reason(third)) == (Stage.WHOLE, "handover-failed")
    assert third.endpoint.name != second.endpoint.name


def test_what_the_only_decode_endpoint_cannot_take_over_it_computes_itself():
    bench = Bench("p1 d1")
    second = bench.prefilled(bench.send())
    third = bench.start(LegFailed(second.leg, Fault.STATUS, 500))
    assert (third.stage, third.endpoint.name, reason(third)) == (Stage.WHOLE, "d1", "handover-failed")
    answer, end = bench.tell(LegFailed(third.leg, Fault.STATUS, 500))
    assert (answer.status, end.attempts, end.outcome) == (502, 3, Outcome.ENGINE_FAILED)


def test_nothing_is_prefilled_anew_for_nobody():
    bench = Bench("p1 p2 d1")
    second = bench.prefilled(bench.send())
    answer, end = bench.tell(LegFailed(second.leg, Fault.RESET))
    assert (answer.status, end.attempts) == (502, 2)


def test_a_decode_endpoint_is_not_blamed_for_a_source_that_is_gone():
    bench = Bench()
    first = bench.send()
    second = bench.prefilled(first)
    bench.tell(EndpointGone(first.endpoint.name))
    bench.tell(LegFailed(second.leg, Fault.STATUS, 500))
    assert bench.endpoint(second.endpoint.name).failed == 0


def test_without_a_decode_endpoint_left_the_answer_is_503():
    bench = Bench("p1 d1")
    first = bench.send()
    bench.tell(EndpointGone("d1"))
    answer, end = bench.tell(LegFinished(first.leg, 200, PREFILLED, handoff=True))
    assert (answer.status, end.outcome) == (503, Outcome.NO_ENDPOINT)


def test_nothing_is_prefilled_again_for_nobody_who_would_answer():
    bench = Bench("p1 p2 d1")
    second = bench.prefilled(bench.send())
    answer, end = bench.tell(LegFailed(second.leg, Fault.RESET))
    assert (answer.status, end.outcome, end.attempts) == (502, Outcome.ENGINE_FAILED, 2)


def test_a_prefill_leg_has_the_first_byte_deadline_whether_its_request_streams_or_not():
    bench = Bench()
    bench.send(stream=False)
    cancel, answer, end = bench.tell(TimerDue(), 30.0)
    assert isinstance(cancel, CancelLeg)
    assert (answer.status, end.outcome) == (504, Outcome.ENGINE_TIMEOUT)


def test_a_client_that_leaves_between_the_legs_takes_the_second_one_with_it():
    bench = Bench()
    second = bench.prefilled(bench.send())
    cancel, end = bench.tell(ClientLeft("r"))
    assert (cancel.leg, end.outcome) == (second.leg, Outcome.CLIENT_GONE)


def test_prefill_legs_teach_how_fast_prompts_are_computed_and_decode_legs_what_fetching_takes():
    bench = Bench("p1 d1")
    for number in range(60):
        tokens = 3000 + 211 * (number % 37)
        fields = {"prompt_tokens": tokens, "prefix": tuple(range(1000 * number, 1000 * number + tokens // 64))}
        usage = Usage(prompt_tokens=tokens, completion_tokens=1, cached_tokens=0)
        first = bench.send(str(number), **fields)
        second = bench.start(LegFinished(first.leg, 200, usage, handoff=True), 0.02 + 2e-5 * tokens)
        bench.tell(LegStarted(second.leg), 0.01 + 2e-6 * tokens)
        bench.tell(LegFinished(second.leg, 200, Usage(prompt_tokens=tokens, completion_tokens=101)), 0.5)
    assert bench.rates.rates("prefill").token_s == pytest.approx(2e-5, rel=0.3)
    assert bench.rates.rates("decode").token_s == RateBook().rates("decode").token_s
    assert bench.rates.rates("decode").itl_s + bench.rates.rates("decode").itl_batch_s == pytest.approx(0.005, rel=0.1)
    fetch = bench.router.cache_statistics().fetches["decode"]
    assert (fetch.legs, fetch.token_s < 5e-6) == (60, True)


def test_of_equal_decode_endpoints_the_one_that_holds_most_is_chosen_and_fetches_the_rest():
    bench = Bench("p1 d1 d2 d3")
    held = tuple(range(100))
    second = bench.prefilled(bench.send(prefix=held))
    bench.tell(LegFinished(second.leg, 200, USAGE), 1.0)
    follow = bench.prefilled(bench.send("follow", prefix=(*held, *range(500, 1500)), prompt_tokens=11 * TOKENS))
    assert follow.endpoint.name == second.endpoint.name
    chosen = follow.decision.candidates[follow.decision.ranking.winner]
    assert (chosen.matched_tokens, chosen.fetched_tokens) == (TOKENS, 10 * TOKENS - 1)


def test_decode_legs_spread_by_what_they_slow_down():
    bench = Bench("p1 d1 d2")
    for number in range(8):
        prefix = tuple(range(1000 * number, 1000 * number + 100))
        bench.tell(LegStarted(bench.prefilled(bench.send(str(number), prefix=prefix)).leg))
    assert [bench.endpoint(name).decoding for name in ("d1", "d2")] == [4, 4]


WAITING = {"flow": Flow(engine_wait_s=0.1, recall=False), "disaggregation": Disaggregation(mode="always")}
"""By the rates believed at the start, 0.1 s are 1,000 tokens of prefill."""


def test_what_runs_whole_does_not_wait_behind_a_full_prefill_pool():
    bench = Bench("p1 d1", **WAITING)
    first = bench.send("long")
    assert bench.tell(RequestArrived(request("longer", 0.0, prefix=()))) == []
    short = bench.send("short", prompt_tokens=100, prefix=(), sequences=2)
    assert (short.stage, short.endpoint.name) == (Stage.WHOLE, "d1")
    flow = bench.router.statistics(0.0).flow
    assert {(band.stage, band.queued_requests) for band in flow.bands if band.band == "default"} == {
        (Stage.WHOLE, 0),
        (Stage.PREFILL, 1),
    }
    assert flow.saturation["m", Stage.PREFILL] == 1.0 > flow.saturation["m", Stage.WHOLE]
    bench.tell(LegStarted(short.leg))
    answering, waiting = bench.tell(LegFinished(first.leg, 200, PREFILLED, handoff=True), 0.5)
    assert (answering.request_id, answering.stage) == ("long", Stage.DECODE)
    assert (waiting.request_id, waiting.stage, waiting.decision.queued_s) == ("longer", Stage.PREFILL, 0.5)
    second = bench.prefilled(waiting)
    assert second.decision.queued_s == 0.5


def test_a_request_in_two_legs_waits_for_a_decode_place_as_well():
    bench = Bench("p1 d1", **WAITING)
    whole = bench.send("whole", prompt_tokens=2000, prefix=(), sequences=2)
    assert bench.tell(RequestArrived(request("long", 0.0))) == []
    (first,) = bench.tell(LegStarted(whole.leg), 0.2)
    assert (first.request_id, first.stage) == ("long", Stage.PREFILL)


def test_what_waits_for_prefill_endpoints_runs_whole_once_there_are_none():
    bench = Bench("p1 d1", **WAITING)
    first = bench.send("long")
    assert bench.tell(RequestArrived(request("longer", 0.0, prefix=()))) == []
    effects = bench.tell(HealthChecked("p1", healthy=False))
    starts = {effect.request_id: effect for effect in effects if isinstance(effect, StartLeg)}
    assert starts["long"].stage is Stage.WHOLE
    assert effects[0] == CancelLeg("long", first.leg)
    (start,) = bench.tell(LegStarted(starts["long"].leg), 0.1)
    assert (start.request_id, start.stage, reason(start)) == ("longer", Stage.WHOLE, "no-prefill-endpoint")


def test_of_what_waits_for_the_same_decode_place_the_higher_band_goes_first():
    bench = Bench("p1 d1", **WAITING)
    whole = bench.send("whole", prompt_tokens=2000, prefix=(), sequences=2)
    for name, priority, sequences in (("low", 0, 2), ("high", 5, 1), ("low-too", 0, 2)):
        waiting = request(name, 0.0, priority=priority, prompt_tokens=1500, prefix=(), sequences=sequences)
        assert bench.tell(RequestArrived(waiting)) == []
    starts = bench.tell(LegStarted(whole.leg), 0.1)
    assert [(start.request_id, start.stage) for start in starts] == [("high", Stage.PREFILL), ("low", Stage.WHOLE)]


def test_auto_splits_short_prompts_while_the_answering_endpoints_have_much_to_prefill():
    bench = Bench("p1 d1", flow=Flow(engine_wait_s=1.0))
    for number in range(5):  # 1,500 tokens each: 0.15 s by the rates believed at the start
        assert bench.send(str(number), prompt_tokens=1500, prefix=(), sequences=2).endpoint.name == "d1"
    split = bench.send("short", prompt_tokens=100, prefix=())
    assert (split.stage, reason(split)) == (Stage.PREFILL, "decode-busy")


def test_auto_runs_long_prompts_whole_while_the_prefill_pool_is_full():
    bench = Bench("p1 d1", flow=Flow(engine_wait_s=0.1))
    first = bench.send("long", prefix=())
    whole = bench.send("longer", prefix=())
    assert (whole.stage, reason(whole)) == (Stage.WHOLE, "prefill-full")
    bench.tell(LegStarted(whole.leg))
    bench.prefilled(first)
    assert bench.send("later", prefix=()).stage is Stage.PREFILL


@pytest.mark.parametrize("names", ["p1 d1", "d1"])
def test_a_request_in_two_legs_takes_one_place_of_those_that_answer(names: str):
    bench = Bench(names)
    low = bench.send("low", priority=-1, prompt_tokens=100, prefix=())
    bench.tell(LegFinished(low.leg, 200, USAGE))
    for number in range(40):
        start = bench.send(str(number), prefix=())
        second = bench.prefilled(start, after_s=0.25) if start.stage is Stage.PREFILL else start
        bench.tell(LegFinished(second.leg, 200, USAGE), 0.5 if second is start else 0.25)
    demand = bench.router._admission.queue.lane("m").demand
    assert demand._pace.per_s(bench.now_s) == pytest.approx(2.0, rel=0.2)


class Life(RuleBasedStateMachine):
    """Any facts in any order: the invariants hold, each request ends exactly once, and stages follow each other as they may."""

    sections: ClassVar[dict[str, object]] = {"disaggregation": Disaggregation(min_uncached_tokens=64)}

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench("p1 p2 d1 b1", **self.sections)
        self.open: dict[str, StartLeg | None] = {}
        self.handed: dict[str, Endpoint] = {}
        self.begun: set[int] = set()
        self.told: set[str] = set()
        """Requests whose clients have something of their answer."""
        self.count = 0

    def tell(self, fact: Fact, after_s: float = 0.0) -> None:
        for effect in self.bench.tell(fact, after_s):
            match effect:
                case StartLeg():
                    assert self.open[effect.request_id] is None
                    assert effect.request_id not in self.told
                    self.open[effect.request_id] = effect
                    assert effect.source == self.handed.pop(effect.request_id, None)
                    assert (effect.stage is Stage.DECODE) == (effect.source is not None)
                    assert (effect.stage is Stage.PREFILL) == (effect.endpoint.role is Role.PREFILL)
                    assert effect.decision.stage is effect.stage
                case CancelLeg():
                    its = self.open[effect.request_id]
                    assert its is not None
                    assert its.leg == effect.leg
                    self.open[effect.request_id] = None
                case Ended():
                    del self.open[effect.request_id]
                    self.handed.pop(effect.request_id, None)

    def leg(self, data: st.DataObject, *stages: Stage) -> StartLeg | None:
        legs = {its.leg: its for its in self.open.values() if its is not None and its.stage in stages}
        return legs[data.draw(st.sampled_from(sorted(legs)))] if legs else None

    @rule(
        stream=st.booleans(),
        blocks=st.sampled_from([0, 1, 2, 5, 20]),
        first=st.integers(0, 3),
        priority=st.integers(0, 1),
    )
    def arrive(self, stream: bool, blocks: int, first: int, priority: int) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.open[name] = None
        prefix = tuple(100 * first + i for i in range(blocks))
        asked = {"stream": stream, "prefix": prefix, "prompt_tokens": 64 * blocks + 10, "priority": priority}
        self.tell(RequestArrived(request(name, self.bench.now_s, **asked)))

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        if (its := self.leg(data, Stage.WHOLE, Stage.DECODE)) is not None:
            self.begun.add(its.leg)
            self.told.add(its.request_id)
            self.tell(LegStarted(its.leg), 0.01)

    @rule(
        data=st.data(),
        cached=st.none() | st.integers(0, 100),
        handoff=st.booleans(),
        status=st.sampled_from([200, 200, 400]),
    )
    def prefilled(self, data: st.DataObject, cached: int | None, handoff: bool, status: int) -> None:
        if (its := self.leg(data, Stage.PREFILL)) is not None:
            self.open[its.request_id] = None
            if handoff and status == 200:
                self.handed[its.request_id] = its.endpoint
            usage = Usage(prompt_tokens=300, completion_tokens=1, cached_tokens=cached)
            self.tell(LegFinished(its.leg, status, usage, handoff=handoff and status == 200), 0.05)
            assert its.request_id not in self.handed

    @rule(data=st.data(), cached=st.none() | st.integers(0, 100), status=st.sampled_from([200, 400]))
    def finish(self, data: st.DataObject, cached: int | None, status: int) -> None:
        if (its := self.leg(data, Stage.WHOLE, Stage.DECODE)) is not None:
            self.tell(LegFinished(its.leg, status, Usage(prompt_tokens=300, completion_tokens=5, cached_tokens=cached)))
            assert its.request_id not in self.open

    @rule(data=st.data(), fault=st.sampled_from(list(Fault)), status=st.sampled_from([500, 503]))
    def fail(self, data: st.DataObject, fault: Fault, status: int) -> None:
        if (its := self.leg(data, *Stage)) is not None:
            self.open[its.request_id] = None
            self.tell(LegFailed(its.leg, fault, status))
            assert its.request_id not in self.open or its.leg not in self.begun

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.open:
            name = data.draw(st.sampled_from(sorted(self.open)))
            self.tell(ClientLeft(name))
            assert name not in self.open

    @rule(name=st.sampled_from(["p1", "p2", "p3", "d1", "d2", "b1"]), draining=st.booleans())
    def see(self, name: str, draining: bool) -> None:
        self.tell(EndpointSeen(endpoint(name, draining=draining)))

    @rule(name=st.sampled_from(["p1", "p2", "d1", "b1"]))
    def lose(self, name: str) -> None:
        self.tell(EndpointGone(name))

    @rule(name=st.sampled_from(["p1", "p2", "d1", "b1"]), healthy=st.booleans())
    def check_health(self, name: str, healthy: bool) -> None:
        self.tell(HealthChecked(name, healthy))

    @rule(after_s=st.sampled_from([0.1, 5.0, 31.0]))
    def wait(self, after_s: float) -> None:
        self.tell(TimerDue(), after_s)

    @invariant()
    def all_open_requests_wait_or_have_a_leg(self) -> None:
        statistics = self.bench.router.statistics(self.bench.now_s)
        assert list(self.open.values()).count(None) == sum(band.queued_requests for band in statistics.flow.bands)
        assert statistics.in_flight == len(self.open)

    def teardown(self) -> None:
        self.tell(Drain(self.bench.now_s))
        self.tell(TimerDue(), 1.0)
        assert self.open == {}
        statistics = self.bench.router.statistics(self.bench.now_s)
        assert all(e.prefilling == e.decoding == e.context_tokens == 0 for e in statistics.endpoints)
        assert all(model.running == 0 for model in statistics.models.values())


Life.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


class Waiting(Life):
    """The same with engines that are full after a request or two."""

    sections: ClassVar[dict[str, object]] = {
        "flow": Flow(engine_wait_s=0.01, ttl_s=20.0, queued_requests=4),
        "disaggregation": Disaggregation(mode="always"),
    }


Waiting.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestWaiting = Waiting.TestCase
