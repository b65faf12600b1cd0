"""Scenario files: what is refused, and how."""

import pytest

from beaconry.config.loading import load_yaml
from beaconry.sim.scenario import Scenario
from beaconry.values.errors import OperatorError

TEXT = """\
apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {name: small}
service:
  model: {uri: "hv"}
  engine: {type: sim}
workloads:
- {type: prompts, arrivals: {rate: 2}, requests: 10}
""".replace('"hv"', '"hf://a/b"')


def load(text=TEXT):
    return load_yaml(text, Scenario, "s.yaml")


def test_a_short_scenario_loads_with_defaults():
    scenario = load()
    assert scenario.loads == (1.0,)
    assert scenario.workloads[0].requests == 10


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("requests: 10", "request: 10"), 's.yaml:8: workloads[0].request: unknown key; did you mean "requests"?'),
        (("type: prompts", "type: prompt"), 'workloads[0].type: "prompt" is no choice; did you mean "prompts"?'),
        (("rate: 2", "rate: 0"), "workloads[0].arrivals.rate"),
        ((", requests: 10", ""), "workloads[0] never ends; give it requests, or give durationS"),
        (("requests: 10", "requests: 10, promptTokens: [9, 2]"), "promptTokens: 9 is above 2; write [lowest, highest]"),
        (("requests: 10", "requests: 10, promptTokens: many"), "a whole number above 0, or [lowest, highest], found"),
        (("engine: {type: sim}", "engine: {type: sim, spede: 3}"), 'did you mean "speed"?'),
        (("metadata:", "policies: [a, a]\nmetadata:"), "policies: each is compared once; remove the repetition"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(change, error):
    with pytest.raises(OperatorError) as caught:
        load(TEXT.replace(*change))
    assert error in str(caught.value)
