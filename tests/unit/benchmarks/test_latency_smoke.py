"""The short forms of the benchmarks of predictions and objectives run, and print their figures."""

from pathlib import Path

import pytest

from tests.unit.benchmarks.smoke import smoke

pytestmark = pytest.mark.smoke


def test_the_shadow_is_less_biased_than_the_closed_form(tmp_path: Path):
    printed, rows = smoke("predictor", tmp_path)
    assert "shadow" in printed
    shadow, closed, known = (
        next(row for row in rows if row["predictor"] == name)
        for name in ("shadow", "closed form", "all arrivals known")
    )
    assert abs(shadow["mean_itl"]) < abs(closed["mean_itl"])
    assert known["itl_median"] < 0.5 * shadow["itl_median"]
    assert shadow["ttft_median"] < 0.15  # the closed form does as well where engines are hardly busy
    assert shadow["coverage"] > 0.8


def test_slo_counts_every_request_of_every_class(tmp_path: Path):
    printed, rows = smoke("slo", tmp_path)
    assert "objectives" in printed
    assert [row["policy"] for row in rows] == ["objectives", "token-load"]
    assert all(row["requests"] == 240 for row in rows)
    assert all(set(row["classes"]) == {"strict", "standard", "relaxed"} for row in rows)


def test_request_cost_tells_what_is_added(tmp_path):
    printed, figures = smoke("request_cost", tmp_path)
    assert "added, us" in printed
    assert len(figures) == 3
    assert all(0 < row["neither_us"] < row["both_us"] for row in figures)
    assert figures[0]["in_flight"] < 5 < figures[1]["in_flight"] < figures[2]["in_flight"]
