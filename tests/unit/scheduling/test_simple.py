"""The policies to compare with."""

from collections import Counter
from random import Random

from msgspec import structs

from beaconry.latency.rates import RateBook
from beaconry.scheduling.simple import LeastRequests, PowerOfTwo, PrefixOnly, RandomChoice, RoundRobin, Sticky
from beaconry.values.candidate import Candidate
from beaconry.values.endpoint import Endpoint
from beaconry.values.request import Api, Request
from beaconry.values.stage import Stage

REQUEST = Request(id="r", model="m", api=Api.CHAT, arrived_s=0.0, prompt_tokens=1000)


def fleet(*loads, matched=(0, 0, 0, 0)):
    return [
        Candidate(endpoint=Endpoint(name=str(i), host="h", port=1, model="m"), decoding=load, matched_tokens=matched[i])
        for i, load in enumerate(loads)
    ]


def winners(policy, candidates, times=200):
    rng = Random(1)
    return Counter(policy(RateBook()).rank(REQUEST, candidates, 0.0, rng).winner for _ in range(times))


def test_round_robin_takes_turns():
    policy = RoundRobin(RateBook())
    picks = [policy.rank(REQUEST, fleet(5, 0, 9), 0.0, Random(1)).winner for _ in range(6)]
    assert picks == [0, 1, 2, 0, 1, 2]


def test_random_reaches_everyone_whatever_the_load():
    assert set(winners(RandomChoice, fleet(100, 0, 5))) == {0, 1, 2}


def test_least_requests_takes_the_least_and_breaks_ties_by_chance():
    assert set(winners(LeastRequests, fleet(3, 1, 1))) == {1, 2}


def test_power_of_two_never_takes_the_busiest_of_three():
    assert set(winners(PowerOfTwo, fleet(9, 1, 0))) == {1, 2}


def test_power_of_two_works_with_one():
    assert winners(PowerOfTwo, fleet(9)) == {0: 200}


def test_prefix_only_follows_the_longest_match_whatever_the_load():
    assert set(winners(PrefixOnly, fleet(0, 900, 0, matched=(64, 640, 0)))) == {1}


def test_prefix_only_takes_the_least_busy_if_nobody_matches():
    assert set(winners(PrefixOnly, fleet(3, 0, 3))) == {1}


def test_sticky_stays_until_the_holder_is_much_busier():
    assert set(winners(Sticky, fleet(16, 0, 0, matched=(900, 0, 0)))) == {0}
    assert set(winners(Sticky, fleet(17, 0, 0, matched=(900, 0, 0)))) == {1, 2}
    assert set(winners(Sticky, fleet(57, 40, 40, matched=(900, 0, 0)))) == {0}


def test_sticky_does_not_stick_to_less_than_half_of_the_prompt():
    assert set(winners(Sticky, fleet(5, 0, 0, matched=(400, 0, 0)))) == {1, 2}


def test_round_robin_goes_round_each_stage_by_itself():
    policy, stages = RoundRobin(RateBook()), (Stage.PREFILL, Stage.DECODE) * 2
    fleets = [[structs.replace(c, stage=stage) for c in fleet(0, 0)] for stage in stages]
    assert [policy.rank(REQUEST, candidates, 0.0, Random(1)).winner for candidates in fleets] == [0, 0, 1, 1]
