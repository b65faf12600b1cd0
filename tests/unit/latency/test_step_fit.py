"""The step fit recovers what made the observations, keeps to its prior where nothing was seen, and is not misled."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.engine_model.presets import variant
from beaconry.latency.step_fit import GUESS, STARTS, STEPS, TERMS, TOKENS, StepFit, prior

PRESET = "llama-3.1-8b/h100"


def step(fit, rng):
    """The work of one step, and its parameters."""
    sequences = rng.randint(0, 60)
    context, prefill = sequences * rng.randint(500, 8000), rng.choice((0, 200, 1500, 8000))
    attended = prefill * (0.5 * prefill + rng.randint(0, 4000))
    work = [1.0, float(prefill > 0), sequences, context, max(sequences + prefill - fit.knee, 0.0), attended, 0.0]
    return work, (sequences, context, prefill, attended)


def taught(fit, truth, *, count=300, noise=0.0, broken=0.0, seed=1):
    rng = Random(seed)
    for _ in range(count):
        work, load = step(fit, rng)
        seconds = truth.seconds(*load) * (1 + rng.gauss(0, noise))
        fit.observe(work, seconds * (rng.choice((6, 30)) if rng.random() < broken else 1))
    return fit


def mean_error(fit, truth, seed=2):
    rng = Random(seed)
    found = []
    for _ in range(100):
        work, load = step(fit, rng)
        found.append(abs(fit.seconds(work) / truth.seconds(*load) - 1))
    return sum(found) / len(found)


def test_the_coefficients_that_made_the_observations_are_recovered():
    fit = StepFit("default")
    truth = prior(PRESET)
    assert truth is not None
    fit.knee = truth.knee_tokens
    learnt = taught(fit, truth, count=500).times
    assert learnt.fixed_s == pytest.approx(truth.fixed_s, rel=0.05)
    assert learnt.prompt_s == pytest.approx(truth.prompt_s, rel=0.15)
    assert learnt.per_context_token_s == pytest.approx(truth.per_context_token_s, rel=0.05)
    assert learnt.per_token_s == pytest.approx(truth.per_token_s, rel=0.05)
    assert learnt.per_attended_s == pytest.approx(truth.per_attended_s, rel=0.2)


@pytest.mark.parametrize("name", ["qwen3-32b/h100x2", "llama-3.1-8b/l40s", "llama-3.1-70b-fp8/h100x4"])
def test_an_unknown_variant_is_known_after_a_hundred_noisy_steps(name):
    truth = variant(name).step_time()
    assert mean_error(StepFit("default"), truth) > 0.1
    assert mean_error(taught(StepFit("default"), truth, count=100, noise=0.03), truth) < 0.05


def test_data_sheets_are_a_better_start_than_a_guess():
    truth = variant("llama-3.1-70b-fp8/h100x4").step_time()
    assert mean_error(StepFit("llama-3.1-70b-fp8/h100x4"), truth) < 0.5 * mean_error(StepFit("default"), truth)


def test_stalls_among_the_observations_do_not_mislead():
    truth = variant(PRESET).step_time()
    fit = taught(StepFit(PRESET), truth, noise=0.03, broken=0.05)
    assert mean_error(fit, truth) < 0.06
    assert fit.gated > 0


def test_a_lasting_change_is_followed():
    truth = prior(PRESET)
    assert truth is not None
    fit = taught(StepFit(PRESET), truth)
    rng = Random(3)
    for _ in range(400):
        work, load = step(fit, rng)
        fit.observe(work, 1.8 * truth.seconds(*load))
    work, load = step(fit, rng)
    assert fit.seconds(work) == pytest.approx(1.8 * truth.seconds(*load), rel=0.1)


def test_what_never_varies_keeps_its_prior_in_proportion():
    fit = StepFit(PRESET)
    before = fit.coefficients[TOKENS]
    for _ in range(500):
        fit.observe([1.0, 0.0, 8.0, 8000.0, 0.0, 0.0, 0.0], 0.02)
    assert fit.coefficients[TOKENS] == pytest.approx(before)
    assert fit.seconds([1.0, 0.0, 8.0, 8000.0, 0.0, 0.0, 0.0]) == pytest.approx(0.02, rel=0.05)


@given(st.lists(st.tuples(st.lists(st.floats(0, 1e6), min_size=TERMS, max_size=TERMS), st.floats(1e-6, 1e4))))
def test_no_observation_makes_a_coefficient_negative_or_infinite(observations):
    fit = StepFit("default")
    for work, seconds in observations:
        fit.observe(work, seconds)
    assert all(0.0 <= c < float("inf") for c in fit.coefficients)


def test_the_times_by_name_are_a_step_time_that_agrees_with_the_fit():
    fit = StepFit(PRESET)
    rng = Random(5)
    for _ in range(50):
        work, load = step(fit, rng)
        assert fit.times.seconds(*load) == pytest.approx(fit.seconds(work))
    assert fit.seconds([0.0] * STARTS + [1.0]) == pytest.approx(GUESS.start_s)
    assert fit.seconds([2.0 if i == STEPS else 0.0 for i in range(TERMS)]) == pytest.approx(2 * fit.times.fixed_s)
