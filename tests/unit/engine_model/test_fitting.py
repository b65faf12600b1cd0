"""Step times found from outside: they reproduce the engine that was watched, also where it was not watched."""

from random import Random
from statistics import median

import pytest

from beaconry.engine_model.exposure import Rig
from beaconry.engine_model.fitting import Served, fit, replay
from beaconry.engine_model.presets import variant
from beaconry.engine_model.sequence import Sequence
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.values.errors import OperatorError

LINEAR = LinearStepTime(
    fixed_s=0.008, per_seq_s=2e-5, per_context_token_s=4e-8, prefill_tps=15_000, prompt_s=0.003, per_attended_s=2e-9
)
SETTINGS = EngineSettings(num_blocks=20_000)
REQUEST_S = 0.006


def watch(step_time, *, seed, rate, prompts=(100, 6000), outputs=(16, 200), noise=0.02, count=120):
    """What a load client sees of an engine with that step time."""
    rng, at_s, asked, seen = Random(seed), 0.0, [], {}
    for _ in range(count):
        at_s += rng.expovariate(rate)
        asked.append((at_s, rng.randint(*prompts), rng.randint(*outputs)))
    rig = Rig(SETTINGS, step_time, lambda one: seen.update({one.id: one}))
    for number, (at_s, prompt, output) in enumerate(asked):
        rig.advance(at_s + REQUEST_S)
        rig.submit(Sequence(str(number), prompt, output))
    rig.finish()
    return [
        Served(
            engine="one",
            sent_s=at_s,
            first_s=at_s + (seen[str(number)].first_s - at_s) * (slow := 1.0 + rng.gauss(0.0, noise)),
            end_s=at_s + (seen[str(number)].first_s - at_s) * slow
            + (seen[str(number)].end_s - seen[str(number)].first_s) * (1.0 + rng.gauss(0.0, noise)),
            prompt_tokens=prompt,
            output_tokens=output,
        )
        for number, (at_s, prompt, output) in enumerate(asked)
    ]  # fmt: skip


def errors(found, requests):
    """Median absolute errors of TTFT and time per token, when requests are replayed with what was found."""
    again = replay(requests, SETTINGS, found.step_time, found.request_s)
    return (
        median(abs(one.ttft_s / one.served.ttft_s - 1) for one in again),
        median(abs(one.tpot_s / one.served.tpot_s - 1) for one in again),
    )


@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_a_linear_engine_is_found_within_the_noise(rate):
    found = fit(watch(LINEAR, seed=1, rate=rate), SETTINGS)
    assert found.step_time.fixed_s == pytest.approx(LINEAR.fixed_s, rel=0.02)
    assert found.step_time.prefill_tps == pytest.approx(LINEAR.prefill_tps, rel=0.1)
    assert found.ttft_error < 0.03
    assert found.tpot_error < 0.03


@pytest.mark.parametrize("name", ["qwen3-32b/h100x2", "gpt-oss-120b/h200"])
def test_an_engine_of_another_form_is_predicted_at_loads_that_were_not_fitted_to(name):
    step_time = variant(name).step_time()
    found = fit(watch(step_time, seed=2, rate=2.0), SETTINGS)
    other = watch(step_time, seed=3, rate=1.0, prompts=(500, 4000), outputs=(50, 150))
    ttft, tpot = errors(found, other)
    assert ttft < 0.1
    assert tpot < 0.1


def test_several_runs_and_engines_are_fitted_together():
    slow, busy = watch(LINEAR, seed=4, rate=0.3, count=30), watch(LINEAR, seed=5, rate=3.0, count=90)
    together = [
        *slow,
        *(Served(**{name: getattr(one, name) for name in one.__struct_fields__} | {"engine": "two"}) for one in busy),
    ]
    found = fit(together, SETTINGS)
    assert found.requests == 120
    assert max(errors(found, slow)) < 0.05


def test_a_run_without_variety_says_what_it_does_not_tell():
    found = fit(watch(LINEAR, seed=6, rate=0.2, prompts=(500, 500), outputs=(64, 64)), SETTINGS)
    assert any("per prompt token" in warning and "vary the lengths of prompts" in warning for warning in found.warnings)
    assert found.ttft_error < 0.05


def test_a_few_stalls_change_little():
    requests = watch(LINEAR, seed=7, rate=1.0)
    stalled = [
        Served(
            engine=one.engine,
            sent_s=one.sent_s,
            first_s=one.first_s + (2.0 if number % 25 == 0 else 0.0),
            end_s=one.end_s + (2.0 if number % 25 == 0 else 0.0),
            prompt_tokens=one.prompt_tokens,
            output_tokens=one.output_tokens,
        )
        for number, one in enumerate(requests)
    ]
    assert fit(stalled, SETTINGS).step_time.prefill_tps == pytest.approx(LINEAR.prefill_tps, rel=0.15)


def test_too_few_requests_are_refused():
    with pytest.raises(OperatorError, match="too few"):
        fit(watch(LINEAR, seed=1, rate=1.0, count=5), SETTINGS)


def test_answers_that_come_at_once_tell_no_pace():
    at_once = [
        Served(engine="one", sent_s=one.sent_s, first_s=one.end_s, end_s=one.end_s, prompt_tokens=one.prompt_tokens, output_tokens=9)
        for one in watch(LINEAR, seed=1, rate=1.0, count=30)
    ]  # fmt: skip
    with pytest.raises(OperatorError, match="0 streamed answers"):
        fit(at_once, SETTINGS)


def test_memory_that_cannot_hold_what_was_served_is_refused():
    with pytest.raises(OperatorError, match="--blocks"):
        fit(watch(LINEAR, seed=1, rate=1.0), EngineSettings(num_blocks=10))


def test_the_coefficients_of_a_linear_step_time_come_back_in_order():
    assert LinearStepTime.of(LINEAR.coefficients) == LINEAR
    load = (3, 5000.0, 200, 1e5)
    assert sum(c * f for c, f in zip(LINEAR.coefficients, LINEAR.features(*load), strict=True)) == pytest.approx(
        LINEAR.seconds(*load)
    )
