"""Linear least squares with coefficients that are not negative, and how sure each of them is. A handful of unknowns, in plain Python.

Time per token cannot be negative, so a term that the data would make negative is set to 0 and the others are fitted without it: the
active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23) on the normal equations, columns scaled to
unit length first. What is known beforehand comes in as further equations.
"""

import math
from collections.abc import Sequence

from msgspec import Struct

TINY = 1e-10
"""Gradients and pivots below it, after scaling, are rounding."""


class Equation(Struct, frozen=True):
    """`features` times the coefficients should give `value`, give or take `deviation`."""

    features: tuple[float, ...]
    value: float
    deviation: float


class Solution(Struct, frozen=True, kw_only=True):
    """Coefficients and their standard errors, given the equations' deviations; the error is infinite where nothing tells the value."""

    coefficients: tuple[float, ...]
    errors: tuple[float, ...]


def solve(equations: Sequence[Equation]) -> Solution:
    """Return the non-negative coefficients with the least sum of squared errors, each in units of its deviation.

    All equations have the same number of features; there is at least one. Deviations are above 0.
    """
    size = len(equations[0].features)
    rows = [[feature / one.deviation for feature in one.features] for one in equations]
    values = [one.value / one.deviation for one in equations]
    scales = [math.sqrt(sum(row[column] ** 2 for row in rows)) for column in range(size)]
    matrix = [
        [
            sum(row[i] * row[j] for row in rows) / (scales[i] * scales[j]) if scales[i] and scales[j] else 0.0
            for j in range(size)
        ]
        for i in range(size)
    ]
    target = [
        sum(row[i] * value for row, value in zip(rows, values, strict=True)) / scales[i] if scales[i] else 0.0
        for i in range(size)
    ]
    scaled, used = _non_negative(matrix, target)
    errors = _errors(matrix, used)
    return Solution(
        coefficients=tuple(value / scale if scale else 0.0 for value, scale in zip(scaled, scales, strict=True)),
        errors=tuple(error / scale if scale else math.inf for error, scale in zip(errors, scales, strict=True)),
    )


def _non_negative(matrix: list[list[float]], target: list[float]) -> tuple[list[float], list[int]]:
    """Lawson and Hanson: the minimiser, and the columns that are not held at 0."""
    size = len(target)
    current = [0.0] * size
    used: list[int] = []
    for _ in range(3 * size):
        slopes = [target[i] - sum(matrix[i][j] * current[j] for j in used) for i in range(size)]
        best = max((i for i in range(size) if i not in used), key=lambda i: slopes[i], default=None)
        if best is None or slopes[best] <= TINY * max(1.0, *map(abs, target)):
            break
        used.append(best)
        while used:
            solved = dict(zip(used, _gauss(matrix, target, used), strict=True))
            if all(value > 0.0 for value in solved.values()):
                break
            # As far towards it as all stay positive; who is at 0 then is held there.
            step = min(current[i] / (current[i] - value) for i, value in solved.items() if value <= 0.0)
            for i, value in solved.items():
                current[i] += step * (value - current[i])
            used = [i for i in used if current[i] > TINY and not (solved[i] <= 0.0 and current[i] <= TINY)]
            current = [value if i in used else 0.0 for i, value in enumerate(current)]
        else:
            break
        current = [solved.get(i, 0.0) for i in range(size)]
    return current, used


def _gauss(matrix: list[list[float]], target: list[float], used: Sequence[int]) -> list[float]:
    """Solve the equations of the columns used; a column that the ones before it make up gets 0."""
    rows = [[matrix[i][j] for j in used] + [target[i]] for i in used]
    size = len(used)
    for pivot in range(size):
        largest = max(range(pivot, size), key=lambda i: abs(rows[i][pivot]))
        rows[pivot], rows[largest] = rows[largest], rows[pivot]
        if abs(rows[pivot][pivot]) < TINY:
            continue
        for i in range(size):
            if i != pivot and rows[i][pivot]:
                factor = rows[i][pivot] / rows[pivot][pivot]
                rows[i] = [left - factor * right for left, right in zip(rows[i], rows[pivot], strict=True)]
    return [rows[i][size] / rows[i][i] if abs(rows[i][i]) >= TINY else 0.0 for i in range(size)]


def _errors(matrix: list[list[float]], used: Sequence[int]) -> list[float]:
    """Square roots of the diagonal of the inverse. A column held at 0 is judged beside those used."""
    errors = []
    for column in range(len(matrix)):
        if not matrix[column][column]:
            errors.append(math.inf)
            continue
        together = sorted({*used, column})
        unit = [1.0 if i == column else 0.0 for i in range(len(matrix))]
        variance = _gauss(matrix, unit, together)[together.index(column)]
        errors.append(math.sqrt(variance) if variance > 0.0 else math.inf)
    return errors
