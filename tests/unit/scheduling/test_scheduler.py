"""Filters, policies and what happens when one of them raises."""

from random import Random

import pytest

from beaconry.config.gateway import Profile
from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import KINDS, Registry
from beaconry.scheduling.scheduler import Scheduler, make_scheduler
from beaconry.scheduling.simple import LeastRequests
from beaconry.testing import (
    cases,
    check_cost_term,
    check_filter,
    check_picker,
    check_policy,
    check_predictor,
    check_scorer,
)
from beaconry.values.candidate import Candidate
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import OperatorError
from beaconry.values.request import Api, Request

REQUEST = Request(id="r", model="m", api=Api.CHAT, arrived_s=0.0, prompt_tokens=1000, output_tokens=50)
INSTALLED = Registry.installed()


class Raises:
    """Every kind of plugin at once, and none that works."""

    def __init__(self, *_):
        pass

    def keep(self, request, candidates):
        raise RuntimeError("no filter")

    def score(self, request, candidates):
        raise RuntimeError("no score")

    def cost_s(self, request, candidate, prediction):
        raise RuntimeError("no cost")

    def rank(self, request, candidates, now_s, rng):
        raise RuntimeError("no rank")


def candidate(name, **fields):
    return Candidate(endpoint=Endpoint(name=name, host="h", port=1, model="m"), **fields)


def registry_with(**plugins):
    extra = [(key.replace("__", "/").replace("_", "-"), lambda made=made: made) for key, made in plugins.items()]
    return Registry(
        [*((f"{k}/{n}", lambda k=k, n=n: INSTALLED.factory(k, n)) for k in KINDS for n in INSTALLED.names(k)), *extra]
    )


@pytest.mark.parametrize("name", INSTALLED.names("policy"))
def test_each_built_in_policy_keeps_the_contract(name):
    check_policy(INSTALLED.factory("policy", name)(RateBook()))


@pytest.mark.parametrize("name", INSTALLED.names("scorer"))
def test_each_built_in_scorer_keeps_the_contract(name):
    check_scorer(INSTALLED.factory("scorer", name)())


@pytest.mark.parametrize("name", INSTALLED.names("filter"))
def test_each_built_in_filter_keeps_the_contract(name):
    check_filter(INSTALLED.factory("filter", name)())


@pytest.mark.parametrize("name", INSTALLED.names("picker"))
def test_each_built_in_picker_keeps_the_contract(name):
    check_picker(INSTALLED.factory("picker", name)())


def test_the_rate_book_keeps_the_contract_of_predictors():
    check_predictor(RateBook())


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (check_scorer, type("S", (), {"score": lambda *_: [2.0]})()),
        (check_filter, type("F", (), {"keep": lambda _, __, c: [*c, *c]})()),
        (check_picker, type("P", (), {"pick": lambda _, t, __: len(t)})()),
        (check_cost_term, type("C", (), {"cost_s": lambda *_: float("nan")})()),
    ],
)
def test_the_contract_suites_find_a_breach(check, broken):
    with pytest.raises(AssertionError):
        check(broken)


def test_a_decision_carries_a_verdict_on_every_candidate_the_winner_first():
    for request, candidates in cases(count=50):
        decision = make_scheduler("expected-cost", RateBook(), INSTALLED).schedule(request, candidates, 0.0, Random(1))
        verdicts = decision.verdicts
        assert (
            next(v.candidate.endpoint.name for v in verdicts)
            == decision.endpoint.name
            == decision.chosen.candidate.endpoint.name
        )
        assert {v.candidate.endpoint.name for v in verdicts} == {c.endpoint.name for c in candidates}
        assert all(v.reason and v.prediction and set(v.terms) == {"ttft", "decode", "others"} for v in verdicts)
        assert [v.total for v in verdicts] == sorted(v.total for v in verdicts)
        assert sum(decision.chosen.terms.values()) == pytest.approx(decision.chosen.total)


def test_a_raising_policy_gives_way_to_the_fewest_requests_and_is_counted():
    scheduler = make_scheduler("broken", RateBook(), registry_with(policy__broken=Raises))
    decision = scheduler.schedule(REQUEST, [candidate("a", decoding=3), candidate("b", decoding=1)], 0.0, Random(1))
    assert decision.endpoint.name == "b"
    failures = scheduler.failures()["policy/broken"]
    assert (failures.count, failures.last) == (1, "RuntimeError: no rank")


def test_a_policy_that_picks_nobody_gives_way_too():
    scheduler = Scheduler("odd", type("Odd", (), {"rank": lambda *_: None})())
    assert scheduler.schedule(REQUEST, [candidate("a")], 0.0, Random(1)).endpoint.name == "a"
    assert scheduler.failures()["policy/odd"].count == 1


def test_a_raising_filter_keeps_everything_and_is_counted():
    scheduler = Scheduler("l", LeastRequests(RateBook()), [("broken", Raises())])
    decision = scheduler.schedule(REQUEST, [candidate("a"), candidate("b")], 0.0, Random(1))
    assert len(decision.verdicts) == 2
    assert scheduler.failures()["filter/broken"].count == 1


def test_a_filter_that_removes_all_has_no_opinion():
    scheduler = Scheduler("l", LeastRequests(RateBook()), [("none", type("None_", (), {"keep": lambda *_: []})())])
    assert scheduler.schedule(REQUEST, [candidate("a")], 0.0, Random(1)).endpoint.name == "a"


def test_what_a_filter_removes_is_never_picked_and_said_to_be_removed():
    first = type("First", (), {"keep": lambda _, __, c: c[:1]})()
    scheduler = Scheduler("l", LeastRequests(RateBook()), [("first", first)])
    decision = scheduler.schedule(REQUEST, [candidate("a", decoding=9), candidate("b")], 0.0, Random(1))
    assert decision.endpoint.name == "a"
    assert decision.verdicts[-1].candidate.endpoint.name == "b"
    assert decision.verdicts[-1].reason == "filtered out"


def test_a_cost_term_adds_its_seconds():
    far = type("Far", (), {"cost_s": lambda _, __, c, ___: 60.0 if c.endpoint.name == "b" else 0.0})
    profile = Profile(cost_terms=("far",))
    scheduler = make_scheduler(profile, RateBook(), registry_with(cost_term__far=far))
    decision = scheduler.schedule(REQUEST, [candidate("a", decoding=9), candidate("b")], 0.0, Random(1))
    assert decision.endpoint.name == "a"
    assert decision.verdicts[1].terms["far"] == 60.0
    assert "most of it far" in decision.verdicts[1].reason


@pytest.mark.parametrize("term", [Raises, type("Nan", (), {"cost_s": lambda *_: float("nan")})])
def test_a_cost_term_that_fails_costs_nothing_and_is_counted(term):
    scheduler = make_scheduler(Profile(cost_terms=("odd",)), RateBook(), registry_with(cost_term__odd=term))
    plain = make_scheduler("expected-cost", RateBook(), INSTALLED)
    candidates = [candidate("a", decoding=9), candidate("b")]
    decision = scheduler.schedule(REQUEST, candidates, 0.0, Random(1))
    assert decision.endpoint == plain.schedule(REQUEST, candidates, 0.0, Random(1)).endpoint
    assert scheduler.failures()["cost-term/odd"].count == 1


def test_a_scorer_that_raises_is_neutral_and_counted():
    profile = Profile(policy="weighted", scorers={"odd": 5.0, "active-request-scorer": 1.0})
    scheduler = make_scheduler(profile, RateBook(), registry_with(scorer__odd=Raises))
    decision = scheduler.schedule(REQUEST, [candidate("a", decoding=9), candidate("b", decoding=1)], 0.0, Random(1))
    assert decision.endpoint.name == "b"
    assert scheduler.failures()["scorer/odd"].count == 1


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (Profile(policy="nonsense"), 'no policy is called "nonsense"'),
        (Profile(filters=("prefix-affinity",)), 'no filter is called "prefix-affinity"'),
        (Profile(policy="weighted"), "needs at least one; known: active-request-scorer"),
        (Profile(scorers={"queue-scorer": 1.0}), 'the policy "expected-cost" has no use for them'),
        (Profile(policy="sticky", cost_terms=("x",)), 'the policy "sticky" has no use for them'),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(profile, message):
    with pytest.raises(OperatorError, match=message):
        make_scheduler(profile, RateBook(), INSTALLED)
