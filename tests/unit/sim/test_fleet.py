"""The virtual fleet: the real router and engines on one event heap."""

from random import Random

import pytest
from msgspec.structs import replace

from beaconry.config.flow import Flow
from beaconry.config.gateway import Deadlines, GatewayConfig
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
from beaconry.sim.conditions import Clients, Conditions, Fault, FaultKind, Scaling
from beaconry.sim.fleet import Fleet
from beaconry.sim.prompt import block_hashes
from beaconry.sim.recorder import Recorder
from beaconry.values.endpoint import Endpoint, SchedulingPolicy
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.request import Message, PlannedRequest, Span, Turn
from beaconry.workload.synthetic import Bounds, Shape, conversations

SHAPE = Shape(
    prompt_tokens=Bounds(low=20, high=80), output_tokens=Bounds(low=5, high=20), turns=3, think_s=0.5, groups=5,
    prefix_tokens=Bounds(low=200, high=900),
)  # fmt: skip


def fleet(engines=3, policy="expected-cost", blocks=400, deadlines=None, conditions=None, routers=1):
    names = [f"e{i}" for i in range(engines)]
    settings = EngineSettings(num_blocks=blocks, max_num_seqs=8, max_num_batched_tokens=512)
    timing = LinearStepTime(fixed_s=0.01, per_seq_s=1e-4, prefill_tps=20_000)
    return Fleet(
        [router_like(policy, deadlines) for _ in range(routers)],
        {name: Engine(settings, timing) for name in names},
        {name: Endpoint(name=name, host="sim", port=1, model="m") for name in names},
        conditions=conditions or Conditions(),
    )


def router_like(policy="expected-cost", deadlines=None, flow=Flow()):  # noqa: B008 frozen
    rates = RateBook()
    return Router(
        GatewayConfig(deadlines=deadlines or Deadlines(), flow=flow),
        scheduler=make_scheduler(policy, rates, Registry.installed()),
        caches=Caches(ApproximateIndex(), ExactIndex()),
        rates=rates,
        rng=Random(1),
    )


def plan(rate=20.0, seed=1, until_s=4.0):
    rng = Random(seed)
    return Plan(conversations(SHAPE, poisson(rate, rng), rng), until_s=until_s)


def single(prompt=100, output=4, at_s=1.0):
    message = Message(role="user", spans=(Span(id=1, tokens=prompt),))
    return PlannedRequest(at_s=at_s, messages=(message,), output_tokens=output, reply_id=2)


@pytest.mark.parametrize("policy", list(SchedulingPolicy))
def test_an_engine_that_serves_by_priority_knows_it_of_each_request(policy):
    settings = EngineSettings(num_blocks=400, max_num_seqs=1, by_priority=policy is not SchedulingPolicy.FCFS)
    endpoint = Endpoint(name="e", host="sim", port=1, model="m", scheduling_policy=policy)
    virtual = Fleet(
        [router_like(flow=Flow(enabled=False))],
        {"e": Engine(settings, LinearStepTime(fixed_s=0.01))},
        {"e": endpoint},
        mark=lambda planned, request: replace(request, priority=planned.index),
    )
    samples = virtual.run(Plan(iter([single(at_s=n / 1000) for n in range(3)]), until_s=1.0), until_s=60.0)
    assert [s.index for s in samples] == ([0, 1, 2] if policy is SchedulingPolicy.FCFS else [0, 2, 1])


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


def mishap(rng, kinds=tuple(FaultKind)):
    hit = tuple(f"e{i}" for i in range(4) if rng.random() < 0.6)
    at_s, for_s = rng.uniform(0.0, 4.0), rng.uniform(0.1, 3.0)
    return Fault(kind=rng.choice(kinds), at_s=at_s, for_s=for_s, endpoints=hit, factor=rng.uniform(1.0, 8.0))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_every_request_ends_once_and_nothing_is_left_behind(seed):
    rng = Random(seed)
    conditions = Conditions(
        client_s=rng.choice((0.0, 0.02)),
        engine_s=rng.choice((0.0, 0.01)),
        scrape_delay_s=rng.choice((0.0, 0.1)),
        scrape_loss=rng.random() * 0.5,
        start_s=rng.random(),
        clients=Clients(timeout_s=rng.choice((None, 0.3, 2.0)), retries=rng.randrange(3), backoff_s=0.1),
        faults=tuple(mishap(rng) for _ in range(6)),
        scalings=tuple(
            Scaling(at_s=rng.uniform(0, 4), endpoint=f"e{rng.randrange(4)}", up=rng.random() < 0.5) for _ in range(4)
        ),
        standby=frozenset({"e3"}),
        kv_events=rng.random() < 0.5,
        event_delay_s=0.01,
        event_loss=rng.random() * 0.3,
    )
    deadlines = Deadlines(first_byte_s=3.0, idle_s=4.0, total_s=20.0)
    virtual = fleet(4, conditions=conditions, routers=1 + seed % 3, deadlines=deadlines)
    samples = virtual.run(plan(seed=seed), until_s=120.0)
    virtual.check()
    assert sorted(s.index for s in samples) == list(range(len(samples)))
    assert not any(s.error == "unfinished" for s in samples)
    assert all(s.end_s >= s.sent_s for s in samples)
    assert any(s.error is None for s in samples)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("rate", "blocks", "conditions"),
    [
        (20.0, 400, Conditions()),
        (60.0, 150, Conditions()),
        (20.0, 400, Conditions(client_s=0.01, engine_s=0.002, scrape_delay_s=0.03, clients=Clients(timeout_s=2.0))),
        (
            20.0,
            300,
            Conditions(
                faults=(
                    Fault(kind=FaultKind.SLOW, at_s=1.0, for_s=2.0, endpoints=("e0",), factor=2.5),
                    Fault(kind=FaultKind.CRASH, at_s=1.5, for_s=1.0, endpoints=("e1",)),
                    Fault(kind=FaultKind.HANG, at_s=2.0, for_s=1.0, endpoints=("e2",)),
                )
            ),
        ),
    ],
    ids=["plain", "short of memory", "delays", "faults"],
)
def test_steps_taken_at_once_give_what_single_steps_give(rate, blocks, conditions, seed):
    at_once, single = Recorder(), Recorder()
    # by counts alone: predicted times would differ in their last bits, and so, now and then, which of two equal endpoints is taken
    fast = fleet(policy="least-requests", blocks=blocks, conditions=conditions)
    ours = fast.run(plan(rate, seed), until_s=60.0, recorder=at_once)
    naive = fleet(policy="least-requests", blocks=blocks, conditions=replace(conditions, steps_at_once=1))
    theirs = naive.run(plan(rate, seed), until_s=60.0, recorder=single)
    assert fast.events < naive.events
    for one, other in zip(ours, theirs, strict=True):
        assert (one.first_s is None) == (other.first_s is None)
        assert one.first_s is None or one.first_s == pytest.approx(other.first_s, rel=1e-9)
        assert one.end_s == pytest.approx(other.end_s, rel=1e-9)
        moments = {"first_s": None, "end_s": 0.0, "planned_s": 0.0, "sent_s": 0.0}
        assert replace(one, **moments) == replace(other, **moments)
    for one, other in zip(at_once.looks, single.looks, strict=True):
        assert replace(one, at_s=0.0, kv_usage=0.0) == replace(other, at_s=0.0, kv_usage=0.0)
        assert one.kv_usage == pytest.approx(other.kv_usage)
