"""The same facts through the asyncio driver and the virtual one give the same effects.

Facts are recorded on one side, with their times and the effects they had, and handed in on the other. Effects are compared as a whole:
which leg starts where, what was predicted for every candidate, what is answered, when the router wants to be woken.
"""

import asyncio
from itertools import islice
from random import Random

import msgspec
import pytest
import uvloop

from beaconry.apps.assemble import Gateway, make_router
from beaconry.apps.bench import BenchOptions, run_bench
from beaconry.config.gateway import EndpointConfig, GatewayConfig, Listen
from beaconry.disagg.connectors import CONNECTORS
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.io.driver import Driver
from beaconry.io.load.target import parse_target
from beaconry.router.effects import CancelLeg, Ended, StartLeg, WakeAt
from beaconry.router.facts import RequestArrived
from beaconry.sim.fleet import Fleet
from beaconry.values.endpoint import Endpoint
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.synthetic import Bounds, Shape, conversations
from tests.loopback.engine_client import running

SHAPE = Shape(
    prompt_tokens=Bounds(low=20, high=80), output_tokens=Bounds(low=5, high=20), turns=2, think_s=0.05, groups=4,
    prefix_tokens=Bounds(low=200, high=900), zipf=0.6,
)  # fmt: skip
TIMING = LinearStepTime(fixed_s=0.002, per_seq_s=1e-4, prefill_tps=50_000)
SETTINGS = EngineSettings(num_blocks=400, max_num_seqs=8, max_num_batched_tokens=512)


class Tape:
    """A router that remembers what it was told, when, and what it wanted done."""

    def __init__(self, router):
        self._router = router
        self.entries = []

    def handle(self, fact, now_s):
        effects = self._router.handle(fact, now_s)
        self.entries.append((now_s, fact, effects))
        return effects

    def __getattr__(self, name):
        return getattr(self._router, name)


def plan(count, rate):
    rng = Random(3)
    return Plan(islice(conversations(SHAPE, poisson(rate, rng), rng), count))


def plain(effects):
    return [(type(effect).__name__, msgspec.to_builtins(effect)) for effect in effects]


def started(entries):
    return [effect.endpoint.name for _, _, effects in entries for effect in effects if isinstance(effect, StartLeg)]


@pytest.mark.parametrize("policy", ["expected-cost", "power-of-two", "llm-d-weighted"])
def test_what_happened_in_virtual_time_has_the_same_effects_under_asyncio(policy):
    config = GatewayConfig(policy=policy)
    tape = Tape(make_router(config))
    names = ["e0", "e1", "e2"]
    fleet = Fleet(
        [tape],
        {name: Engine(SETTINGS, TIMING) for name in names},
        {name: Endpoint(name=name, host="127.0.0.1", port=1, model="m") for name in names},
    )
    assert len(fleet.run(plan(80, 60.0), until_s=60.0)) == 160
    loop = Recording()
    driver = Driver(make_router(config), loop, loop.refuse, 1.0, loop.ended, CONNECTORS["nixl"])
    for now_s, fact, effects in tape.entries:
        loop.now_s, loop.done = now_s, []
        if isinstance(fact, RequestArrived):
            driver.admit(loop.relay(), fact.request.id, fact)
        else:
            driver.tell(fact)
        assert plain(loop.done) == plain(effects), fact
    assert len(set(started(tape.entries))) > 1
    driver.close()


class Recording:
    """The loop of an asyncio driver, and its relays: they keep what the driver has them do."""

    def __init__(self):
        self.now_s = 0.0
        self.done = []

    def time(self):
        return self.now_s

    def call_at(self, at_s, callback):
        self.done.append(WakeAt(at_s))
        return self

    def cancel(self):
        """Of a timer: a new one takes its place."""

    def refuse(self, work):
        raise AssertionError("nothing is sent here")

    def relay(self):
        return Relayed(self)

    def ended(self, relay, effect):
        self.done.append(effect)


class Relayed:
    def __init__(self, recording):
        self._recording = recording
        self._placement = None

    def start(self, effect, pool):
        assert (pool.host, pool.port) == (effect.endpoint.host, effect.endpoint.port)
        self._placement = effect
        self._recording.done.append(effect)

    def cancel(self):
        self._recording.done.append(CancelLeg(self._placement.request_id, self._placement.leg))

    def answer(self, effect):
        self._recording.done.append(effect)

    break_off = answer


def test_what_happened_under_asyncio_has_the_same_effects_in_virtual_time():
    """Real sockets, engines and clients: their facts, at their times, through a router that the virtual driver would run."""
    tape, config = uvloop.run(over_http())
    router = make_router(config)
    for now_s, fact, effects in tape.entries:
        assert plain(router.handle(fact, now_s)) == plain(effects), fact
    router.check()
    ended = [effect for _, _, effects in tape.entries for effect in effects if isinstance(effect, Ended)]
    assert len(ended) == 60
    assert len(set(started(tape.entries))) == 2


async def over_http():
    async with (
        running(settings=SETTINGS, step_time=TIMING) as (_, one),
        running(settings=SETTINGS, step_time=TIMING) as (_, two),
    ):
        endpoints = tuple(
            EndpointConfig(name=f"e{number}", host="127.0.0.1", port=port, model="tiny")
            for number, port in enumerate((one, two))
        )
        config = GatewayConfig(listen=Listen(port=0), endpoints=endpoints)
        gateway = Gateway(config)
        gateway._router = tape = Tape(gateway._router)
        await gateway.start()
        async with asyncio.timeout(30.0):
            target = parse_target(f"http://127.0.0.1:{gateway.port}", "tiny")
            result = await run_bench(plan(30, 60.0), target, BenchOptions())
        await gateway.stop(1.0)
    assert result.summary.succeeded == 60, result.summary.errors
    return tape, config
