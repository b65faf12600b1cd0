"""Scenarios as a whole: equal seeds give equal results, faults are felt and survived, replicas come and go."""

from pathlib import Path

import pytest

from beaconry.apps.virtual_fleet import cells, run_cell
from beaconry.config.loading import load_yaml
from beaconry.sim.scenario import Scenario

TEXT = """\
apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {name: small}
service:
  model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct", name: m}
  engine: {type: sim, preset: llama-3.1-8b/h100, args: [--max-num-seqs, "32"]}
  pools: [{name: engine, replicas: 4}]
slo: {ttftS: 1, itlS: 0.05}
durationS: 40
settleS: 200
workloads:
- {type: sessions, arrivals: {rate: 1.5}, turns: 3, thinkS: 2, groups: 3, prefixTokens: 1500}
"""


def result(more="", **changes):
    scenario = load_yaml(TEXT + more, Scenario, "s.yaml")
    return run_cell(scenario, cells(scenario)[0], Path(), **changes)[0]


def test_equal_seeds_give_equal_results():
    first, second = result(), result()
    assert first.summary == second.summary
    assert first.looks == second.looks
    assert first.events == second.events


def test_every_policy_and_seed_of_a_grid_gets_its_cell_once():
    scenario = load_yaml(TEXT + "policies: [sticky, random]\nloads: [1, 2]\nseeds: 2\n", Scenario, "s.yaml")
    every = cells(scenario)
    assert len(every) == len(set(every)) == 8


def test_a_dead_zone_breaks_streams_and_nothing_else():
    dead = result("fleet: {zones: 2}\nfaults: [{type: crash, zone: 1, atS: 20, forS: 10}]\n")
    assert set(dead.summary.errors) <= {"stream-broken"}
    assert 0 < dead.summary.failed < 0.2 * dead.summary.requests
    assert min(look.replicas for look in dead.looks) == 2
    assert dead.looks[-1].replicas == 4
    assert result().summary.failed == 0


def test_hung_engines_are_noticed_by_their_health_checks_and_the_last_one_serves():
    hung = result("faults: [{type: hang, engines: 3, atS: 5, forS: 500}]\n")
    assert hung.summary.succeeded > 0.85 * hung.summary.requests
    assert hung.summary.endpoints["engine-3"] > 0.7 * hung.summary.succeeded


def test_clients_that_ask_again_lose_nothing_before_the_first_byte():
    faults = "faults: [{type: crash, engines: 4, atS: 20, forS: 5}]\n"
    once, patient = result(faults), result(faults + "clients: {retries: 5, backoffS: 1}\n")
    assert "no-endpoint" in once.summary.errors or "engine-failed" in once.summary.errors
    assert set(patient.summary.errors) == {"stream-broken"}


def test_clients_that_give_up_are_counted_as_such():
    hasty = result("clients: {timeoutS: 0.5}\n")
    assert hasty.summary.errors["client-timeout"] == hasty.summary.failed > 0


def test_new_engines_take_their_time_to_start_and_old_ones_finish_what_they_have():
    scaled = result(
        "scaling: [{atS: 10, pool: engine, replicas: 6}, {atS: 25, pool: engine, replicas: 2}]\nfleet: {startS: 5}\n"
    )
    assert scaled.summary.failed == 0
    replicas = {round(look.at_s): look.replicas for look in scaled.looks}
    assert (replicas[9], replicas[14], replicas[16]) == (4, 4, 6)
    assert scaled.looks[-1].replicas == 2


def test_kv_events_and_router_replicas_serve_as_well_as_one_router_that_guesses():
    exact = result("fleet: {kvEvents: true, routers: 3}\n")
    assert exact.summary.failed == 0
    assert exact.summary.hit_rate > result("fleet: {routers: 3}\n").summary.hit_rate - 0.05
    lossy = result("fleet: {kvEvents: true, routers: 3}\nnetwork: {eventLoss: 0.2}\n")
    assert lossy.summary.hit_rate > exact.summary.hit_rate - 0.1


@pytest.mark.parametrize("policy", ["expected-cost", "least-requests", "round-robin"])
def test_the_only_fast_engine_gets_more_from_a_policy_that_looks_at_load(policy):
    slow = result(f"policies: [{policy}]\nfaults: [{{type: slow, engines: 3, atS: 0, forS: 500, factor: 8}}]\n")
    share = slow.summary.endpoints["engine-3"] / slow.summary.requests
    assert share > 0.3 if policy != "round-robin" else share == pytest.approx(0.25, abs=0.02)


def test_memory_beside_the_gpu_and_noise_in_steps_are_simulated_as_the_engine_s_flags_say():
    def with_flags(*flags):
        small = TEXT.replace('"32"', '"32", ' + ", ".join(f'"{flag}"' for flag in ("--blocks", "1200", *flags)))
        scenario = load_yaml(small, Scenario, "s.yaml")
        return run_cell(scenario, cells(scenario)[0], Path())[0].summary

    plain = with_flags()
    assert with_flags("--kv-offloading-size", "8").hit_rate > plain.hit_rate
    noisy = with_flags("--step-noise", "0.2")
    assert noisy.ttft_s != plain.ttft_s
    assert noisy == with_flags("--step-noise", "0.2")


def test_an_unknown_pool_is_named_with_the_nearest():
    scenario = load_yaml(TEXT + "faults: [{type: crash, pool: engin, atS: 1}]\n", Scenario, "s.yaml")
    with pytest.raises(Exception, match=r'faults\[0\].pool: there is no pool "engin"; did you mean "engine"'):
        run_cell(scenario, cells(scenario)[0], Path())
