"""Roles that leave a request nowhere to go are refused with a remedy, in the gateway's own file as in a spec."""

from pathlib import Path

import pytest

from beaconry.config.disaggregation import Disaggregation
from beaconry.config.gateway import GatewayConfig
from beaconry.config.loading import load_yaml
from beaconry.values.errors import OperatorError

GUIDE = Path(__file__).parents[3] / "docs" / "disaggregation.md"


def test_the_documented_example_loads_and_shows_the_defaults():
    text = GUIDE.read_text().split("```yaml\n")[1].split("```")[0]
    assert load_yaml(text, GatewayConfig, "docs").disaggregation == Disaggregation()


def load(roles: str, mode: str = "auto") -> GatewayConfig:
    endpoints = ", ".join(
        f"{{name: e{i}, host: h, port: {8000 + i}, model: m, role: {role}}}" for i, role in enumerate(roles.split())
    )
    return load_yaml(f"disaggregation: {{mode: {mode}}}\nendpoints: [{endpoints}]", GatewayConfig, "file")


@pytest.mark.parametrize("roles", ["both", "decode", "prefill decode", "prefill both", "both encode"])
def test_roles_that_serve_are_taken(roles: str):
    assert len(load(roles).endpoints) == len(roles.split())


def test_prefill_endpoints_alone_are_refused():
    with pytest.raises(OperatorError, match='model "m" has endpoints of role prefill, and none to answer: add some'):
        load("prefill prefill")


def test_always_without_prefill_endpoints_is_refused():
    with pytest.raises(OperatorError, match="mode is always: add some, or set auto"):
        load("decode", "always")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{mod: auto}", 'did you mean "mode"'),
        ("{mode: sometimes}", "auto, always, never"),
        ("{connector: nixel}", '"nixl"'),
        ("{minUncachedRatio: 70}", "minUncachedRatio"),
        ("{onPrefillFailure: retry}", "aggregate, error"),
    ],
)
def test_typos_are_refused_with_what_there_is(text: str, said: str):
    with pytest.raises(OperatorError, match=said):
        load_yaml(f"disaggregation: {text}", GatewayConfig, "file")
