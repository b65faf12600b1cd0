"""Several plain steps taken at once are as noisy as one after the other, and end when they were going to, whoever looks meanwhile."""

from random import Random
from statistics import stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.engine_model.step_span import StepSpan, draw_noise
from beaconry.engine_model.step_time import LinearStepTime

STEP_TIME = LinearStepTime(fixed_s=0.01)
LOAD = (4, 4000, 0, 0.0)


def span(noise, steps, step_time=STEP_TIME):
    made = StepSpan(step_time, 0.0, LOAD, 0.0, noise)
    made.planned = steps
    return made


@pytest.mark.parametrize("steps", [1, 4, 100])
def test_the_noise_of_several_steps_is_that_of_as_many_independent_ones(steps):
    rng = Random(1)
    at_once = [span(draw_noise(0.03, rng), steps).duration_s(steps) for _ in range(3000)]
    one_by_one = [sum(span(draw_noise(0.03, rng), 1).duration_s(1) for _ in range(steps)) for _ in range(1000)]
    assert stdev(at_once) == pytest.approx(stdev(one_by_one), rel=0.1)


@given(st.floats(-0.5, 0.5), st.integers(1, 300), st.lists(st.floats(0.0, 4.0), max_size=5))
def test_looking_at_steps_half_way_does_not_move_their_end(noise, steps, looks):
    whole = span(noise, steps, LinearStepTime(fixed_s=0.01, per_context_token_s=1e-7))
    end_s = whole.duration_s(steps)
    for now_s in sorted(looks):
        whole.advance(now_s)
    assert whole.passed + whole.planned == steps
    assert whole.shorten(1e9) == pytest.approx(end_s)


@given(st.floats(-0.5, 0.5), st.integers(2, 300))
def test_steps_end_one_after_the_other_whatever_the_noise(noise, steps):
    ends = [span(noise, steps).duration_s(n) for n in range(1, steps + 1)]
    assert ends == sorted(ends)
    assert ends[0] > 0
