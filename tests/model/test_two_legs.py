"""Fleets of prefill and decode engines under the router that decides in how many legs each request runs."""

from pathlib import Path

import pytest

from beaconry.apps.virtual_fleet import cells, run_cell
from beaconry.config.loading import load_yaml
from beaconry.sim.scenario import Scenario
from beaconry.values.errors import OperatorError

HEAD = """\
apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {name: two-legs}
slo: {ttftS: 2, itlS: 0.02}
durationS: 30
settleS: 200
warmupS: 5
service:
  model: {uri: "hf://openai/gpt-oss-120b", name: m}
  engine: {type: sim, preset: gpt-oss-120b/h200}
"""
DECODE = "{name: decode, role: decode, replicas: 1, engine: {type: sim, preset: gpt-oss-120b/h200x4}}"
APART = f"  pools: [{{name: prefill, role: prefill, replicas: 4}}, {DECODE}]\n"
TOGETHER = "  pools: [{name: engine, replicas: 8}]\n"
LONG = "workloads: [{type: prompts, arrivals: {rate: 12}, promptTokens: [4000, 6000], outputTokens: [200, 300]}]\n"
SHORT = "workloads: [{type: prompts, arrivals: {rate: 12}, promptTokens: 200, outputTokens: 200}]\n"


def result(pools=APART, workload=LONG, more="", policy=None):
    scenario = load_yaml(HEAD + pools + workload + more, Scenario, "s.yaml")
    cell, *_ = cells(scenario)
    return run_cell(scenario, cell, Path())[0]


def test_long_prompts_on_engines_of_their_own_make_tokens_come_evenly_and_the_first_one_late():
    apart, together = result(), result(TOGETHER)
    assert apart.summary.failed == together.summary.failed == 0
    assert set(apart.summary.endpoints) == {"decode-0"}
    assert apart.summary.tpot_s.p90 < 0.7 * together.summary.tpot_s.p90
    assert apart.summary.ttft_s.p50 > together.summary.ttft_s.p50


def test_short_prompts_run_whole_on_the_decode_engines():
    apart = result(workload=SHORT)
    assert apart.summary.failed == 0
    whole = result(f"  pools: [{DECODE}]\n", SHORT)
    assert apart.summary.ttft_s == whole.summary.ttft_s


def test_a_slow_link_delays_the_first_token_and_nothing_else():
    fast, slow = result(more="network: {kvLink: nvlink}\n"), result(more="network: {kvLink: tcp}\n")
    assert slow.summary.ttft_s.p50 - fast.summary.ttft_s.p50 > 0.05
    own = result(more="network: {kvLink: nvlink, kvGBPerS: 3, kvLatencyS: 0.010}\n")
    assert own.summary.ttft_s == slow.summary.ttft_s


@pytest.mark.parametrize("pool", ["prefill", "decode"])
@pytest.mark.parametrize("kind", ["crash", "hang"])
def test_what_befalls_one_side_breaks_no_more_than_what_runs_there(pool, kind):
    pools = "  pools: [{name: prefill, role: prefill, replicas: 3}, {name: decode, role: decode, replicas: 3}]\n"
    fault = f"faults: [{{type: {kind}, pool: {pool}, engines: 1, atS: 12, forS: 6}}]\n"
    hurt = result(pools, LONG.replace("rate: 12", "rate: 5"), fault)
    assert set(hurt.summary.errors) <= {"stream-broken"}
    assert hurt.summary.failed < (1 if pool == "prefill" else 0.2 * hurt.summary.requests)


def test_without_prefill_engines_all_is_computed_where_it_is_answered():
    fault = "faults: [{type: crash, pool: prefill, engines: 4, atS: 12, forS: 6}]\n"
    hurt = result(workload=LONG.replace("rate: 12", "rate: 3"), more=fault)
    assert hurt.summary.failed == 0


@pytest.mark.parametrize("policy", ["least-requests", "round-robin", "llm-d-weighted", "sticky"])
def test_every_policy_places_both_legs(policy):
    assert result(more=f"policies: [{policy}]\n").summary.failed == 0


def test_engines_whose_kv_is_of_unknown_size_cannot_be_apart(tmp_path):
    preset = tmp_path / "own.yaml"
    preset.write_text(
        "apiVersion: beaconry/v1alpha1\nkind: EnginePreset\nmodel: m\nstepTime: {fixedS: 0.01}\nblocks: 9000\n"
    )
    pools = APART.replace("replicas: 4", f"replicas: 4, engine: {{type: sim, preset: {preset}}}")
    with pytest.raises(OperatorError, match=r'pool "prefill": .* add kvBytesPerToken'):
        result(pools)
