"""The virtual fleet: the real router and engines on one event heap."""

from random import Random

import pytest

from beaconry.config.gateway import Deadlines, Health, Retry
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.router.caches import Caches
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.sim.fleet import Fleet
from beaconry.sim.prompt import block_hashes
from beaconry.values.endpoint import Endpoint
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.request import Message, PlannedRequest, Span, Turn
from beaconry.workload.synthetic import Bounds, Shape, conversations

SHAPE = Shape(
    prompt_tokens=Bounds(low=20, high=80), output_tokens=Bounds(low=5, high=20), turns=3, think_s=0.5, groups=5,
    prefix_tokens=Bounds(low=200, high=900),
)  # fmt: skip


def fleet(engines=3, policy="expected-cost", blocks=400, deadlines=None):
    rates = RateBook()
    router = Router(
        scheduler=make_scheduler(policy, rates, Registry.installed()),
        caches=Caches(ApproximateIndex(), ExactIndex()),
        rates=rates,
        rng=Random(1),
        deadlines=deadlines or Deadlines(),
        retry=Retry(),
        health=Health(),
    )
    names = [f"e{i}" for i in range(engines)]
    settings = EngineSettings(num_blocks=blocks, max_num_seqs=8, max_num_batched_tokens=512)
    timing = LinearStepTime(fixed_s=0.01, per_seq_s=1e-4, prefill_tps=20_000)
    return Fleet(
        router,
        {name: Engine(settings, timing) for name in names},
        {name: Endpoint(name=name, host="sim", port=1, model="m") for name in names},
    )


def plan(rate=20.0, seed=1, until_s=4.0):
    rng = Random(seed)
    return Plan(conversations(SHAPE, poisson(rate, rng), rng), until_s=until_s)


def single(prompt=100, output=4, at_s=1.0):
    message = Message(role="user", spans=(Span(id=1, tokens=prompt),))
    return PlannedRequest(at_s=at_s, messages=(message,), output_tokens=output, reply_id=2)


def test_the_same_seed_gives_the_same_samples():
    assert fleet().run(plan(), until_s=60.0) == fleet().run(plan(), until_s=60.0)


def test_every_request_ends_once_and_later_turns_follow():
    virtual = fleet()
    samples = virtual.run(plan(), until_s=60.0)
    virtual.check()
    assert sorted(s.index for s in samples) == list(range(len(samples)))
    assert all(s.error is None and s.output_tokens == s.planned_output_tokens for s in samples)
    assert {s.turn for s in samples} == {0, 1, 2}


def test_times_are_those_of_the_engine():
    (sample,) = fleet(engines=1).run(Plan([single()]), until_s=60.0)
    assert sample.first_s == pytest.approx(1.0 + 0.01 + 100 / 20_000)
    assert sample.end_s == pytest.approx(sample.first_s + 3 * (0.01 + 1e-4))


def test_a_later_turn_finds_prompt_and_reply_in_the_cache():
    turn = Turn(user=Span(id=3, tokens=40), output_tokens=4, reply_id=4, think_s=1.0)
    opening = single(prompt=320, output=16)
    opening = PlannedRequest(
        at_s=opening.at_s, messages=opening.messages, output_tokens=16, reply_id=2, session="s", later=(turn,)
    )
    first, second = fleet().run(Plan([opening]), until_s=60.0)
    assert first.cached_tokens == 0
    assert second.cached_tokens == (320 + 16 - 1) // 16 * 16  # the last token of a reply is never computed
    assert first.endpoint == second.endpoint


def test_what_does_not_end_in_time_is_unfinished():
    samples = fleet().run(Plan([single(output=2000)]), until_s=2.0)
    assert [s.error for s in samples] == ["unfinished"]


def test_a_prompt_that_no_engine_can_hold_is_refused():
    samples = fleet(blocks=10).run(Plan([single(prompt=5000)]), until_s=60.0)
    assert [s.error for s in samples] == ["status 400"]


def test_the_routers_deadlines_hold_in_virtual_time():
    samples = fleet(deadlines=Deadlines(total_s=0.5)).run(Plan([single(output=2000)]), until_s=60.0)
    assert [s.error for s in samples] == ["engine-timeout"]
    assert samples[0].end_s == pytest.approx(1.5)


def test_equal_spans_give_equal_blocks_however_they_are_cut():
    whole = block_hashes([Span(id=7, tokens=200)], 64)
    assert len(whole) == 3
    assert block_hashes([Span(id=7, tokens=130)], 64) == whole[:2]
    assert block_hashes([Span(id=7, tokens=200), Span(id=8, tokens=500)], 64)[:3] == whole
    assert block_hashes([Span(id=8, tokens=200)], 64)[0] != whole[0]


def test_a_block_depends_on_all_before_it():
    one = block_hashes([Span(id=1, tokens=64), Span(id=9, tokens=64)], 64)
    two = block_hashes([Span(id=2, tokens=64), Span(id=9, tokens=64)], 64)
    assert one[1] != two[1]
