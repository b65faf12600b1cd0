"""The machine: every request has exactly one outcome, every counter returns to zero, failures move where they may."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs

from beaconry.config.flow import Flow
from beaconry.config.gateway import Retry
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
    RequestArrived,
    TimerDue,
)
from beaconry.values.outcome import Outcome
from beaconry.values.request import Api, Request, Usage
from tests.unit.router.made import RETRY, endpoint, make_router

NAMES = ("a", "b", "c")


def request(name: str, arrived_s: float = 0.0, **fields: object) -> Request:
    given = {"model": "m", "prompt_tokens": 640, "prefix": tuple(range(10)), "stream": True, **fields}
    return Request(id=name, api=Api.CHAT, arrived_s=arrived_s, **given)


class Bench:
    """A router, its clock, and what it has said so far."""

    def __init__(self, names: str = "ab", policy: str = "round-robin", retry: Retry = RETRY) -> None:
        # test_admission.py is about waiting
        self.router = make_router(policy=policy, flow=Flow(enabled=False), retry=retry)
        self.now_s = 0.0
        for name in names:
            self.tell(EndpointSeen(endpoint(name)))

    def tell(self, fact: Fact, after_s: float = 0.0) -> list[Effect]:
        self.now_s += after_s
        effects = self.router.handle(fact, self.now_s)
        self.router.check()
        return [effect for effect in effects if not isinstance(effect, WakeAt)]

    def send(self, name: str, **fields: object) -> StartLeg:
        (start,) = self.tell(RequestArrived(request(name, self.now_s, **fields)))
        assert isinstance(start, StartLeg)
        return start

    def outcomes(self) -> dict[Outcome, int]:
        return self.router.statistics(self.now_s).models["m"].outcomes

    def state(self, name: str) -> str:
        return next(e.state for e in self.router.statistics(self.now_s).endpoints if e.endpoint.name == name)


def ended(effects: list[Effect]) -> list[Outcome]:
    return [effect.outcome for effect in effects if isinstance(effect, Ended)]


def test_a_request_that_goes_well_leaves_nothing_behind():
    bench = Bench()
    leg = bench.send("r").leg
    assert bench.tell(LegStarted(leg), after_s=0.5) == []
    effects = bench.tell(
        LegFinished(leg, 200, Usage(prompt_tokens=640, completion_tokens=11, cached_tokens=0)), after_s=1.0
    )
    assert ended(effects) == [Outcome.COMPLETED]
    statistics = bench.router.statistics(bench.now_s)
    assert statistics.in_flight == 0
    assert statistics.models["m"].ttft.total == pytest.approx(0.5)
    assert statistics.models["m"].itl.total == pytest.approx(0.1)
    assert all(e.prefilling == e.decoding == e.prefill_tokens == e.context_tokens == 0 for e in statistics.endpoints)


def test_an_unknown_model_is_refused_with_404():
    answer, end = Bench().tell(RequestArrived(request("r", model="other")))
    assert isinstance(answer, Answer)
    assert (answer.status, end.outcome) == (404, Outcome.REFUSED)


def test_without_any_endpoint_left_the_answer_is_503():
    bench = Bench("a")
    bench.tell(EndpointSeen(endpoint("a", draining=True)))
    answer, end = bench.tell(RequestArrived(request("r")))
    assert (answer.status, end.outcome, answer.retry_after_s) == (503, Outcome.NO_ENDPOINT, 1.0)


def test_a_request_for_an_adapter_goes_to_an_endpoint_that_serves_it():
    bench = Bench("abc")
    assert isinstance(bench.tell(RequestArrived(request("early", model="ad")))[0], Answer)
    bench.tell(AdaptersSeen("b", {"ad": "/ad"}))
    assert bench.router.models() == ("m", "ad")
    assert {bench.send(str(i), model="ad").endpoint.name for i in range(4)} == {"b"}
    bench.tell(AdaptersSeen("c", {"ad": "/ad"}))
    assert {bench.send(f"more{i}", model="ad").endpoint.name for i in range(4)} == {"b", "c"}
    bench.tell(AdaptersSeen("b", {}))
    bench.tell(EndpointGone("c"))
    answer, _ = bench.tell(RequestArrived(request("late", model="ad")))
    assert answer.status == 404


def test_an_adapter_never_takes_the_name_of_a_model():
    bench = Bench("ab")
    bench.tell(EndpointSeen(structs.replace(endpoint("c"), model="other")))
    bench.tell(AdaptersSeen("c", {"m": "/evil", "ad": "/ad"}))
    assert {bench.send(str(i)).endpoint.name for i in range(4)} == {"a", "b"}
    assert bench.router.models() == ("m", "other", "ad")


def test_an_address_that_changes_has_no_adapters_until_they_are_seen_again():
    bench = Bench("a")
    bench.tell(AdaptersSeen("a", {"ad": "/ad"}))
    bench.tell(EndpointSeen(structs.replace(endpoint("a"), port=1)))
    assert bench.router.models() == ("m",)


@pytest.mark.parametrize("fault", [Fault.CONNECT, Fault.RESET, Fault.STATUS, Fault.ABORTED, Fault.PROTOCOL])
def test_a_leg_that_fails_before_its_first_byte_is_sent_elsewhere(fault: Fault):
    bench = Bench("ab")
    first = bench.send("r")
    (second,) = bench.tell(LegFailed(first.leg, fault, 500))
    assert isinstance(second, StartLeg)
    assert second.endpoint.name != first.endpoint.name
    assert ended(bench.tell(LegFinished(second.leg))) == [Outcome.COMPLETED]


def test_when_all_attempts_fail_the_answer_is_502_once():
    bench = Bench("abc", retry=Retry(attempts=2))
    leg = bench.send("r").leg
    (second,) = bench.tell(LegFailed(leg, Fault.RESET))
    answer, end = bench.tell(LegFailed(second.leg, Fault.RESET))
    assert (answer.status, end.outcome, end.attempts) == (502, Outcome.ENGINE_FAILED, 2)
    assert bench.tell(LegFailed(second.leg, Fault.RESET)) == []


def test_full_engines_are_answered_with_503_and_not_ejected():
    bench = Bench("a")
    for name in "rstu":
        leg = bench.send(name).leg
        answer = bench.tell(LegFailed(leg, Fault.STATUS, 503))[0]
        assert (answer.status, answer.retry_after_s) == (503, 1.0)
    assert bench.state("a") == "ready"


def test_a_failure_after_the_first_byte_breaks_the_stream():
    bench = Bench()
    leg = bench.send("r").leg
    bench.tell(LegStarted(leg))
    broken, end = bench.tell(LegFailed(leg, Fault.RESET))
    assert isinstance(broken, BreakStream)
    assert end.outcome is Outcome.STREAM_BROKEN


def test_retries_stop_when_their_budget_is_spent():
    bench = Bench("ab", retry=Retry(attempts=2, budget_ratio=0.0, budget_floor=1))
    legs = [bench.send(name).leg for name in "rs"]
    assert isinstance(bench.tell(LegFailed(legs[0], Fault.STATUS, 503))[0], StartLeg)
    assert isinstance(bench.tell(LegFailed(legs[1], Fault.STATUS, 503))[0], Answer)


def test_all_legs_of_an_engine_that_dies_are_retried_however_small_the_budget():
    bench = Bench("ab", retry=Retry(attempts=2, budget_ratio=0.0, budget_floor=0))
    legs = [start.leg for start in (bench.send(name) for name in "rstu") if start.endpoint.name == "a"]
    assert [type(bench.tell(LegFailed(leg, Fault.RESET))[0]) for leg in legs] == [StartLeg] * 2


def test_an_endpoint_that_keeps_failing_is_ejected_then_probed_then_trusted():
    bench = Bench("ab", policy="least-requests")
    for name in "rstu":
        start = bench.send(name)
        if start.endpoint.name == "b":
            bench.tell(LegFinished(start.leg))
        else:
            (second,) = bench.tell(LegFailed(start.leg, Fault.STATUS, 500))
            bench.tell(LegFinished(second.leg))
        bench.send("fill-" + name)  # keeps the two apart in load
    count = 0
    while bench.state("a") != "ejected":
        count += 1
        start = bench.send(f"x{count}")
        if start.endpoint.name == "a":
            bench.tell(LegFailed(start.leg, Fault.STATUS, 500))
    assert all(bench.send(f"away-{i}").endpoint.name == "b" for i in range(5))
    bench.now_s += 6.0
    assert bench.state("a") == "probing"


def test_if_all_are_ejected_they_are_still_used():
    bench = Bench("a")
    for name in "rst":
        bench.tell(LegFailed(bench.send(name).leg, Fault.RESET))
    assert bench.state("a") == "ejected"
    assert bench.send("u").endpoint.name == "a"


def test_an_endpoint_that_fails_its_health_checks_loses_what_has_not_begun():
    bench = Bench("ab")
    starts = [bench.send(name) for name in "rs"]
    waiting = next(s for s in starts if s.endpoint.name == "a")
    bench.tell(HealthChecked("a", healthy=False))
    cancel, moved = bench.tell(HealthChecked("a", healthy=False))
    assert cancel == CancelLeg(waiting.request_id, waiting.leg)
    assert moved.endpoint.name == "b"
    assert bench.state("a") == "unhealthy"
    bench.tell(HealthChecked("a", healthy=True))
    assert bench.state("a") == "ready"


def test_a_client_that_leaves_cancels_its_leg_at_once():
    bench = Bench()
    leg = bench.send("r").leg
    cancel, end = bench.tell(ClientLeft("r"))
    assert (cancel.leg, end.outcome) == (leg, Outcome.CLIENT_GONE)
    assert bench.tell(ClientLeft("r")) == []


def test_a_stream_without_first_byte_ends_with_504_at_its_deadline():
    bench = Bench()
    effects = bench.router.handle(RequestArrived(request("r")), 0.0)
    assert min(effect.at_s for effect in effects if isinstance(effect, WakeAt)) == 30.0
    assert bench.tell(TimerDue(), after_s=29.0) == []
    cancel, answer, end = bench.tell(TimerDue(), after_s=1.0)
    assert isinstance(cancel, CancelLeg)
    assert (answer.status, end.outcome) == (504, Outcome.ENGINE_TIMEOUT)


def test_a_stream_that_stalls_is_broken_and_one_that_goes_on_is_not():
    bench = Bench()
    legs = [bench.send(name).leg for name in "rs"]
    for leg in legs:
        bench.tell(LegStarted(leg))
    bench.tell(LegProgressed(legs[1]), after_s=9.0)
    effects = bench.tell(TimerDue(), after_s=2.0)
    assert [type(e) for e in effects] == [CancelLeg, BreakStream, Ended]
    assert effects[0].leg == legs[0]


def test_a_whole_answer_may_take_longer_than_a_first_byte_but_not_than_the_total():
    bench = Bench()
    bench.send("r", stream=False)
    assert bench.tell(TimerDue(), after_s=60.0) == []
    assert ended(bench.tell(TimerDue(), after_s=41.0)) == [Outcome.ENGINE_TIMEOUT]


def test_draining_refuses_new_requests_and_cuts_off_at_its_deadline():
    bench = Bench()
    legs = [bench.send(name).leg for name in "rs"]
    bench.tell(LegStarted(legs[0]))
    bench.tell(Drain(5.0))
    answer, end = bench.tell(RequestArrived(request("t")))
    assert (answer.status, end.outcome) == (503, Outcome.SHUTTING_DOWN)
    assert ended(bench.tell(LegFinished(legs[1]))) == [Outcome.COMPLETED]
    assert ended(bench.tell(TimerDue(), after_s=5.0)) == [Outcome.SHUTTING_DOWN]
    assert bench.router.statistics(bench.now_s).in_flight == 0


def test_a_gone_endpoint_finishes_its_legs_and_gets_nothing_new():
    bench = Bench("ab")
    starts = {s.endpoint.name: s for s in (bench.send("r"), bench.send("s"))}
    bench.tell(EndpointGone("a"))
    assert all(bench.send(f"x{i}").endpoint.name == "b" for i in range(4))
    assert ended(bench.tell(LegFinished(starts["a"].leg))) == [Outcome.COMPLETED]
    assert {e.endpoint.name for e in bench.router.statistics(0).endpoints} == {"b"}


def test_text_density_is_learnt_from_usage():
    bench = Bench()
    for i in range(60):
        leg = bench.send(str(i), prompt_bytes=4000).leg
        bench.tell(LegFinished(leg, 200, Usage(prompt_tokens=2000, completion_tokens=1)))
    assert bench.router.tokens_per_byte("m") == pytest.approx(0.5, rel=0.01)
    assert bench.router.tokens_per_byte("other") == 0.25


class Life(RuleBasedStateMachine):
    """Any facts in any order: the invariants hold, and each request ends exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench("ab", policy="expected-cost")
        self.open: dict[str, int | None] = {}
        self.begun: set[int] = set()
        self.count = 0

    def tell(self, fact: Fact, after_s: float = 0.0) -> None:
        for effect in self.bench.tell(fact, after_s):
            match effect:
                case StartLeg():
                    assert self.open[effect.request_id] is None
                    self.open[effect.request_id] = effect.leg
                case CancelLeg():
                    assert self.open[effect.request_id] == effect.leg
                    self.open[effect.request_id] = None
                case Ended():
                    del self.open[effect.request_id]

    def leg(self, data: st.DataObject) -> int | None:
        legs = sorted(leg for leg in self.open.values() if leg is not None)
        return data.draw(st.sampled_from(legs)) if legs else None

    @rule(stream=st.booleans(), blocks=st.integers(0, 5), model=st.sampled_from(["m", "m", "m", "none"]))
    def arrive(self, stream: bool, blocks: int, model: str) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.open[name] = None
        self.tell(
            RequestArrived(request(name, self.bench.now_s, stream=stream, prefix=tuple(range(blocks)), model=model))
        )

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        if (leg := self.leg(data)) is not None:
            self.begun.add(leg)
            self.tell(LegStarted(leg))

    @rule(data=st.data(), cached=st.none() | st.integers(0, 640), status=st.sampled_from([200, 400]))
    def finish(self, data: st.DataObject, cached: int | None, status: int) -> None:
        if (leg := self.leg(data)) is not None:
            request_id = next(name for name, its in self.open.items() if its == leg)
            self.tell(
                LegFinished(leg, status, Usage(prompt_tokens=640, completion_tokens=5, cached_tokens=cached)), 0.01
            )
            assert request_id not in self.open

    @rule(data=st.data(), fault=st.sampled_from(list(Fault)), status=st.sampled_from([500, 503]))
    def fail(self, data: st.DataObject, fault: Fault, status: int) -> None:
        if (leg := self.leg(data)) is not None:
            request_id = next(name for name, its in self.open.items() if its == leg)
            self.open[request_id] = None
            self.tell(LegFailed(leg, fault, status))
            assert request_id not in self.open or leg not in self.begun

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.open:
            name = data.draw(st.sampled_from(sorted(self.open)))
            self.tell(ClientLeft(name))
            assert name not in self.open

    @rule(name=st.sampled_from(NAMES), draining=st.booleans())
    def see(self, name: str, draining: bool) -> None:
        self.tell(EndpointSeen(endpoint(name, draining=draining)))

    @rule(name=st.sampled_from(NAMES))
    def lose(self, name: str) -> None:
        self.tell(EndpointGone(name))

    @rule(name=st.sampled_from(NAMES), healthy=st.booleans())
    def check_health(self, name: str, healthy: bool) -> None:
        self.tell(HealthChecked(name, healthy))

    @rule(after_s=st.sampled_from([0.1, 5.0, 31.0]))
    def wait(self, after_s: float) -> None:
        self.tell(TimerDue(), after_s)

    @rule(leg=st.integers(0, 50))
    def late_news(self, leg: int) -> None:
        if leg not in self.open.values():
            assert self.bench.tell(LegFinished(leg)) == []

    @invariant()
    def all_open_requests_have_a_leg(self) -> None:
        assert None not in self.open.values()
        assert self.bench.router.statistics(self.bench.now_s).in_flight == len(self.open)

    def teardown(self) -> None:
        self.tell(Drain(self.bench.now_s))
        self.tell(TimerDue(), 1.0)
        assert self.open == {}
        statistics = self.bench.router.statistics(self.bench.now_s)
        assert all(
            e.prefilling == e.decoding == e.prefill_tokens == e.context_tokens == 0 for e in statistics.endpoints
        )
        assert all(model.running == 0 for model in statistics.models.values())


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


def test_a_large_fleet_is_judged_by_a_shortlist_and_a_small_one_whole():
    for endpoints in (16, 17, 300):
        bench = Bench("")
        for i in range(endpoints):
            bench.tell(EndpointSeen(endpoint(f"e{i}")))
        judged = len(bench.send("r").decision.candidates)
        assert judged == 16 if endpoints == 16 else judged <= 16


def test_a_large_fleet_with_one_healthy_engine_still_serves():
    bench = Bench("")
    for i in range(100):
        bench.tell(EndpointSeen(endpoint(f"e{i}")))
        if i != 77:
            for _ in range(2):
                bench.tell(HealthChecked(f"e{i}", healthy=False))
    assert {bench.send(f"r{number}").endpoint.name for number in range(10)} == {"e77"}
