from itertools import islice, pairwise, takewhile
from random import Random
from statistics import mean, pstdev

import pytest

from beaconry.workload.arrivals import diurnal, fixed, gamma, poisson


def gaps(times):
    return [after - before for before, after in pairwise(times)]


def test_fixed_arrivals_begin_at_zero_and_do_not_drift():
    assert list(islice(fixed(4.0), 5)) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert next(islice(fixed(3.0), 3_000_000, None)) == 1_000_000.0


def test_poisson_gaps_are_exponential_with_the_rate_asked_for():
    between = gaps(list(islice(poisson(50.0, Random(1)), 20_000)))
    assert mean(between) == pytest.approx(0.02, rel=0.03)
    assert pstdev(between) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("shape", [0.25, 4.0])
def test_gamma_keeps_the_rate_and_changes_the_spread_by_its_shape(shape):
    between = gaps(list(islice(gamma(10.0, shape, Random(2)), 20_000)))
    assert mean(between) == pytest.approx(0.1, rel=0.05)
    assert pstdev(between) / mean(between) == pytest.approx(shape**-0.5, rel=0.08)


def test_the_same_seed_gives_the_same_arrivals():
    assert list(islice(poisson(5.0, Random(3)), 50)) == list(islice(poisson(5.0, Random(3)), 50))


def test_diurnal_arrivals_follow_the_day_and_keep_the_mean():
    times = list(takewhile(lambda at_s: at_s < 2000.0, diurnal(10.0, 0.8, 1000.0, Random(1))))
    assert len(times) == pytest.approx(20_000, rel=0.03)
    night = sum(at_s % 1000 < 100 or at_s % 1000 >= 900 for at_s in times)
    noon = sum(400 <= at_s % 1000 < 600 for at_s in times)
    assert noon / night == pytest.approx(1.75 / 0.25, rel=0.15)
