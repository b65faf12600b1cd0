"""Fleets of prefill and decode engines under the router that decides in how many legs each request runs."""

from itertools import takewhile
from pathlib import Path
from random import Random

import pytest

from beaconry.apps.assemble import make_router
from beaconry.apps.virtual_fleet import cells, run_cell
from beaconry.config.disaggregation import Disaggregation
from beaconry.config.gateway import Deadlines, GatewayConfig
from beaconry.config.loading import load_yaml
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.kv_link import KvWay
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.sim.conditions import Clients, Conditions, Fault, FaultKind
from beaconry.sim.fleet import Fleet
from beaconry.sim.scenario import Scenario
from beaconry.values.endpoint import Endpoint, Role
from beaconry.values.errors import OperatorError
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.request import Message, PlannedRequest, Span
from beaconry.workload.synthetic import Bounds, Shape, conversations

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


def test_the_fullest_pool_is_looked_at_by_itself():
    more = result(workload=LONG).looks[-20:-10]
    assert all(look.fullest_kv_usage > look.kv_usage > 0 for look in more)
    assert all(look.fullest_kv_usage == pytest.approx(look.kv_usage) for look in result(TOGETHER).looks)


def test_short_prompts_run_whole_on_the_decode_engines_while_these_are_not_busy():
    apart = result(workload=SHORT)
    assert apart.summary.failed == 0
    whole = result(f"  pools: [{DECODE}]\n", SHORT)
    assert apart.summary.ttft_s.p50 == pytest.approx(whole.summary.ttft_s.p50, rel=0.02)
    assert apart.summary.ttft_s.p90 == pytest.approx(whole.summary.ttft_s.p90, rel=0.1)


def test_short_prompts_are_split_where_the_decode_engines_would_let_them_wait():
    rate = SHORT.replace("rate: 12", "rate: 70")
    auto, never = result(workload=rate), result(APART + "  router: {disaggregation: {mode: never}}\n", rate)
    assert auto.summary.ttft_s.p50 < 0.2 < never.summary.ttft_s.p50


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
    with pytest.raises(OperatorError, match="add kvBytesPerToken to it"):
        result(pools)


SHAPE = Shape(
    prompt_tokens=Bounds(low=20, high=80), output_tokens=Bounds(low=5, high=20), turns=3, think_s=0.5, groups=5,
    prefix_tokens=Bounds(low=200, high=900),
)  # fmt: skip
ROLES = {"p0": Role.PREFILL, "p1": Role.PREFILL, "d0": Role.DECODE, "d1": Role.DECODE, "b0": Role.BOTH}


def small_fleet(conditions, seed, *, mode="auto", aggregate=True, routers=1):
    config = GatewayConfig(
        deadlines=Deadlines(first_byte_s=3.0, idle_s=4.0, total_s=20.0),
        disaggregation=Disaggregation(
            mode=mode, min_uncached_tokens=150, on_prefill_failure="aggregate" if aggregate else "error"
        ),
        seed=seed,
    )
    settings = EngineSettings(num_blocks=200, max_num_seqs=8, max_num_batched_tokens=512)
    timing = LinearStepTime(fixed_s=0.01, per_seq_s=1e-4, prefill_tps=20_000)
    return Fleet(
        [make_router(config) for _ in range(routers)],
        {name: Engine(settings, timing) for name in ROLES},
        {name: Endpoint(name=name, host="sim", port=1, model="m", role=role) for name, role in ROLES.items()},
        conditions=conditions,
        seed=seed,
    )


def mishap(rng):
    kind = rng.choice((FaultKind.CRASH, FaultKind.HANG, FaultKind.SLOW))
    hit = tuple(name for name in ROLES if rng.random() < 0.4)
    return Fault(kind=kind, at_s=rng.uniform(0.0, 4.0), for_s=rng.uniform(0.1, 2.0), endpoints=hit, factor=3.0)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_every_request_ends_once_and_no_kv_is_kept_for_ever(seed):
    rng = Random(seed)
    way = KvWay(bytes_per_token=1e6, bytes_per_s=rng.choice((1e10, 1e11)), latency_s=0.002)
    conditions = Conditions(
        client_s=rng.choice((0.0, 0.02)),
        engine_s=rng.choice((0.0, 0.01)),
        clients=Clients(timeout_s=rng.choice((None, 0.3, 2.0)), retries=rng.randrange(3), backoff_s=0.1),
        faults=tuple(mishap(rng) for _ in range(5)),
        kv_ways=dict.fromkeys(ROLES, way),
        kv_events=rng.random() < 0.5,
        event_delay_s=0.01,
    )
    mode = rng.choice(("auto", "always"))
    virtual = small_fleet(conditions, seed, mode=mode, aggregate=rng.random() < 0.7, routers=1 + seed % 3)
    talks = takewhile(lambda one: one.at_s < 4.0, conversations(SHAPE, poisson(20.0, rng), rng))
    message = Message(role="user", spans=(Span(id=1, tokens=100),))
    last = PlannedRequest(at_s=90.0, messages=(message,), output_tokens=4, reply_id=2)  # when all leases are over
    samples = virtual.run(Plan([*talks, last]), until_s=150.0)
    virtual.check()
    assert sorted(s.index for s in samples) == list(range(len(samples)))
    assert not any(s.error == "unfinished" for s in samples)
    assert any(s.error is None for s in samples)
    totals = [host.engine.statistics() for host in virtual._hosts.values()]
    assert sum(one.imported_tokens for one in totals) > 0
    assert all(one.kv_usage == one.held == 0 for one in totals)
