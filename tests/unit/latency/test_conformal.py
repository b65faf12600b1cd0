"""Ranges hold as often as they promise, whatever the errors look like."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.latency.conformal import Residuals

STREAMS = {
    "log-normal": lambda rng, _: rng.lognormvariate(0.0, 0.3),
    "two kinds": lambda rng, _: rng.choice((1.0, 1.0, 3.0)) * rng.uniform(0.9, 1.1),
    "heavy tail": lambda rng, _: 1.0 + rng.paretovariate(1.5) / 10,
    "drifting": lambda rng, i: (1.0 + i / 1000) * rng.lognormvariate(0.0, 0.2),
    "a jump": lambda rng, i: (1.0 if i < 1000 else 2.5) * rng.lognormvariate(0.0, 0.2),
    "always the same": lambda _, __: 1.1,
}


def run(draw, coverage=0.9, count=2000):
    """The share of outcomes below the upper end stated before each, after the first hundred."""
    residuals, rng = Residuals(coverage), Random(1)
    covered = 0
    for i in range(count):
        ratio, high = draw(rng, i), residuals.range.high
        covered += i >= 100 and ratio <= high
        residuals.add(ratio, covered=ratio <= high)
    return covered / (count - 100), residuals


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "always the same"])
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_the_upper_end_covers_the_share_asked_for(name, coverage):
    share, _ = run(STREAMS[name], coverage)
    assert share == pytest.approx(coverage, abs=0.02)


def test_equal_ratios_give_a_range_without_width():
    share, residuals = run(STREAMS["always the same"])
    assert share == 1.0
    assert (residuals.range.low, residuals.range.middle, residuals.range.high) == (1.1, 1.1, 1.1)


def test_the_lower_end_is_undercut_as_rarely_as_the_upper_is_exceeded():
    residuals, rng = Residuals(0.9), Random(2)
    under = 0
    for i in range(2000):
        ratio = rng.lognormvariate(0.0, 0.3)
        under += i >= 100 and ratio < residuals.range.low
        residuals.add(ratio, covered=ratio <= residuals.range.high)
    assert under / 1900 == pytest.approx(0.1, abs=0.02)


def test_a_range_is_a_guess_until_there_are_ten_ratios():
    residuals = Residuals(0.9)
    guess = residuals.range
    for _ in range(9):
        residuals.add(1.0, covered=True)
        assert residuals.range == guess
    residuals.add(1.0, covered=True)
    assert residuals.known
    assert residuals.range.high == 1.0


def test_surges_that_are_known_late_are_mostly_made_up_for():
    """One outcome in five is twice as long, a hundred in a row; each is known 50 later."""
    residuals, rng, covered = Residuals(0.9), Random(3), 0
    late: list[tuple[float, float]] = []
    for i in range(4000):
        ratio = (1.0 + (i // 100 % 5 == 0)) * rng.lognormvariate(0.0, 0.1)
        late.append((ratio, residuals.range.high))
        covered += ratio <= residuals.range.high
        if len(late) > 50:
            known, high = late.pop(0)
            residuals.add(known, covered=known <= high)
    assert covered / 4000 > 0.85


def test_a_few_long_outcomes_raise_the_mean_and_leave_the_middle():
    residuals = Residuals(0.9)
    for i in range(200):
        residuals.add(3.0 if i % 10 == 0 else 1.0, covered=True)
    assert residuals.range.middle == 1.0
    assert residuals.range.mean == pytest.approx(1.1)  # half way to 1.2, for it may be chance


@given(st.lists(st.floats(1e-3, 1e3), max_size=600), st.floats(0.5, 0.99))
def test_ends_are_in_order_and_ratios_that_were_seen_but_for_a_high_one_beyond_all(ratios, coverage):
    residuals = Residuals(coverage)
    for ratio in ratios:
        residuals.add(ratio, covered=ratio <= residuals.range.high)
    found = residuals.range
    assert found.low <= found.middle <= found.high
    assert len(residuals) == min(len(ratios), 200)
    if residuals.known:
        assert {found.low, found.middle} <= set(ratios[-200:])
        assert found.high in ratios[-200:] or found.high > max(ratios[-200:])
        assert min(1.0, *ratios[-200:]) <= found.mean * (1 + 1e-9)
        assert found.mean <= max(1.0, *ratios[-200:]) * (1 + 1e-9)
