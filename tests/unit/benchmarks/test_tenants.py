"""The tenants benchmark's short form runs, and its figures are there."""

import pytest

from tests.unit.benchmarks.smoke import smoke

pytestmark = pytest.mark.smoke


def test_tenants_shows_what_each_feature_costs(tmp_path):
    printed, figures = smoke("tenants", tmp_path)
    assert "microseconds" in printed
    assert set(figures) == {"door", "machine", "names"}
    assert all(cost["with_us"] > 0 for costs in figures.values() for cost in costs)
