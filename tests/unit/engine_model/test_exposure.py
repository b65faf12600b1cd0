"""What latencies were made of, against the latencies themselves and against an engine stepped one step at a time."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.exposure import Rig
from beaconry.engine_model.presets import variant
from beaconry.engine_model.sequence import Sequence
from beaconry.engine_model.values import EngineSettings

STEP = variant("llama-3.1-8b/h100").step_time()
SETTINGS = EngineSettings(num_blocks=400, max_num_seqs=8, max_num_batched_tokens=256)


def arrivals(seed):
    rng, at_s = Random(seed), 0.0
    for number in range(12):
        at_s += rng.expovariate(20.0)
        yield at_s, Sequence(str(number), rng.randint(1, 800), rng.randint(2, 60))


def watched(seed):
    exposures = {}
    rig = Rig(SETTINGS, STEP, lambda one: exposures.update({one.id: one}))
    for at_s, sequence in arrivals(seed):
        rig.advance(at_s)
        rig.submit(sequence)
    rig.finish()
    return exposures


@settings(max_examples=25)
@given(st.integers(0, 1000))
def test_the_terms_of_a_latency_add_up_to_it(seed):
    for one in watched(seed).values():
        assert sum(one.to_first) == pytest.approx(one.first_s - one.arrived_s, rel=1e-6)
        assert sum(one.to_end) == pytest.approx(one.end_s - one.first_s, rel=1e-6)


def test_times_are_those_of_an_engine_stepped_one_by_one():
    engine, now_s, done = Engine(SETTINGS, STEP), 0.0, {}
    coming = list(arrivals(3))
    while coming or not engine.idle:
        if engine.idle:
            now_s = max(now_s, coming[0][0])
        while coming and coming[0][0] <= now_s:
            engine.submit(coming.pop(0)[1], now_s)
        now_s += engine.begin_step(now_s)
        for sequence in engine.finish_step(now_s).finished:
            done[sequence.id] = (sequence.first_token_s, now_s)
    for name, one in watched(3).items():
        assert (one.first_s, one.end_s) == pytest.approx(done[name], rel=1e-9)


def test_a_request_submitted_at_an_end_joins_the_next_step():
    ends = []

    def ended(one):
        ends.append(one.id)
        if len(ends) < 3:
            rig.submit(Sequence(f"{one.id}+", 100, 5))

    rig = Rig(SETTINGS, STEP, ended)
    rig.submit(Sequence("a", 100, 5))
    rig.finish()
    assert ends == ["a", "a+", "a++"]
    assert rig.idle
