"""A tenant's limits: what lets a request in, what it is charged, and that all of it is settled however it ends."""

from math import floor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from beaconry.config.tenants import TenantLimits
from beaconry.tenancy.allowances import FIRST_OUTPUT_TOKENS, Allowances
from beaconry.values.errors import InternalError
from beaconry.values.outcome import Outcome
from beaconry.values.request import Api, Request, Usage
from beaconry.values.tenant import LimitKind

PAID = [Outcome.COMPLETED, Outcome.STREAM_BROKEN, Outcome.CLIENT_GONE]
FREE = [outcome for outcome in Outcome if outcome not in PAID]


def limited(**limits) -> Allowances:
    allowances = Allowances()
    allowances.configure({"acme": TenantLimits(**limits)}, 0.0)
    return allowances


def request(name="r", **fields) -> Request:
    given = {"account": "acme", "prompt_tokens": 100, "output_tokens": 10, **fields}
    return Request(id=name, model="m", api=Api.CHAT, arrived_s=0.0, **given)


def left(allowances: Allowances, now_s: float = 0.0) -> dict[str, int]:
    return {one.kind.value: one.remaining for one in allowances.left("acme", now_s)}


def usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def test_a_tenant_without_limits_is_counted_and_told_nothing():
    allowances = limited()
    assert allowances.arrive(request(), 0.0) is None
    assert allowances.left("acme", 0.0) == ()
    assert allowances.statistics()["acme"].running == 1


def test_a_tenant_that_is_not_configured_is_told_nothing():
    allowances = limited(requests_per_s=2.0)
    assert allowances.left("others", 0.0) == allowances.left(None, 0.0) == ()


def test_a_lost_request_is_noticed():
    allowances = limited()
    allowances.arrive(request(), 0.0)
    allowances.check()
    allowances._accounts["acme"].running = 0
    with pytest.raises(InternalError, match="acme counts 0 requests, 1 are charged"):
        allowances.check()


def test_requests_come_in_bursts_and_then_at_their_rate():
    allowances = limited(requests_per_s=2.0, burst_requests=3)
    assert [allowances.arrive(request(str(i)), 0.0) is None for i in range(4)] == [True, True, True, False]
    refusal = allowances.arrive(request("late"), 0.1)
    assert (refusal.kind, refusal.retry_after_s) == (LimitKind.REQUESTS, pytest.approx(0.4))
    assert "2 requests per second" in refusal.message
    assert allowances.arrive(request("late"), 0.5) is None


def test_without_a_burst_one_second_may_come_at_once_and_at_least_one_request():
    assert left(limited(requests_per_s=7.0)) == {"requests": 7}
    assert left(limited(requests_per_s=0.1)) == {"requests": 1}


def test_input_is_charged_by_estimate_and_settled_by_what_the_engine_counted():
    allowances = limited(input_tokens_per_minute=600)
    allowances.arrive(request(prompt_tokens=100), 0.0)
    assert left(allowances) == {"input-tokens": 500}
    allowances.reported("r", usage(250, 10), 0.0)
    assert left(allowances) == {"input-tokens": 350}
    allowances.end("r", Outcome.COMPLETED, 1, 0.0)
    assert left(allowances) == {"input-tokens": 350}
    assert left(allowances, 25.0) == {"input-tokens": 600}


def test_output_is_reserved_by_the_cap_of_the_caller_for_each_sequence():
    allowances = limited(output_tokens_per_minute=1000)
    allowances.arrive(request(output_tokens=50, sequences=3), 0.0)
    assert left(allowances) == {"output-tokens": 850}
    allowances.reported("r", usage(100, 30), 0.0)
    assert left(allowances) == {"output-tokens": 970}


def test_without_a_cap_or_with_a_huge_one_output_is_reserved_by_what_was_usual_lately():
    allowances = limited(output_tokens_per_minute=100_000)
    allowances.arrive(request(output_tokens=None), 0.0)
    assert left(allowances) == {"output-tokens": 100_000 - FIRST_OUTPUT_TOKENS}
    for number in range(200):
        allowances.arrive(request(str(number)), 0.0)
        allowances.reported(str(number), usage(10, 40), 0.0)
        allowances.end(str(number), Outcome.COMPLETED, 1, 0.0)
    before = left(allowances)["output-tokens"]
    allowances.arrive(request("huge", output_tokens=1_000_000), 0.0)
    assert before - left(allowances)["output-tokens"] == pytest.approx(40, abs=1)


@pytest.mark.parametrize("outcome", PAID)
def test_an_answer_that_was_given_without_a_report_is_charged_as_estimated(outcome):
    allowances = limited(input_tokens_per_minute=600, output_tokens_per_minute=600)
    allowances.arrive(request(), 0.0)
    allowances.end("r", outcome, 1, 0.0)
    assert left(allowances) == {"input-tokens": 500, "output-tokens": 590}


@pytest.mark.parametrize(("outcome", "attempts"), [*((one, 1) for one in FREE), (Outcome.CLIENT_GONE, 0)])
def test_an_answer_that_was_never_given_costs_no_tokens_but_counts_as_a_request(outcome, attempts):
    allowances = limited(
        requests_per_s=1.0, burst_requests=5, input_tokens_per_minute=600, output_tokens_per_minute=600
    )
    allowances.arrive(request(), 0.0)
    allowances.end("r", outcome, attempts, 0.0)
    assert left(allowances) == {"requests": 4, "input-tokens": 600, "output-tokens": 600}


def test_concurrency_is_refused_until_one_has_ended():
    allowances = limited(concurrency=2)
    assert [allowances.arrive(request(name), 0.0) is None for name in "abc"] == [True, True, False]
    allowances.end("a", Outcome.CLIENT_GONE, 1, 5.0)
    assert allowances.arrive(request("c"), 5.0) is None
    refusal = allowances.arrive(request("d"), 5.0)
    assert refusal.kind is LimitKind.CONCURRENCY
    assert refusal.retry_after_s > 0


def test_a_refused_request_is_charged_to_no_limit():
    allowances = limited(requests_per_s=5.0, input_tokens_per_minute=150)
    allowances.arrive(request("a"), 0.0)
    before = left(allowances)
    assert allowances.arrive(request("b"), 0.0).kind is LimitKind.INPUT_TOKENS
    assert left(allowances) == before
    assert allowances.statistics()["acme"].limited == {LimitKind.INPUT_TOKENS: 1}
    assert allowances.statistics()["acme"].outcomes == {Outcome.RATE_LIMITED: 1}


def test_a_prompt_above_the_limit_is_let_in_when_nothing_is_owed_and_paid_off_later():
    allowances = limited(input_tokens_per_minute=60)
    assert allowances.arrive(request("a", prompt_tokens=300), 0.0) is None
    assert allowances.arrive(request("b", prompt_tokens=1), 0.0).retry_after_s == pytest.approx(241)


def test_new_limits_keep_what_has_been_taken_and_drop_what_is_gone():
    allowances = limited(requests_per_s=10.0, input_tokens_per_minute=1000)
    allowances.arrive(request(prompt_tokens=500), 0.0)
    allowances.configure({"acme": TenantLimits(input_tokens_per_minute=100, concurrency=1)}, 0.0)
    assert left(allowances) == {"input-tokens": 50}
    assert allowances.arrive(request("b"), 0.0).kind is LimitKind.INPUT_TOKENS


def test_a_tenant_that_is_removed_ends_its_requests_in_peace():
    allowances = limited(concurrency=1)
    allowances.arrive(request("a"), 0.0)
    allowances.configure({}, 0.0)
    assert allowances.arrive(request("b"), 0.0) is None
    allowances.check()
    allowances.end("a", Outcome.COMPLETED, 1, 1.0)
    allowances.end("b", Outcome.COMPLETED, 1, 1.0)
    allowances.check()
    assert allowances.statistics() == {}


class AnyOrder(RuleBasedStateMachine):
    """Arrivals, reports, ends and new limits in any order, beside a naive count of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.count = 0
        self.running: dict[str, set[str]] = {"a": set(), "b": set()}
        self.limits = {
            "a": TenantLimits(concurrency=2, input_tokens_per_minute=500),
            "b": TenantLimits(requests_per_s=3),
        }
        self.allowances = Allowances()
        self.allowances.configure(self.limits, 0.0)

    @rule(tenant=st.sampled_from("ab"), prompt=st.integers(0, 700), cap=st.none() | st.integers(0, 100))
    def arrive(self, tenant, prompt, cap):
        self.count += 1
        name = str(self.count)
        room = self.limits[tenant].concurrency
        one = request(name, account=tenant, prompt_tokens=prompt, output_tokens=cap)
        refusal = self.allowances.arrive(one, self.now_s)
        if room is not None and len(self.running[tenant]) >= room:
            assert refusal is not None
        if refusal is None:
            self.running[tenant].add(name)
        else:
            assert refusal.retry_after_s > 0

    @rule(tenant=st.sampled_from("ab"), tokens=st.integers(0, 900))
    def report(self, tenant, tokens):
        for name in sorted(self.running[tenant])[:1]:
            self.allowances.reported(name, usage(tokens, tokens), self.now_s)

    @rule(tenant=st.sampled_from("ab"), outcome=st.sampled_from(list(Outcome)), attempts=st.integers(0, 2))
    def end(self, tenant, outcome, attempts):
        for name in sorted(self.running[tenant])[:1]:
            self.allowances.end(name, outcome, attempts, self.now_s)
            self.running[tenant].remove(name)
            self.allowances.end(name, outcome, attempts, self.now_s)

    @rule(concurrency=st.none() | st.integers(1, 3), per_minute=st.none() | st.integers(1, 1000))
    def reload(self, concurrency, per_minute):
        self.limits["a"] = TenantLimits(concurrency=concurrency, output_tokens_per_minute=per_minute)
        self.allowances.configure(self.limits, self.now_s)

    @rule(after_s=st.floats(0, 30))
    def wait(self, after_s):
        self.now_s += after_s

    @invariant()
    def counts_are_exact_and_nothing_is_below_zero_or_above_its_limit(self):
        self.allowances.check()
        statistics = self.allowances.statistics()
        for tenant, names in self.running.items():
            assert statistics[tenant].running == len(names)
            for one in self.allowances.left(tenant, self.now_s):
                assert 0 <= one.remaining <= one.limit == floor(one.limit)
                assert one.reset_s >= 0


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
