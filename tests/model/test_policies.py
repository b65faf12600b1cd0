"""The promise of the default policy: from a cold start it is never worse than stickiness, beyond what chance explains.

`python -m benchmarks.policies` shows the same over many more loads, seeds and workloads.
"""

import pytest

from benchmarks.policies import run

CASES = [
    ("prefixes", 70, 1), ("prefixes", 95, 2), ("prefixes", 120, 1), ("conversations", 70, 1), ("more prefixes than fit", 70, 2),
    ("one engine half as fast", 70, 1),
]  # fmt: skip


@pytest.mark.parametrize(("workload", "load", "seed"), CASES)
def test_expected_cost_is_not_worse_than_sticky_from_a_cold_start(workload, load, seed):
    ours, sticky = (run(workload, load, policy, seed) for policy in ("expected-cost", "sticky"))
    assert ours.unfinished <= sticky.unfinished + 5
    assert ours.hit_percent > sticky.hit_percent - 1.5
    assert ours.e2e_s < 1.1 * sticky.e2e_s
    assert ours.ttft_p90_ms < 1.25 * sticky.ttft_p90_ms + 300


def test_blind_routing_collapses_where_expected_cost_holds():
    ours, blind = (run("prefixes", 70, policy, 1) for policy in ("expected-cost", "least-requests"))
    assert ours.hit_percent > 97
    assert blind.hit_percent < 70
    assert ours.ttft_p90_ms < 0.1 * blind.ttft_p90_ms
