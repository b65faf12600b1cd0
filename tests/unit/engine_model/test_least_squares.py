"""Non-negative least squares, against a search over all subsets of columns held at zero."""

import math
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beaconry.engine_model.least_squares import Equation, solve


def squares(equations, coefficients):
    return sum(
        ((sum(f * c for f, c in zip(one.features, coefficients, strict=True)) - one.value) / one.deviation) ** 2
        for one in equations
    )


def best_by_search(equations):
    """The least sum of squares over all choices of columns, each solved freely by coordinate descent and kept if non-negative."""
    size = len(equations[0].features)
    best = math.inf
    for count in range(size + 1):
        for used in combinations(range(size), count):
            free = [0.0] * size
            for _ in range(200):
                for i in used:
                    rest = [one.value - sum(one.features[j] * free[j] for j in used if j != i) for one in equations]
                    top = sum(one.features[i] * r / one.deviation**2 for one, r in zip(equations, rest, strict=True))
                    free[i] = top / sum((one.features[i] / one.deviation) ** 2 for one in equations)
            if all(value >= 0.0 for value in free):
                best = min(best, squares(equations, free))
    return best


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_no_choice_of_columns_does_better(seed):
    rng = Random(seed)
    equations = [
        Equation(tuple(rng.uniform(0.1, 3.0) for _ in range(3)), rng.gauss(0.0, 2.0), rng.uniform(0.5, 2.0))
        for _ in range(6)
    ]
    found = solve(equations).coefficients
    assert all(value >= 0.0 for value in found)
    assert squares(equations, found) <= best_by_search(equations) * (1 + 1e-3) + 1e-3


def test_exact_equations_give_the_coefficients_they_were_made_of():
    true = (0.02, 5e-4, 2e-8, 3e-5)
    rng = Random(1)
    rows = [(1.0, rng.uniform(1, 64), rng.uniform(1e3, 1e5), rng.uniform(0, 2048)) for _ in range(30)]
    equations = [Equation(row, sum(r * t for r, t in zip(row, true, strict=True)), 0.01) for row in rows]
    assert solve(equations).coefficients == pytest.approx(true, rel=1e-6)


def test_a_term_that_never_varies_apart_from_another_is_called_unknown():
    equations = [Equation((x, 2 * x, 1.0), 3 * x + 1, 0.1) for x in (1.0, 2.0, 3.0)]
    solution = solve(equations)
    assert max(solution.errors[:2]) == math.inf or max(solution.errors[:2]) > 1e3
    assert solution.errors[2] < 1.0


def test_a_term_that_never_occurs_is_zero_and_unknown():
    solution = solve([Equation((1.0, 0.0), 2.0, 0.1), Equation((2.0, 0.0), 4.0, 0.1)])
    assert solution.coefficients == pytest.approx((2.0, 0.0))
    assert solution.errors[1] == math.inf


def test_the_standard_error_is_that_of_a_mean():
    solution = solve([Equation((1.0,), value, 0.5) for value in (1.0, 2.0, 3.0, 4.0)])
    assert solution.coefficients == pytest.approx((2.5,))
    assert solution.errors == pytest.approx((0.25,))
