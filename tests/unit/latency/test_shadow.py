"""The shadow against the engine it stands for: a full `engine_model`, run ahead from the very same state."""

from random import Random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.sequence import Sequence
from beaconry.engine_model.values import EngineSettings
from beaconry.latency.shadow import Shadow
from beaconry.latency.step_fit import STEPS, StepFit

PRESET = "llama-3.1-8b/h100"
IDLE_S = 0.0


class Pair:
    """An engine and its shadow, fed with the same events. The shadow's step times are the engine's own."""

    def __init__(self, *, seqs=256, blocks=27_000, budget=8192):
        self.shadow = Shadow(StepFit(PRESET))
        self.shadow.budget, self.shadow.slots = budget, float(seqs)
        self.shadow.capacity = blocks * 16.0
        times = self.shadow._fit.times
        self.shadow._fit.coefficients[-1] = IDLE_S
        engine_settings = EngineSettings(num_blocks=blocks, max_num_seqs=seqs, max_num_batched_tokens=budget)
        self.engine = Engine(engine_settings, times)
        self.now_s = 0.0
        self.due_s = None
        self.legs = 0
        self.started = set()
        self.live = set()

    def arrive(self, prompt, output):
        leg = self.legs
        self.legs += 1
        self.shadow.dispatch(leg, prompt_tokens=prompt, uncached=prompt, silent=False, now_s=self.now_s)
        self.engine.submit(Sequence(str(leg), prompt, output), self.now_s)
        self.live.add(leg)
        if self.due_s is None:
            self.due_s = self.now_s + self.engine.begin_step(self.now_s)

    def leave(self, leg):
        self.engine.abort(str(leg), self.now_s)
        self.shadow.end(leg, self.now_s, finished=False)
        self.live.discard(leg)
        self.started.discard(leg)

    def run(self, until_s):
        while self.due_s is not None and self.due_s <= until_s:
            self.now_s = self.due_s
            result = self.engine.finish_step(self.now_s)
            for sequence in result.started:
                self.shadow.first_byte(int(sequence.id), self.now_s)
                self.started.add(int(sequence.id))
            for sequence in result.finished:
                self.shadow.end(int(sequence.id), self.now_s, finished=True)
                self.live.discard(int(sequence.id))
                self.started.discard(int(sequence.id))
            self.check()
            duration_s = self.engine.begin_step(self.now_s)
            self.due_s = None if duration_s is None else self.now_s + duration_s
        self.now_s = until_s

    def check(self):
        self.shadow.check(sorted(self.live - self.started), sorted(self.started))

    def true_ttft_s(self, prompt):
        """What a copy of the engine needs."""
        twin, now_s, due_s = self.engine.copy(), self.now_s, self.due_s
        twin.submit(Sequence("new", prompt, 1000), now_s)
        if due_s is None:
            due_s = now_s + twin.begin_step(now_s)
        while True:
            if any(sequence.id == "new" for sequence in twin.finish_step(due_s).started):
                return due_s - now_s
            due_s += twin.begin_step(due_s)


def errors(pair, rng, *, arrivals, rate, prompt, output, most=60_000):
    """Relative errors of the shadow's TTFT at each arrival of a random run."""
    found = []
    for _ in range(arrivals):
        pair.run(pair.now_s + rng.expovariate(rate))
        tokens = max(2, min(int(rng.lognormvariate(0, 1) * prompt), most))
        if pair.legs > 5:
            true_s = pair.true_ttft_s(tokens)
            found.append(pair.shadow.foresee(tokens, tokens, pair.now_s)[0] / true_s - 1)
        pair.arrive(tokens, max(2, int(rng.lognormvariate(0, 0.8) * output)))
    return found


@pytest.mark.parametrize(("rate", "prompt"), [(2, 1000), (8, 1000), (12, 1000), (1, 7000)])
def test_with_the_right_step_times_ttft_is_the_engines_own_within_a_percent_or_two(rate, prompt):
    found = errors(Pair(), Random(rate), arrivals=120, rate=rate, prompt=prompt, output=150)
    assert median(map(abs, found)) < 0.02
    assert sum(map(abs, found)) / len(found) < 0.05


def test_a_smaller_budget_is_followed_when_it_is_known():
    found = errors(Pair(budget=2048), Random(1), arrivals=120, rate=6, prompt=2000, output=100)
    assert median(map(abs, found)) < 0.02


def test_places_run_out_there_too():
    pair = Pair(seqs=8)
    pair.shadow.output_tokens = 100.0
    found = errors(pair, Random(1), arrivals=150, rate=9, prompt=300, output=72)
    assert median(map(abs, found)) < 0.35
    assert abs(median(found)) < 0.25


def test_kv_memory_runs_out_there_too():
    pair = Pair(blocks=1500)
    pair.shadow.output_tokens = 250.0
    found = errors(pair, Random(1), arrivals=100, rate=4, prompt=2000, output=180, most=12_000)
    assert median(map(abs, found)) < 0.35
    assert abs(median(found)) < 0.25


def test_an_idle_engine_is_predicted_exactly():
    pair = Pair()
    assert pair.shadow.foresee(3000, 3000, 5.0)[0] == pytest.approx(pair.true_ttft_s(3000))
    assert pair.shadow.foresee(30_000, 30_000, 5.0)[0] == pytest.approx(pair.true_ttft_s(30_000))


def test_seen_steps_are_those_that_the_engine_took():
    pair = Pair()
    pair.arrive(3000, 10)
    pair.run(10.0)
    times = pair.shadow._fit.times
    seen = pair.shadow.take_seen()
    assert seen.work[STEPS] == 1
    assert seen.seconds == pytest.approx(times.seconds(0, 0, 3000, 3000 * 1500))
    pair.arrive(20_000, 10)
    pair.run(pair.now_s + 10.0)
    seen = pair.shadow.take_seen()
    assert seen.work[STEPS] == 3
    expected = sum(times.seconds(0, 0, n, n * (a + n / 2)) for n, a in ((8192, 0), (8192, 8192), (3616, 16_384)))
    assert seen.seconds == pytest.approx(expected)
    assert pair.shadow.take_seen() is None


def test_a_late_first_byte_stretches_the_forecast():
    shadow = Shadow(StepFit(PRESET))
    shadow.dispatch(1, prompt_tokens=1000, uncached=1000, silent=False, now_s=0.0)
    soon, late, later = (shadow.foresee(100, 100, now_s)[0] for now_s in (0.05, 5.0, 50.0))
    assert soon < 0.2
    assert late > 4.5
    assert later > 45


def test_long_decodes_cost_one_multiplication_and_keep_the_count():
    shadow = Shadow(StepFit(PRESET))
    shadow.dispatch(1, prompt_tokens=1000, uncached=1000, silent=False, now_s=0.0)
    shadow.first_byte(1, 0.05)
    before = shadow.work[STEPS]
    shadow.foresee(1, 1, 20.05)
    steps = shadow.work[STEPS] - before
    step_s = shadow._fit.seconds([1.0, 0.0, 1.0, 1000.0 + steps / 2, 0.0, 0.0, 0.0])
    assert steps == pytest.approx(20.0 / step_s, rel=0.01)
    assert shadow.running_context == pytest.approx(1000 + steps)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_stays_true_to_its_legs_in_any_order_of_events(data):
    pair = Pair(seqs=data.draw(st.sampled_from((2, 4, 256))), blocks=data.draw(st.sampled_from((80, 27_000))))
    for _ in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(("arrive", "arrive", "run", "leave")))
        if what == "arrive":
            pair.arrive(data.draw(st.integers(1, 900)), data.draw(st.integers(1, 60)))
        elif what == "run":
            pair.run(pair.now_s + data.draw(st.sampled_from((0.0, 0.004, 0.03, 0.5))))
        elif pair.live:
            pair.leave(data.draw(st.sampled_from(sorted(pair.live))))
        pair.check()
        ttft_s, wait_s, _ = pair.shadow.foresee(100, 100, pair.now_s)
        assert 0.0 <= wait_s <= ttft_s < 1e4
    pair.run(pair.now_s + 1e4)
    assert pair.shadow.legs == 0


def test_factor_and_strangers_make_it_slower():
    slow, plain = Shadow(StepFit(PRESET)), Shadow(StepFit(PRESET))
    slow.factor = 2.0
    assert slow.foresee(1000, 1000, 0.0)[0] == pytest.approx(2 * plain.foresee(1000, 1000, 0.0)[0])
    crowded = Shadow(StepFit(PRESET))
    crowded.strangers = 50.0
    assert crowded.foresee(1000, 1000, 0.0)[0] > plain.foresee(1000, 1000, 0.0)[0]
