"""What a fleet is tried with, and when trying ends."""

from pathlib import Path

from msgspec import structs

from beaconry.apps.planner import Planner
from beaconry.config.loading import load_yaml
from beaconry.sim.planning import Planning

PLANNING = """\
apiVersion: beaconry/v1alpha1
kind: Planning
metadata: {name: small}
model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct"}
variants:
- {preset: llama-3.1-8b/a100, price: 1.0}
- {preset: llama-3.1-8b/h100x2, price: 3.0}
workloads:
- {type: prompts, arrivals: {rate: 14}, promptTokens: 3000, outputTokens: 20}
slo: {ttftS: 0.25}
durationS: 10
warmupS: 1
seeds: 1
spare: 1
"""


def test_no_further_loss_is_tried_after_one_that_misses_the_targets():
    planning = load_yaml(PLANNING, Planning, "planning")
    alone = structs.replace(planning, spare=0)
    told = []
    slow, fast = (Planner(alone, Path(), told.append)._simulate(counts, 1.0) for counts in ((1, 0), (0, 1)))
    assert slow.worst.attainment < fast.worst.attainment < planning.slo.attainment
    both = Planner(planning, Path(), told.append)._simulate((1, 1), 1.0)
    assert not both.met
    assert (
        both.worst.attainment == fast.worst.attainment
    )  # the first one is lost first; the other loss would show worse
    assert len(told) == 3
