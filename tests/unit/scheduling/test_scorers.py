"""llm-d's formulas, value for value."""

from collections import Counter
from random import Random

import pytest
from msgspec import structs

from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.scheduling.filters import PrefixCacheAffinity
from beaconry.scheduling.lora_load import LOAD_S, LoraLoad
from beaconry.scheduling.pickers import MaxScore, RandomPick, WeightedRandom
from beaconry.scheduling.scorers import (
    ActiveRequests,
    KvCacheUtilization,
    LoadAware,
    LoraAffinity,
    PrefixCache,
    Queue,
    RunningRequests,
    TokenLoad,
)
from beaconry.scheduling.weighted import LlmDWeighted
from beaconry.values.candidate import Candidate
from beaconry.values.endpoint import AdapterLoad, Endpoint, LoadSample
from beaconry.values.request import Api, Request

REQUEST = Request(id="r", model="m", api=Api.CHAT, arrived_s=0.0, prompt_tokens=1000)


def candidates(*each):
    return [
        Candidate(
            endpoint=Endpoint(name=str(i), host="h", port=1, model="m"),
            sample=LoadSample(at_s=0.0, **fields.pop("sample")) if "sample" in fields else None,
            **fields,
        )
        for i, fields in enumerate(map(dict, each))
    ]


@pytest.mark.parametrize(
    ("scorer", "fleet", "scores"),
    [
        (Queue(), [{"sample": {"waiting": w}} for w in (0, 5, 10)], [1.0, 0.5, 0.0]),
        (Queue(), [{"sample": {"waiting": 7}}] * 2, [1.0, 1.0]),
        (Queue(), [{"prefilling": 4}, {"sample": {"waiting": 0}}], [0.0, 1.0]),
        (RunningRequests(), [{"sample": {"running": r}} for r in (2, 4)], [1.0, 0.0]),
        (RunningRequests(), [{"decoding": 2}, {"decoding": 4}, {"decoding": 3}], [1.0, 0.0, 0.5]),
        (KvCacheUtilization(), [{"sample": {"kv_usage": 0.25}}, {"sample": {"kv_usage": 0.75}}, {}], [0.75, 0.25, 0.5]),
        (KvCacheUtilization(), [{}, {}], [1.0, 1.0]),
        (PrefixCache(), [{"matched_tokens": 640}, {}], [0.64, 0.0]),
        (LoadAware(), [{"sample": {"waiting": w}} for w in (0, 64, 500)], [0.5, 0.25, 0.0]),
        (TokenLoad(), [{}, {"matched_tokens": 1000}], [1 - 1000 / 4_194_304, 1.0]),
        (TokenLoad(), [{"prefill_tokens": 9_000_000}], [0.0]),
        (ActiveRequests(), [{}, {"decoding": 1}, {"decoding": 4}], [1.0, 0.75, 0.0]),
    ],
)
def test_scores_follow_the_formula(scorer, fleet, scores):
    assert scorer.score(REQUEST, candidates(*fleet)) == pytest.approx(scores)


def busy(running="", waiting="", slots=2):
    return {"sample": {"adapters": AdapterLoad(running=frozenset(running), waiting=frozenset(waiting), slots=slots)}}


FLEET = (busy("ax"), busy("b"), busy("bc", "a"), busy("bc"), {})


def test_an_adapter_goes_where_it_runs_then_where_one_could_then_where_others_wait_for_it():
    asked = structs.replace(REQUEST, model="a")
    assert LoraAffinity().score(asked, candidates(*FLEET)) == [1.0, 0.8, 0.6, 0.0, 0.8]
    assert LoraAffinity().score(REQUEST, candidates(*FLEET)) == [1.0] * len(FLEET)


def test_an_adapter_costs_its_loading_where_the_engine_is_known_not_to_have_it():
    asked, term = structs.replace(REQUEST, model="a"), LoraLoad()
    assert [term.cost_s(asked, c, None) for c in candidates(*FLEET)] == [0.0, LOAD_S, 0.0, LOAD_S, 0.0]
    assert [term.cost_s(REQUEST, c, None) for c in candidates(*FLEET)] == [0.0] * len(FLEET)


def test_both_are_found_by_their_names():
    registry = Registry.installed()
    assert registry.factory("cost-term", "lora-load") is LoraLoad
    assert registry.factory("scorer", "lora-affinity-scorer") is LoraAffinity


def test_the_default_profile_weighs_queue_2_kv_2_prefix_3():
    fleet = candidates(
        {"sample": {"waiting": 10, "kv_usage": 0.5}, "matched_tokens": 999},
        {"sample": {"waiting": 0, "kv_usage": 0.5}},
    )
    ranking = LlmDWeighted(RateBook()).rank(REQUEST, fleet, 0.0, Random(1))
    assert ranking.totals == pytest.approx([-(0 + 1 + 3 * 0.999), -(2 + 1 + 0)])
    assert ranking.winner == 0
    assert ranking.terms == ("queue-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer")


def test_the_affinity_filter_keeps_holders_of_80_percent():
    fleet = candidates({"matched_tokens": 800}, {"matched_tokens": 799})
    assert PrefixCacheAffinity().keep(REQUEST, fleet) == fleet[:1]


def test_the_affinity_filter_lets_go_when_holders_are_too_far_behind():
    fleet = candidates({"matched_tokens": 800, "prefill_tokens": 286_721}, {})
    assert PrefixCacheAffinity().keep(REQUEST, fleet) == fleet


def test_the_affinity_filter_has_no_opinion_without_holders():
    fleet = candidates({}, {})
    assert PrefixCacheAffinity().keep(REQUEST, fleet) == fleet


def test_pickers_take_the_best_any_or_by_weight():
    rng = Random(1)
    assert {MaxScore().pick([-1.0, -3.0, -3.0], rng) for _ in range(50)} == {1, 2}
    assert {RandomPick().pick([-1.0, -3.0], rng) for _ in range(50)} == {0, 1}
    drawn = Counter(WeightedRandom().pick([-1.0, -3.0, 0.0], rng) for _ in range(4000))
    assert drawn[2] == 0
    assert drawn[1] / drawn[0] == pytest.approx(3.0, rel=0.15)
    assert {WeightedRandom().pick([0.0, 0.0], rng) for _ in range(50)} == {0, 1}
