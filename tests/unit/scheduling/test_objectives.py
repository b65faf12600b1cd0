"""Placement by objectives: missing them has its price, and requests without any are placed as ever."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.scheduling.expected_cost import ExpectedCost
from beaconry.scheduling.objectives import FEW, Objectives, _exceeds, hopeless_s, price_s
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.testing import cases, check_policy
from beaconry.values.candidate import Candidate, Forecast, Source
from beaconry.values.decision import Decision, Ranking
from beaconry.values.endpoint import Endpoint
from beaconry.values.request import Api, Request


def forecast(ttft=0.1, itl=0.02, **fields):
    """A forecast whose range is a tenth to either side."""
    values = {
        "source": Source.SHADOW,
        "ttft_s": ttft,
        "ttft_low_s": 0.9 * ttft,
        "ttft_high_s": 1.1 * ttft,
        "itl_s": itl,
        "itl_mean_s": itl,
        "itl_low_s": 0.9 * itl,
        "itl_high_s": 1.1 * itl,
        "tail": 0.1,
    }
    return Forecast(**{**values, **fields})


class Table:
    """Forecasts by endpoint."""

    def __init__(self, **forecasts):
        self.forecasts = forecasts
        self.asked = []

    def forecast(self, request, candidate, now_s):
        self.asked.append(candidate.endpoint.name)
        return self.forecasts.get(candidate.endpoint.name, forecast())


class ByName:
    """The inner policy: costs in order of the candidates."""

    def rank(self, request, candidates, now_s, rng):
        totals = [float(i) for i in range(len(candidates))]
        return Ranking(winner=0, totals=totals, why="the first")


def request(**fields):
    return Request(id="r", model="m", api=Api.CHAT, arrived_s=10.0, prompt_tokens=1000, **fields)


def fleet(*names, **fields):
    return [Candidate(endpoint=Endpoint(name=name, host="h", port=1, model="m"), **fields) for name in names]


def winner(table, wanted, names="abc", now_s=10.0):
    candidates = fleet(*names)
    ranking = Objectives(ByName(), table).rank(wanted, candidates, now_s, Random(1))
    return candidates[ranking.winner].endpoint.name, ranking.why


def test_without_objectives_the_inner_policy_decides_alone():
    policy, inner = Objectives(ExpectedCost(RateBook()), Table()), ExpectedCost(RateBook())
    for wanted, candidates in cases():
        assert policy.rank(wanted, candidates, 1e6, Random(1)) == inner.rank(wanted, candidates, 1e6, Random(1))


def test_it_keeps_a_policys_contract():
    check_policy(Objectives(ExpectedCost(RateBook()), Table()))


def test_a_place_that_keeps_the_objective_wins_over_a_cheaper_one_that_does_not():
    table = Table(a=forecast(3.0), b=forecast(1.0), c=forecast(0.1))
    assert winner(table, request(slo_ttft_s=2.0)) == ("b", "more likely to keep the objectives")


def test_where_any_place_keeps_it_the_inner_policys_best_wins():
    table = Table(a=forecast(0.8), b=forecast(0.4), c=forecast(0.1))
    assert winner(table, request(slo_ttft_s=2.0)) == ("a", "the first")


def test_where_no_place_keeps_it_the_inner_policys_best_wins():
    table = Table(a=forecast(9.0), b=forecast(6.0), c=forecast(7.0))
    assert winner(table, request(slo_ttft_s=2.0)) == ("a", "the first")


def test_a_small_promise_does_not_outweigh_a_great_cost():
    table = Table(a=forecast(0.3), b=forecast(0.05))
    assert winner(table, request(slo_ttft_s=0.1), names="ab")[0] == "a"


def test_time_already_waited_counts():
    table = Table(a=forecast(1.5), b=forecast(0.1))
    assert winner(table, request(slo_ttft_s=2.0), names="ab", now_s=10.0)[0] == "a"
    assert winner(table, request(slo_ttft_s=2.0), names="ab", now_s=11.0)[0] == "b"


def test_an_objective_for_itl_alone_counts_too():
    table = Table(a=forecast(itl=0.08), b=forecast(itl=0.02))
    assert winner(table, request(slo_itl_s=0.04), names="ab")[0] == "b"


def test_an_engine_whose_strictest_stream_would_be_broken_is_left_alone():
    table = Table(a=forecast(0.1, itl=0.03, strictest_itl_s=0.02), b=forecast(0.3, itl=0.03))
    assert winner(table, request(slo_ttft_s=2.0), names="ab")[0] == "b"


def test_without_trust_in_forecasts_the_fewest_uncached_tokens_win():
    blind = forecast(source=Source.TOKEN_LOAD)
    candidates = [
        *fleet("a", prefill_tokens=900),
        *fleet("b", prefill_tokens=1500, matched_tokens=1000),
        *fleet("c", prefill_tokens=100),
    ]
    policy = Objectives(ByName(), Table(a=blind, b=blind, c=blind))
    ranking = policy.rank(request(slo_ttft_s=0.5), candidates, 10.0, Random(1))
    assert ranking.winner == 2


def test_only_the_few_best_are_forecast_and_none_that_cannot_win():
    hopeless, easy, even = Table(**dict.fromkeys("abcdefgh", forecast(9.0))), Table(), Table(a=forecast(0.6))
    for table in (hopeless, easy, even):
        winner(table, request(slo_ttft_s=0.5), names="abcdefgh")
    assert hopeless.asked == list("abcdefgh")[:FEW]
    assert easy.asked == ["a"]
    assert even.asked == list("ab")  # the lower end of the first is late: whether all are, must be known


FORECASTS = st.builds(
    forecast,
    st.sampled_from([0.1, 0.5, 1.0, 2.0, 5.0]),
    st.sampled_from([0.01, 0.02, 0.04]),
    source=st.sampled_from([*Source]),
    strictest_itl_s=st.sampled_from([None, 0.02]),
)


class Costs:
    """The inner policy: given costs."""

    def __init__(self, totals):
        self.totals = totals

    def rank(self, request, candidates, now_s, rng):
        return Ranking(winner=0, totals=self.totals, why="the first")


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), FORECASTS), min_size=1, max_size=6),
    st.sampled_from([None, 0.3, 1.0, 3.0]),
    st.sampled_from([None, 0.02]),
)
def test_what_is_not_forecast_would_have_changed_nothing(rows, slo_ttft_s, slo_itl_s):
    wanted = request(slo_ttft_s=slo_ttft_s, slo_itl_s=slo_itl_s)
    totals = [total for total, _ in rows]
    candidates = fleet(*(f"e{i}" for i in range(len(rows))))
    table = Table(**{f"e{i}": one for i, (_, one) in enumerate(rows)})
    ranking = Objectives(Costs(totals), table).rank(wanted, candidates, 10.0, Random(1))
    if slo_ttft_s is None and slo_itl_s is None:
        return
    few = sorted(range(len(rows)), key=totals.__getitem__)[:FEW]
    forecasts = [rows[i][1] for i in few]
    if any(one.source is not Source.TOKEN_LOAD for one in forecasts):
        assert ranking.winner == min(few, key=lambda i: totals[i] + price_s(wanted, rows[i][1], 10.0))
    judged = list(ranking.forecasts.values())
    assert hopeless_s(wanted, judged, 10.0) == hopeless_s(wanted, forecasts, 10.0)


def test_a_decision_tells_forecasts_and_why_a_cheaper_candidate_lost():
    table = Table(a=forecast(3.0), b=forecast(1.0))
    candidates = fleet("a", "b")
    ranking = Objectives(ByName(), table).rank(request(slo_ttft_s=2.0), candidates, 10.0, Random(1))
    decision = Decision(endpoint=candidates[1].endpoint, policy="p", candidates=candidates, ranking=ranking)
    assert decision.chosen.forecast == table.forecasts["b"]
    assert decision.verdicts[1].reason == "lost by the objectives; its total is less by 1"


def test_the_price_is_what_was_promised_times_the_probability_of_missing_it():
    assert price_s(request(), forecast(9.0), 10.0) == 0.0
    assert price_s(request(slo_ttft_s=2.0), forecast(2.0), 10.0) == pytest.approx(1.0)
    assert price_s(request(slo_ttft_s=2.0), forecast(2.0), 11.0) > 1.8
    assert price_s(request(slo_itl_s=0.02), forecast(itl=0.02), 10.0) == pytest.approx(1.0)
    both = request(slo_ttft_s=2.0, slo_itl_s=0.02)
    assert price_s(both, forecast(2.0, itl=0.02), 10.0) == pytest.approx(1.5)
    assert price_s(both, forecast(2.0, itl=0.02, strictest_itl_s=0.02), 10.0) == pytest.approx(2.5)


@given(
    st.floats(-1.0, 1e4), st.floats(-1.0, 1e4), st.tuples(*[st.floats(1e-6, 1e3)] * 3).map(sorted), st.floats(0.01, 0.5)
)
def test_the_probability_of_exceeding_a_limit_falls_with_the_limit(one, other, ends, tail):
    low, high = sorted((one, other))
    assert 0.0 <= _exceeds(high, *ends, tail) <= _exceeds(low, *ends, tail) <= 1.0


@pytest.mark.parametrize("tail", [0.05, 0.2])
def test_the_ends_of_a_range_are_exceeded_as_often_as_its_coverage_says(tail):
    ends = (1.0, 2.0, 4.0)
    assert [_exceeds(limit, *ends, tail) for limit in ends] == pytest.approx([1.0 - tail, 0.5, tail])


def test_hopeless_is_who_misses_everywhere_even_at_the_lower_end():
    wanted = request(slo_ttft_s=0.5)
    assert hopeless_s(wanted, [forecast(2.0), forecast(1.0)], 10.0) == pytest.approx(0.4)
    assert hopeless_s(wanted, [forecast(2.0), forecast(0.55)], 10.0) is None
    assert hopeless_s(wanted, [forecast(0.55)], 10.2) == pytest.approx(0.195)
    assert hopeless_s(request(), [forecast(1e6)], 10.0) is None
    assert hopeless_s(wanted, [], 10.0) is None
    assert hopeless_s(wanted, [forecast(2.0), forecast(2.0, source=Source.TOKEN_LOAD)], 10.0) is None


def test_the_default_policy_heeds_objectives_where_there_are_forecasts():
    table = Table()
    scheduler = make_scheduler("expected-cost", RateBook(), Registry.installed(), table)
    decision = scheduler.schedule(request(slo_ttft_s=0.5), fleet("a", "b"), 10.0, Random(1))
    assert decision.chosen.forecast is not None
    assert (
        make_scheduler("least-requests", RateBook(), Registry.installed(), table)
        .schedule(request(slo_ttft_s=0.5), fleet("a", "b"), 10.0, Random(1))
        .chosen.forecast
        is None
    )
