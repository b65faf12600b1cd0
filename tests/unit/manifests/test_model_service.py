"""The ModelService spec: the smallest file, defaults, and what is refused."""

import pytest

from beaconry.config.loading import load_yaml
from beaconry.manifests.model_service import ModelService, SimEngine, VllmEngine
from beaconry.values.errors import OperatorError

MINIMAL = """apiVersion: beaconry/v1alpha1
kind: ModelService
metadata: {name: demo}
spec:
  model: {uri: "hf://Qwen/Qwen3-0.6B"}
"""


def service(spec=""):
    return load_yaml(MINIMAL + spec, ModelService, "fleet.yaml")


def test_five_lines_are_one_vllm_engine_of_a_model():
    found = service()
    assert found.spec.model.served_name == "Qwen/Qwen3-0.6B"
    assert found.spec.engine == VllmEngine()
    assert [(pool.name, pool.replicas) for pool in found.spec.pools] == [("default", 1)]
    assert found.spec.router.policy == "expected-cost"


@pytest.mark.parametrize(
    ("model", "path", "name"),
    [
        ('{uri: "hf://openai/gpt-oss-120b"}', "openai/gpt-oss-120b", "openai/gpt-oss-120b"),
        ('{uri: "hf://openai/gpt-oss-120b", name: gpt-oss}', "openai/gpt-oss-120b", "gpt-oss"),
        ('{uri: "file:///srv/models/tiny/"}', "/srv/models/tiny/", "tiny"),
    ],
)
def test_a_model_is_called_by_its_name_or_by_its_uri(model, path, name):
    text = MINIMAL.replace('{uri: "hf://Qwen/Qwen3-0.6B"}', model)
    found = load_yaml(text, ModelService, "f").spec.model
    assert (found.path, found.served_name) == (path, name)


def test_engine_types_have_fields_of_their_own():
    assert service("  engine: {type: sim, speed: 10, blocks: 100}\n").spec.engine == SimEngine(speed=10.0, blocks=100)
    with pytest.raises(OperatorError, match=r"fleet.yaml:6: spec.engine.speed: unknown key"):
        service("  engine: {type: vllm, speed: 10}\n")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("  pools: [{replicsa: 2}]", 'spec.pools[0].replicsa: unknown key; did you mean "replicas"?'),
        ("  pools: [{replicas: -1}]", "spec.pools[0].replicas: expected a whole number >= 0, found -1"),
        ("  pools: [{replicas: 5000}]", "spec.pools[0].replicas: expected a whole number <= 1024, found 5000"),
        ("  pools: [{replicas: 0}]", "spec: all pools have 0 replicas: nothing would serve; set replicas of one"),
        ("  pools: []", "spec.pools: expected a list of length >= 1"),
        ("  pools: [{name: a}, {name: a}]", 'spec: 2 pools are called "a"; names must differ'),
        (
            "  pools: [{name: A_1}]",
            'spec.pools[0].name: expected a name of a-z, 0-9 and inner "-", at most 40, found "A_1"',
        ),
        (
            "  pools: [{name: a-}]",
            'spec.pools[0].name: expected a name of a-z, 0-9 and inner "-", at most 40, found "a-"',
        ),
        ("  pools: [{role: prefil}]", 'spec.pools[0].role: "prefil" is no choice; did you mean "prefill"?'),
        ("  pools: [{role: encode}]", 'spec.pools[0]: role "encode" is understood, but not acted on in this version'),
        ("  pools: [{role: prefill}]", "spec: the pools have endpoints of role prefill, and none to answer: add some"),
        (
            "  router: {disaggregation: {mode: always}}",
            "spec: the pools have no endpoints of role prefill, but disaggregation.mode is always: add some",
        ),
        (
            "  router: {disaggregation: {minUncachedToken: 1}}",
            'spec.router.disaggregation.minUncachedToken: unknown key; did you mean "minUncachedTokens"?',
        ),
        (
            "  pools: [{scaling: {minReplicas: 1}}]",
            "spec.pools[0].scaling: understood, but not acted on in this version",
        ),
        (
            "  slo: {ttft: 2s}",
            "spec.slo: understood, but not acted on in this version: set router.models.NAME.defaults",
        ),
        ("  kvTransfer: {connector: nixel}", 'spec.kvTransfer.connector: "nixel" is no choice; did you mean "nixl"?'),
        ("  kvTransfer: {network: x}", "spec.kvTransfer.network: understood, but not acted on in this version"),
        ("  engine: {type: vllm, image: x}", "spec.engine.image: understood, but not acted on in this version"),
        ("  engine: {type: sim, speed: 0}", "spec.engine.speed: expected a number > 0.0, found 0"),
        ("  engine: {}", 'spec.engine: "type" is missing; add one of sim, vllm'),
        ("  router: {polcy: random}", 'spec.router.polcy: unknown key; did you mean "policy"?'),
        ("  router: {retry: {attempts: x}}", 'spec.router.retry.attempts: expected a whole number, found "x"'),
    ],
)
def test_a_fault_in_a_spec_is_refused(spec, message):
    with pytest.raises(OperatorError) as refusal:
        service(spec)
    assert str(refusal.value).partition(": ")[2].startswith(message)


@pytest.mark.parametrize("uri", ["Qwen/Qwen3-0.6B", "hf://Qwen", "file://relative", "https://x/y"])
def test_a_uri_says_where_the_model_is(uri):
    with pytest.raises(OperatorError, match='expected "hf://organisation/model" or "file:///directory"'):
        load_yaml(MINIMAL.replace("hf://Qwen/Qwen3-0.6B", uri), ModelService, "f")
