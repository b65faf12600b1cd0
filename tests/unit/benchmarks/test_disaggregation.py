"""The short form of the benchmark of prefill and decode apart runs, prints its figures, and writes them as JSON."""

import pytest

from tests.unit.benchmarks.smoke import smoke

pytestmark = pytest.mark.smoke


def test_prefill_and_decode_apart_buy_even_tokens_and_cost_the_first_one(tmp_path):
    printed, figures = smoke("disaggregation", tmp_path)
    assert "published" in printed
    whole, apart = figures[:2]
    assert (whole["setup"], apart["setup"]) == ("16 x TP1, round robin", "8 x TP1 + 2 x TP4")
    assert apart["itl_mean_ms"] < 0.6 * whole["itl_mean_ms"]
    assert apart["ttft_mean_s"] > 1.4 * whole["ttft_mean_s"]
    assert apart["e2e_mean_s"] < whole["e2e_mean_s"]
    short = {row["setup"]: row for row in figures if row["traffic"].startswith("200 in")}
    assert short["8 x TP1 + 2 x TP4, always"]["ttft_p50_s"] > 1.3 * short["16 x TP1"]["ttft_p50_s"]
