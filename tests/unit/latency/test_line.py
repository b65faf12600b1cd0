"""The straight line that times are learnt on."""

import pytest

from beaconry.latency.line import Line


def test_a_line_finds_its_way_back_from_times_that_were_nothing():
    line = Line(0.04, 1e-4)
    for _ in range(100_000):
        line.observe(100, 0.0)
    for number in range(1000):
        tokens = 100 * (number % 50)
        line.observe(tokens, 0.05 + 2e-4 * tokens)
    assert line.at(2000) == pytest.approx(0.45, rel=0.2)
