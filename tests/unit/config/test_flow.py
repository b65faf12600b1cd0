"""The section `flow`: the documented example loads, and what contradicts itself is refused with its place."""

from pathlib import Path

import pytest

from beaconry.config.gateway import GatewayConfig
from beaconry.config.loading import load_yaml
from beaconry.values.errors import OperatorError

GUIDE = Path(__file__).parents[3] / "docs" / "flow-control.md"


def test_the_documented_example_loads():
    text = GUIDE.read_text().split("```yaml\n")[1].split("```")[0]
    flow = load_yaml(text, GatewayConfig, "docs").flow
    assert [band.priority for band in flow.bands] == [10, 0, -10]
    assert (flow.bands[0].ordering, flow.bands[2].fairness, flow.ttl_s) == ("slo", "requests", 30.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flow: {bands: [{name: a, priority: 1}, {name: b, priority: 1}]}", "priority 1"),
        ("flow: {bands: [{name: a, priority: 1}, {name: a, priority: 2}]}", "name 'a'"),
        ("flow: {bands: [{name: a, priority: 1, fairness: token}]}", "tokens"),
        ("flow: {engineWaitS: 0}", "engineWaitS"),
        ("flow: {bands: [{name: a, priority: 1, ceiling: 1.5}]}", "ceiling"),
        ("flow: {bands: [{name: a, priority: 3000000000}]}", "priority"),
        ("flow: {bandz: []}", "bands"),
    ],
)
def test_contradictions_are_refused(text: str, said: str):
    with pytest.raises(OperatorError, match=said):
        load_yaml(text, GatewayConfig, "file")
