"""Requests in two legs in virtual time, under a router that always sends them so."""

from itertools import takewhile
from random import Random

import pytest
from msgspec.structs import replace

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.kv_link import KvWay
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.router.effects import Answer, CancelLeg, StartLeg
from beaconry.router.facts import (
    ClientLeft,
    EndpointGone,
    EndpointSeen,
    LegFailed,
    LegFinished,
    LegStarted,
    RequestArrived,
)
from beaconry.sim.conditions import Clients, Conditions, Fault, FaultKind
from beaconry.sim.fleet import Fleet
from beaconry.sim.recorder import Recorder
from beaconry.values.endpoint import Endpoint, Role
from beaconry.values.outcome import Outcome
from beaconry.values.stage import Stage
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.request import Message, PlannedRequest, Span
from beaconry.workload.synthetic import Bounds, Shape, conversations

TIMING = LinearStepTime(fixed_s=0.01, per_seq_s=1e-4, prefill_tps=20_000)
WAY = KvWay(bytes_per_token=1e6, bytes_per_s=1e9, latency_s=0.002)
SHAPE = Shape(
    prompt_tokens=Bounds(low=20, high=80), output_tokens=Bounds(low=5, high=20), turns=3, think_s=0.5, groups=5,
    prefix_tokens=Bounds(low=200, high=900),
)  # fmt: skip


class TwoLegs:
    """Prefill on any of the endpoints of that role, decode on any other; a failure before the first byte begins anew, five times."""

    def __init__(self):
        self.endpoints, self.requests, self.legs, self.facts = {}, {}, {}, []
        self.numbers = 0

    def handle(self, fact, now_s):
        self.facts.append(fact)
        match fact:
            case EndpointSeen(endpoint):
                self.endpoints[endpoint.name] = endpoint
            case EndpointGone(name):
                del self.endpoints[name]
            case RequestArrived(request):
                self.requests[request.id] = 5
                return self.start(request.id, Stage.PREFILL)
            case LegFinished(leg, handoff=True):
                request_id, start = self.legs.pop(leg)
                return self.start(request_id, Stage.DECODE, start.endpoint)
            case LegFinished(leg):
                del self.requests[self.legs.pop(leg)[0]]
            case LegStarted(leg):
                self.requests[self.legs[leg][0]] = 0
            case LegFailed(leg):
                request_id, _ = self.legs.pop(leg)
                self.requests[request_id] -= 1
                if self.requests[request_id] > 0:
                    return self.start(request_id, Stage.PREFILL)
                return [self.failed(request_id)]
            case ClientLeft(request_id) if request_id in self.requests:
                del self.requests[request_id]
                (leg,) = [leg for leg, (mine, _) in self.legs.items() if mine == request_id]
                del self.legs[leg]
                return [CancelLeg(request_id, leg)]
        return []

    def start(self, request_id, stage, source=None):
        role = Role.PREFILL if stage is Stage.PREFILL else Role.DECODE
        able = sorted(one.name for one in self.endpoints.values() if one.role is role)
        if not able:
            return [self.failed(request_id)]
        self.numbers += 1
        endpoint = self.endpoints[able[self.numbers // 2 % len(able)]]
        start = StartLeg(request_id, self.numbers, endpoint, None, stage, source)
        self.legs[self.numbers] = (request_id, start)
        return [start]

    def failed(self, request_id):
        del self.requests[request_id]
        return Answer(
            request_id=request_id, status=502, outcome=Outcome.ENGINE_FAILED, message="failed", code="engine_failed"
        )

    def check(self):
        assert set(self.requests) == {request_id for request_id, _ in self.legs.values()}


def fleet(prefill=1, decode=1, blocks=400, **conditions):
    names = {f"p{i}": Role.PREFILL for i in range(prefill)} | {f"d{i}": Role.DECODE for i in range(decode)}
    settings = EngineSettings(num_blocks=blocks, max_num_seqs=8, max_num_batched_tokens=512)
    engines = {name: Engine(settings, TIMING) for name in names}
    endpoints = {name: Endpoint(name=name, host="sim", port=1, model="m", role=role) for name, role in names.items()}
    conditions = Conditions(**({"kv_ways": dict.fromkeys(names, WAY)} | conditions))
    return Fleet([TwoLegs()], engines, endpoints, conditions=conditions), engines


def single(prompt=100, output=4, at_s=1.0, text=1):
    message = Message(role="user", spans=(Span(id=text, tokens=prompt),))
    return PlannedRequest(at_s=at_s, messages=(message,), output_tokens=output, reply_id=100 + text)


def plan(rate, seed, until_s=4.0):
    """Conversations, and a last request when all leases are over."""
    rng = Random(seed)
    talks = takewhile(lambda one: one.at_s < until_s, conversations(SHAPE, poisson(rate, rng), rng))
    return [*talks, single(at_s=90.0, text=77)]


def test_the_first_token_comes_after_prefill_transfer_and_one_step():
    virtual, _ = fleet()
    (sample,) = virtual.run(Plan([single()]), until_s=60.0)
    prefill_s, transfer_s, step_s = 0.01 + 100 / 20_000, 100 * 1e6 / 1e9 + 0.002, 0.01 + 1e-4
    assert sample.first_s == pytest.approx(1.0 + prefill_s + transfer_s + step_s)
    assert sample.end_s == pytest.approx(sample.first_s + 3 * step_s)
    assert (sample.endpoint, sample.output_tokens, sample.error) == ("d0", 4, None)


def test_network_and_door_are_passed_twice():
    virtual, _ = fleet(engine_s=0.003, request_s={"p0": 0.02, "d0": 0.02}, kv_ways={})
    (sample,) = virtual.run(Plan([single()]), until_s=60.0)
    assert sample.first_s == pytest.approx(1.0 + 0.01 + 100 / 20_000 + 0.01 + 1e-4 + 4 * 0.003 + 2 * 0.02)


def test_transfers_of_one_engine_share_its_link():
    virtual, _ = fleet(prefill=2, decode=1)
    one, other = virtual.run(Plan([single(text=1), single(text=2)]), until_s=60.0)
    assert one.first_s == pytest.approx(1.0 + 0.015 + 0.102 + 0.0101)
    assert other.first_s - one.first_s == pytest.approx(0.1, abs=0.0102)


def test_what_the_decode_engine_has_in_its_cache_is_not_fetched_again():
    virtual, engines = fleet()
    virtual.run(Plan([single(prompt=160), single(prompt=160, at_s=2.0)]), until_s=60.0)
    assert engines["d0"].statistics().imported_tokens == 160 + 16


def test_a_decode_engine_says_what_the_prefill_engine_had_in_its_cache():
    virtual, _ = fleet()
    first, second = virtual.run(Plan([single(prompt=160), single(prompt=160, at_s=2.0)]), until_s=60.0)
    assert (first.cached_tokens, second.cached_tokens) == (0, 144)


def crash(name, at_s, for_s=5.0):
    return Fault(kind=FaultKind.CRASH, at_s=at_s, for_s=for_s, endpoints=(name,))


def facts_of(virtual, kind):
    (front,) = virtual._fronts
    return [fact for fact in front.router.facts if isinstance(fact, kind)]


def test_a_prefill_engine_that_dies_before_its_kv_is_read_fails_the_decode_leg():
    virtual, _ = fleet(prefill=2, faults=(crash("p0", 1.05, for_s=60.0),))
    samples = virtual.run(Plan([single(), single(at_s=80.0, text=2)]), until_s=100.0)
    assert [sample.error for sample in samples] == [None, None]
    assert [fact.status for fact in facts_of(virtual, LegFailed)] == [500]
    virtual.check()


@pytest.mark.parametrize("steps_at_once", [1, 1 << 30])
def test_a_decode_engine_that_recomputes_needs_no_other_leg(steps_at_once):
    dies = (crash("p0", 1.05, for_s=60.0),)
    virtual, engines = fleet(prefill=2, faults=dies, recompute=True, steps_at_once=steps_at_once)
    samples = virtual.run(Plan([single(), single(at_s=80.0, text=2)]), until_s=100.0)
    assert [sample.error for sample in samples] == [None, None]
    assert facts_of(virtual, LegFailed) == []
    assert (engines["d0"].statistics().computed_tokens, engines["d0"].statistics().imported_tokens) == (100 + 1, 100)
    virtual.check()


def test_of_a_dead_decode_engine_s_legs_the_kv_is_kept_for_the_rest_of_the_lease():
    held = {}
    for at_s in (20.0, 22.0):
        virtual, engines = fleet(decode=2, faults=(crash("d1", 1.05),))
        virtual.run(Plan([single(), single(at_s=at_s, text=2, output=400)]), until_s=at_s + 0.5)
        assert [fact.fault for fact in facts_of(virtual, LegFailed)] == ["reset"]
        held[at_s] = engines["p0"].statistics().held
    assert held == {20.0: 1, 22.0: 0}


def test_a_request_that_nobody_waits_for_any_more_holds_its_kv_until_the_lease_ends():
    """The client leaves while the answer of the prefill leg is on its way."""
    held = {}
    for at_s in (30.0, 32.0):
        virtual, engines = fleet(engine_s=0.5, clients=Clients(timeout_s=0.6))
        virtual.run(Plan([single(), single(at_s=at_s, text=2)]), until_s=at_s + 0.3)
        held[at_s] = engines["p0"].statistics().held
    assert held == {30.0: 1, 32.0: 0}


def test_a_cancelled_decode_leg_gives_the_prefill_engine_its_blocks_back():
    virtual, engines = fleet(clients=Clients(timeout_s=0.05))
    virtual.run(Plan([single(), single(at_s=3.0)]), until_s=2.5)
    assert engines["p0"].statistics().held == 0
    assert all(engine.idle for engine in engines.values())


def mishap(rng):
    kind = rng.choice((FaultKind.CRASH, FaultKind.HANG, FaultKind.SLOW))
    endpoint = rng.choice(("p0", "p1", "d0", "d1", "d2"))
    return Fault(kind=kind, at_s=rng.uniform(0.0, 4.0), for_s=rng.uniform(0.1, 2.0), endpoints=(endpoint,), factor=3.0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_whatever_goes_wrong_every_request_ends_once_and_no_block_stays_behind(seed, recompute):
    rng = Random(seed)
    virtual, _ = fleet(
        prefill=2,
        decode=3,
        blocks=rng.choice((150, 400)),
        client_s=rng.choice((0.0, 0.02)),
        engine_s=rng.choice((0.0, 0.01)),
        clients=Clients(timeout_s=rng.choice((None, 0.3, 2.0)), retries=rng.randrange(3), backoff_s=0.1),
        faults=tuple(mishap(rng) for _ in range(5)),
        recompute=recompute,
        kv_ways=rng.choice(({}, dict.fromkeys(("p0", "p1", "d0", "d1", "d2"), replace(WAY, bytes_per_s=3e10)))),
    )
    samples = virtual.run(Plan(plan(15.0, seed)), until_s=120.0)
    virtual.check()
    assert sorted(s.index for s in samples) == list(range(len(samples)))
    assert not any(s.error == "unfinished" for s in samples)
    assert any(s.error is None for s in samples)
    assert all(host.engine.idle for host in virtual._hosts.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("rate", "blocks", "faults"),
    [
        (12.0, 400, ()),
        (12.0, 130, ()),
        (
            12.0,
            300,
            (
                Fault(kind=FaultKind.SLOW, at_s=1.0, for_s=2.0, endpoints=("d0",), factor=2.5),
                crash("p1", 1.5),
                crash("d1", 2.5, for_s=1.0),
                Fault(kind=FaultKind.HANG, at_s=2.0, for_s=1.0, endpoints=("d2",)),
            ),
        ),
    ],
    ids=["plain", "short of memory", "faults"],
)
def test_steps_taken_at_once_give_what_single_steps_give(rate, blocks, faults, seed, recompute):
    recorders, results = [], []
    for steps in (1 << 30, 1):
        virtual, _ = fleet(
            prefill=2,
            decode=3,
            blocks=blocks,
            faults=faults,
            recompute=recompute,
            steps_at_once=steps,
            kv_ways=dict.fromkeys(("p0", "p1", "d0", "d1", "d2"), replace(WAY, bytes_per_s=3.1e10)),
        )
        recorders.append(Recorder())
        results.append((virtual.run(Plan(plan(rate, seed)), until_s=120.0, recorder=recorders[-1]), virtual.events))
    (ours, events), (theirs, more_events) = results
    assert events < more_events
    for one, other in zip(ours, theirs, strict=True):
        assert (one.index, one.error, one.endpoint) == (other.index, other.error, other.endpoint)
        assert one.end_s == pytest.approx(other.end_s, rel=1e-9)
        assert (one.first_s or 0.0) == pytest.approx(other.first_s or 0.0, rel=1e-9)
    for one, other in zip(recorders[0].looks, recorders[1].looks, strict=True):
        assert replace(one, at_s=0.0, kv_usage=0.0) == replace(other, at_s=0.0, kv_usage=0.0)
        assert one.kv_usage == pytest.approx(other.kv_usage)
