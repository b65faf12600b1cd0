"""Tenants in the machine: limits hold under virtual time, and however a request ends, its place is given back."""

from hypothesis import given
from hypothesis import strategies as st

from beaconry.config.tenants import TenantLimits
from beaconry.router.effects import Answer, StartLeg, TellAllowance
from beaconry.router.facts import (
    ClientLeft,
    EndpointGone,
    Fault,
    LegFailed,
    LegFinished,
    LegStarted,
    RequestArrived,
    TenantsChanged,
    TimerDue,
)
from beaconry.values.outcome import Outcome
from beaconry.values.request import Usage
from tests.unit.router.test_router import Bench, ended, request

USAGE = Usage(prompt_tokens=640, completion_tokens=20)


def bench(**limits) -> Bench:
    made = Bench()
    made.tell(TenantsChanged({"acme": TenantLimits(**limits)}))
    return made


def arrive(made: Bench, name: str, **fields):
    return made.tell(RequestArrived(request(name, made.now_s, account="acme", **fields)))


def test_a_request_within_its_limits_is_told_what_is_left_and_sent_on():
    told, start = arrive(bench(requests_per_s=5.0), "r")
    assert isinstance(told, TellAllowance)
    assert [(one.kind, one.limit, one.remaining) for one in told.allowances] == [("requests", 5, 4)]
    assert isinstance(start, StartLeg)


def test_a_request_beyond_a_limit_is_answered_429_and_costs_nothing():
    made = bench(requests_per_s=0.5)
    arrive(made, "r")
    told, answer, end = arrive(made, "s")
    assert isinstance(told, TellAllowance)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.retry_after_s, end.outcome) == (429, 2.0, Outcome.RATE_LIMITED)
    assert made.outcomes() == {Outcome.RATE_LIMITED: 1}
    made.now_s += 2.0
    assert isinstance(arrive(made, "s")[-1], StartLeg)


def test_a_tenant_without_limits_and_a_request_without_tenant_are_told_nothing():
    made = bench()
    assert [type(effect) for effect in arrive(made, "r")] == [StartLeg]
    made.send("s")
    assert made.router.statistics(0.0).tenants["acme"].running == 1


def test_an_unknown_model_is_charged_to_nobody():
    made = bench(requests_per_s=1.0)
    answer, _ = arrive(made, "r", model="none")
    assert answer.status == 404
    assert isinstance(arrive(made, "s")[-1], StartLeg)


def test_the_engines_usage_is_what_is_charged_in_the_end():
    made = bench(output_tokens_per_minute=6000)
    leg = arrive(made, "r", output_tokens=100)[-1].leg
    made.tell(LegStarted(leg))
    made.tell(LegFinished(leg, 200, USAGE))
    (told, _) = arrive(made, "s", output_tokens=0)
    assert told.allowances[0].remaining == 5980
    statistics = made.router.statistics(0.0).tenants["acme"]
    assert (statistics.input_tokens, statistics.output_tokens) == (640, 20)


ENDS = ("finish", "refuse", "fail", "break", "leave", "leave late", "time out", "lose all engines")


def end(made: Bench, leg: int, name: str, how: str) -> list[Outcome]:
    """End a running request in one of the ways there are."""
    if how in ("break", "leave late"):
        made.tell(LegStarted(leg))
    match how:
        case "finish":
            return ended(made.tell(LegFinished(leg, 200, USAGE)))
        case "refuse":
            return ended(made.tell(LegFinished(leg, 400)))
        case "leave" | "leave late":
            return ended(made.tell(ClientLeft(name)))
        case "time out":
            return ended(made.tell(TimerDue(), after_s=200.0))
        case "lose all engines":
            made.tell(EndpointGone("a"))
            made.tell(EndpointGone("b"))
    effects = made.tell(LegFailed(leg, Fault.RESET))
    while effects and isinstance(effects[0], StartLeg):
        effects = made.tell(LegFailed(effects[0].leg, Fault.RESET))
    return ended(effects)


@given(st.lists(st.sampled_from(ENDS), min_size=1, max_size=6))
def test_however_requests_end_each_ends_once_and_concurrency_returns_to_zero(ways):
    made = bench(concurrency=6)
    running = {}
    for number, how in enumerate(ways):
        effects = arrive(made, f"r{number}")
        if isinstance(effects[-1], StartLeg):
            running[f"r{number}"] = effects[-1].leg
            assert made.router.statistics(made.now_s).tenants["acme"].running == len(running)
        outcomes = []
        while not outcomes and running:
            name, leg = running.popitem()
            outcomes = end(made, leg, name, how)
        made.router.check()
        if how == "time out":
            running.clear()
    assert made.router.statistics(made.now_s).tenants["acme"].running == len(running)
