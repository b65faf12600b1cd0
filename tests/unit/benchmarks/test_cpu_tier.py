"""The short form of the benchmark of tiers runs, prints its figures, and writes them as JSON."""

import pytest

from tests.unit.benchmarks.smoke import smoke

pytestmark = pytest.mark.smoke


def test_cpu_tier_shows_that_loading_beats_computing_again(tmp_path):
    printed, figures = smoke("cpu_tier", tmp_path)
    assert "loaded %" in printed
    rows = {row["setup"]: row for row in figures}
    assert rows["GPU, exact"]["loaded_percent"] == 0.0 < rows["host memory, exact"]["loaded_percent"]
    assert rows["host memory, exact"]["hit_percent"] > rows["GPU, exact"]["hit_percent"] + 20
    assert rows["host memory, exact"]["ttft_p90_ms"] < rows["GPU, exact"]["ttft_p90_ms"]
