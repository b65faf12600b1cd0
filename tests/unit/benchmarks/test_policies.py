"""The policy benchmarks' short forms run, print their figures, and write them as JSON."""

import msgspec
import pytest

from benchmarks.simulator_speed import Course, Large
from tests.unit.benchmarks.smoke import smoke

pytestmark = pytest.mark.smoke


def test_policies_compares_the_default_with_stickiness_and_pinning(tmp_path):
    printed, figures = smoke("policies", tmp_path)
    assert "TTFT p50 ms" in printed
    assert {row["policy"] for row in figures} == {"expected-cost", "sticky", "pinned"}
    assert all(row["hit_percent"] > 90 for row in figures)


def test_prefix_index_shows_what_self_correction_gains(tmp_path):
    printed, figures = smoke("prefix_index", tmp_path)
    assert "self-correcting" in printed
    unlimited = figures["wrong"][-1]
    assert unlimited["learnt"] < unlimited["fixed"]


def test_fleet_policies_judges_every_cell_and_lists_those_where_another_policy_is_better(tmp_path):
    printed, figures = smoke("fleet_policies", tmp_path)
    cells = [(one["engines"], one["policy"]) for one in figures["outcomes"]]
    assert cells == [(8, "expected-cost"), (8, "round-robin"), (24, "expected-cost"), (24, "round-robin")]
    assert all(one["failed"] == 0 for one in figures["outcomes"])
    assert figures["misses"] == []
    assert "best or equal in goodput in every cell" in printed


def test_simulator_speed_compares_steps_at_once_with_single_steps(tmp_path):
    plot = tmp_path / "growth.svg"
    _, figures = smoke("simulator_speed", tmp_path, "--plot", str(plot))
    part, single = figures["trace"][2:]
    assert part["ttft_p50_s"] == pytest.approx(single["ttft_p50_s"])
    assert part["events"] < single["events"]
    assert len(figures["growth"]) == 3
    assert "8 engines" in plot.read_text()


def test_the_course_of_a_large_run_is_in_its_file_before_the_run_is_over(tmp_path):
    file = tmp_path / "large.json"
    course = Course(file, tell_s=0.0)
    course(10.0, 500)
    course(20.0, 900)
    course(21.0, 900)  # no request has ended since
    kept = msgspec.json.decode(file.read_bytes(), type=Large).course
    assert [point.requests for point in kept] == [0, 500, 900]
    assert kept == course.points
