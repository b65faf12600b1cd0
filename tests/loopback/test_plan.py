"""`beaconry plan` as a user runs it, on traffic small enough to be planned for in a second."""

from pathlib import Path

import msgspec
import pytest

from beaconry.cli import main
from beaconry.config.loading import load_yaml
from beaconry.manifests.model_service import ModelService
from beaconry.values.endpoint import Role

PLANNING = """\
apiVersion: beaconry/v1alpha1
kind: Planning
metadata: {name: small}
model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct"}
variants:
- {preset: llama-3.1-8b/h100, price: 3.0}
- {preset: llama-3.1-8b/h100x2, price: 3.0, accelerator: nvidia-h100-80gb}
workloads:
- {type: prompts, arrivals: {rate: 20}, promptTokens: 3000, outputTokens: 20}
slo: {ttftS: 0.5, itlS: 0.05}
durationS: 20
warmupS: 2
seeds: 1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "planning.yaml"
    path.write_text(text)
    return path


def test_the_plan_is_the_cheapest_that_was_seen_to_meet_its_targets_and_its_spec_can_be_deployed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    json, spec = tmp_path / "plan.json", tmp_path / "spec.yaml"
    path = write(tmp_path, PLANNING)
    assert main(["plan", str(path), "--json", str(json), "--out", str(spec)]) == 0
    outcome = msgspec.json.decode(json.read_bytes())
    plan = outcome["plan"]
    assert plan["met"]
    assert plan["worst"]["attainment"] >= 0.95
    assert all(one["price"] >= plan["price"] for one in outcome["runners_up"] if one["met"])
    assert any(one["price"] < plan["price"] for one in outcome["runners_up"])
    assert 1.0 <= outcome["margin"] < outcome["breaking"]["load"]
    service = load_yaml(spec.read_text(), ModelService, str(spec))
    assert sum(pool.replicas for pool in service.spec.pools) == sum(plan["counts"])
    printed = capsys.readouterr().out
    assert "Plan:" in printed
    assert spec.read_text() in printed


def test_targets_that_nothing_meets_are_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path, PLANNING.replace("itlS: 0.05", "itlS: 0.001"))
    assert main(["plan", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "too slow for the target between tokens" in printed
    assert "No fleet meets the targets" in printed


LONG_PROMPTS = """\
apiVersion: beaconry/v1alpha1
kind: Planning
metadata: {name: small}
model: {uri: "hf://openai/gpt-oss-120b"}
variants:
- {preset: gpt-oss-120b/h200, price: 4.0, most: 8}
- {preset: gpt-oss-120b/h200x2, price: 4.0, most: 4}
workloads:
- {type: prompts, arrivals: {rate: 6}, promptTokens: 6000, outputTokens: 200}
slo: {ttftS: 2, itlS: 0.008}
mix: false
prefillDecode: true
durationS: 25
warmupS: 3
seeds: 1
"""


def test_prefill_and_decode_are_planned_apart_where_even_tokens_come_cheaper_so(tmp_path: Path):
    json, spec = tmp_path / "plan.json", tmp_path / "spec.yaml"
    path = write(tmp_path, LONG_PROMPTS)
    assert main(["plan", str(path), "--json", str(json), "--out", str(spec)]) == 0
    service = load_yaml(spec.read_text(), ModelService, str(spec))
    assert {pool.role for pool in service.spec.pools} == {Role.PREFILL, Role.DECODE}
    outcome = msgspec.json.decode(json.read_bytes())
    whole = [one for one in outcome["runners_up"] if one["met"] and not any(one["counts"][2:])]
    assert whole
    assert all(one["price"] > outcome["plan"]["price"] for one in whole)


def test_engines_for_all_are_planned_where_apart_is_no_cheaper(tmp_path: Path):
    spec = tmp_path / "spec.yaml"
    path = write(tmp_path, LONG_PROMPTS.replace("itlS: 0.008", "itlS: 0.03"))
    assert main(["plan", str(path), "--out", str(spec)]) == 0
    assert [pool.role for pool in load_yaml(spec.read_text(), ModelService, str(spec)).spec.pools] == [Role.BOTH]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("slo: {ttftS: 0.5, itlS: 0.05}", "slo: {}", "give ttftS or itlS"),
        ("preset: llama-3.1-8b/h100,", "preset: llama-9/h100,", "no variant"),
        ("preset: llama-3.1-8b/h100x2", "preset: llama-3.1-8b/h100", "remove the repetition"),
        ("metadata: {name: small}", "metadta: {name: small}", "metadata"),
    ],
)
def test_a_faulty_planning_is_refused_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
):
    assert main(["plan", str(write(tmp_path, PLANNING.replace(old, new)))]) == 2
    assert said in capsys.readouterr().err
