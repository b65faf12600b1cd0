"""Each benchmark module's short form runs, prints its figures, and writes them as JSON."""

from pathlib import Path

import pytest

from tests.unit.benchmarks.smoke import smoke

pytestmark = pytest.mark.smoke


def test_faults_counts_every_request_once_and_keeps_its_promises(tmp_path: Path):
    printed, figures = smoke("faults", tmp_path)
    assert "failed before 1st byte" in printed
    assert figures["broken_promises"] == []
    assert [phase["name"] for phase in figures["phases"]] == ["no fault", "kill", "stop", "answer 500", "continue"]
    assert sum(phase["requests"] for phase in figures["phases"]) == figures["requests"] >= 200


def test_data_plane_measures_each_load_both_ways(tmp_path: Path):
    printed, figures = smoke("data_plane", tmp_path)
    medians = figures["medians"]
    assert list(medians) == ["closed loop", "open loop", "paced streams", "unpaced streams"]
    assert all(name in printed for name in medians)
    for name in ("closed loop", "open loop"):
        assert medians[name]["gateway"]["requests_per_s"] > 0
        assert medians[name]["gateway"]["cpu_s_per_1000_requests"] > 0
        assert medians[name]["gateway"]["p50_ms"] > 0
    for name in ("paced streams", "unpaced streams"):
        assert medians[name]["gateway"]["chunks_per_s"] > 0
        assert medians[name]["gateway"]["cpu_s_per_1m_chunks"] > 0
        assert medians[name]["direct"]["chunks_per_s"] > 0


def test_kv_views_shows_what_two_gateways_gain_from_events(tmp_path: Path):
    printed, figures = smoke("kv_views", tmp_path)
    assert "2 gateways, exact" in printed
    hits = {row["view"]: row["hit_percent"] for row in figures}
    assert hits["exact"] > hits["approximate"] > hits["round-robin"]


def test_kv_ingest_takes_in_all_events_that_were_published(tmp_path: Path):
    printed, figures = smoke("kv_ingest", tmp_path)
    assert "block operations a second" in printed
    assert figures["operations_per_s"] > 1000
    assert figures["figures"]["added_p99_ms_with_events"] is not None
    assert figures["exact"] == 8
    assert {(case["way"], case["events"]) for case in figures["cases"]} == {
        (way, events) for way in ("direct", "gateway") for events in (False, True)
    }


def test_kv_index_looks_up_less_than_a_walk_would(tmp_path: Path):
    _, figures = smoke("kv_index", tmp_path)
    assert figures["ratio"] > 1
    assert figures["resident_bytes_per_block"] < 200


def test_conversation_serves_every_request_under_each_policy(tmp_path: Path):
    printed, rows = smoke("conversation", tmp_path)
    assert "expected-cost" in printed
    assert [row["failed"] for row in rows] == [0, 0]
    assert rows[0]["hit_rate"] > rows[1]["hit_rate"]


def test_calibration_compares_prior_calibrated_and_left_out(tmp_path: Path):
    printed, figures = smoke("calibration", tmp_path)
    assert "Where requests wait for KV memory" in printed
    totals = figures["totals"]
    assert totals["points"] == 6
    assert totals["itl_calibrated"] < totals["itl_left_out"] < totals["itl_prior"]
    assert totals["ttft_calibrated"] < totals["ttft_prior"]


def test_real_engine_predicts_a_run_from_another(tmp_path: Path):
    printed, figures = smoke("real_engine", tmp_path)
    assert "predicted run" in printed
    assert [row["figure"] for row in figures["predicted"]] == ["TTFT p50", "TTFT p90", "TPOT p50", "TPOT p90"]
    assert all(row["measured_ms"] > 0 and row["replayed_ms"] > 0 for row in figures["predicted"])


def test_parity_sends_the_same_requests_both_ways(tmp_path: Path):
    printed, figures = smoke("parity", tmp_path)
    assert "same endpoint" in printed
    requests = {"one by one": 3, "together": 30, "two legs, one by one": 3, "two legs, together": 30}
    assert list(figures) == list(requests)
    for load, count in requests.items():
        assert figures[load]["requests"] == count
        assert figures[load]["failed"] == 0
        assert (figures[load]["in_two_legs_real"] > 0) == (figures[load]["in_two_legs_virtual"] > 0) == ("legs" in load)
        assert 0 < figures[load]["same_endpoint"] <= 1
        assert figures[load]["ttft_p50_real_ms"] > 0
        assert figures[load]["tpot_p50_virtual_ms"] > 0


def test_overload_keeps_goodput(tmp_path: Path):
    printed, figures = smoke("overload", tmp_path)
    assert "CPU per turn" in printed
    runs = {run["mode"]: run for run in figures["runs"] if run["load"] == 150}
    on, off = runs["on"], runs["off"]
    assert on["top_good"] == runs["by-priority"]["top_good"] == 1.0
    assert on["good_per_s"] > 3 * off["good_per_s"]
    assert on["shares"]["covered"] > 0.9
    assert on["shares"]["jain"] > 0.99
    assert off["shares"]["backlogged"] == 0.0
    assert figures["cost"]["bytes per queued request"] < 1000


def test_metrics_page_is_made_in_slices_that_take_a_part_of_its_time(tmp_path: Path):
    printed, figures = smoke("metrics_page", tmp_path)
    assert "longest slice" in printed
    assert [row["endpoints"] for row in figures] == [16, 256]
    assert all(row["longest_slice_ms"] < row["page_ms"] for row in figures)


def test_overload_peers_measures_beaconry_alone_and_says_who_is_skipped(tmp_path: Path):
    printed, figures = smoke("overload_peers", tmp_path)
    assert "top band p50 ms" in printed
    assert {run["router"] for run in figures} == {"Beaconry", "Beaconry, flow control off"}
    assert all(run["completed"] + run["refused"] + run["gave_up"] > 100 for run in figures)


def test_refusals_are_answered_while_streams_go_on(tmp_path: Path):
    printed, figures = smoke("refusals", tmp_path)
    assert "p99.9" in printed
    assert [(row["streams"], row["refused"]) for row in figures] == [(1, 300), (64, 300)]
    assert all(row["chunks_per_s"] > 0 for row in figures)


def test_legs_compares_every_rule_on_every_workload(tmp_path: Path):
    printed, rows = smoke("legs", tmp_path)
    assert "a ratio of 0.7" in printed
    good = {(row["workload"], row["rule"]): row["good_per_s"] for row in rows}
    assert len(good) == 20
    assert good["prompts", "auto"] > good["prompts", "always"]
