"""Judging a shortlist costs a large fleet nothing in latency or cache hits, against judging every endpoint."""

from pathlib import Path

import pytest

from beaconry.apps.virtual_fleet import cells, run_cell
from beaconry.config.loading import load_yaml
from beaconry.sim.scenario import Scenario

TEXT = """\
apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {{name: large}}
service:
  model: {{uri: "hf://meta-llama/Llama-3.1-8B-Instruct"}}
  engine: {{type: sim, preset: llama-3.1-8b/h100, blocks: 6000}}
  pools: [{{name: engine, replicas: {engines}}}]
  router: {{shortlistAbove: {above}}}
workloads:
- {{type: sessions, arrivals: {{rate: {rate}}}, turns: 3, thinkS: 2, promptTokens: [100, 3000], outputTokens: [50, 150],
    groups: {engines}, prefixTokens: [2000, 12000], zipf: 0.7, requests: {sessions}}}
"""


@pytest.mark.parametrize(("engines", "sessions"), [(64, 400), (512, 250)])
def test_a_shortlist_is_as_good_as_judging_the_whole_fleet(engines, sessions):
    few, every = (
        run_cell(scenario, cells(scenario)[0], Path())[0].summary
        for above in (16, 100_000)
        for scenario in [
            load_yaml(TEXT.format(engines=engines, above=above, rate=engines, sessions=sessions), Scenario, "s")
        ]
    )
    assert few.failed == every.failed == 0
    assert few.hit_rate > every.hit_rate - 0.02
    assert few.e2e_s.mean < 1.05 * every.e2e_s.mean
    assert few.ttft_s.p90 < 1.15 * every.ttft_s.p90
