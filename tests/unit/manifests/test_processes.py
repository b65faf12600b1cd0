"""Plans: the exact argv, environment and endpoint of each engine."""

import pytest

from beaconry.config.gateway import Listen
from beaconry.config.loading import load_yaml
from beaconry.manifests.model_service import ModelService
from beaconry.manifests.processes import EngineProcess, count_engines, plan_gateway, plan_processes
from beaconry.values.endpoint import Endpoint, EngineType
from beaconry.values.errors import OperatorError


def service(spec, model='{uri: "hf://openai/gpt-oss-120b", name: gpt-oss}'):
    text = f"""
apiVersion: beaconry/v1alpha1
kind: ModelService
metadata: {{name: demo}}
spec:
  model: {model}
{spec}"""
    return load_yaml(text, ModelService, "fleet.yaml")


def plan(spec, **more):
    found = service(spec, **more)
    return plan_processes(found, range(9000, 9000 + count_engines(found)), "python")


def test_a_simulated_engine_is_this_package_with_the_planned_port():
    (process,) = plan("  engine: {type: sim, preset: p, speed: 2.5, blocks: 64, args: [--seed=1]}\n")
    assert process == EngineProcess(
        name="default-0",
        argv=(
            *("python", "-m", "beaconry", "engine", "--host", "127.0.0.1", "--port", "9000", "--model", "gpt-oss"),
            *("--preset", "p", "--speed", "2.5", "--blocks", "64", "--seed=1"),
        ),
        env={"PYTHONUNBUFFERED": "1"},
        host="127.0.0.1",
        port=9000,
        endpoint=Endpoint(
            name="default-0", host="127.0.0.1", port=9000, model="gpt-oss", engine=EngineType.SIM, variant="default"
        ),
        ready_within_s=30.0,
    )


def test_a_vllm_engine_reports_cached_tokens_and_keeps_connections():
    (process,) = plan("  engine: {type: vllm, args: [--block-size=128], env: {HF_HUB_OFFLINE: '1'}}\n")
    assert process.argv == (
        *("vllm", "serve", "openai/gpt-oss-120b", "--host", "127.0.0.1", "--port", "9000"),
        *("--served-model-name", "gpt-oss", "--enable-prompt-tokens-details", "--block-size=128"),
    )
    assert process.env == {"PYTHONUNBUFFERED": "1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120", "HF_HUB_OFFLINE": "1"}
    assert process.endpoint.engine is EngineType.VLLM


def test_a_command_that_is_no_serve_gets_the_model_as_a_flag():
    (process,) = plan("  engine: {type: vllm, command: [py, -m, vllm.entrypoints.openai.api_server]}\n")
    assert process.argv[:5] == ("py", "-m", "vllm.entrypoints.openai.api_server", "--model", "openai/gpt-oss-120b")


def test_a_model_directory_is_passed_as_a_path():
    (process,) = plan("", model='{uri: "file:///srv/tiny"}')
    assert process.argv[2] == "/srv/tiny"
    assert process.endpoint.model == "tiny"


POOLS = """
  engine: {type: vllm, args: [--a], env: {X: engine, Y: engine}}
  pools:
  - {name: big, replicas: 2, parallelism: {tensor: 2, pipeline: 2}, accelerator: {type: nvidia-h200}, args: [--b], env: {X: pool}}
  - {name: idle, replicas: 0}
  - {name: amd, accelerator: {type: amd-mi300x}}
  - {name: cpu, accelerator: {type: cpu}}
  - {name: sim, engine: {type: sim}, accelerator: {type: nvidia-h100}}
"""


def test_pools_are_named_and_numbered_in_the_order_of_the_file():
    processes = plan(POOLS)
    assert [(one.name, one.port) for one in processes] == [
        ("big-0", 9000),
        ("big-1", 9001),
        ("amd-0", 9002),
        ("cpu-0", 9003),
        ("sim-0", 9004),
    ]
    assert [one.endpoint.variant for one in processes] == ["big", "big", "amd", "cpu", "sim"]


def test_a_pool_adds_to_its_engine_and_wins():
    big = plan(POOLS)[0]
    assert big.argv[-7:] == (
        *("--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", "--enable-prompt-tokens-details"),
        *("--a", "--b"),
    )
    assert (big.env["X"], big.env["Y"]) == ("pool", "engine")


def test_each_engine_gets_accelerators_of_its_own_where_the_pool_names_them():
    devices = [{k: v for k, v in one.env.items() if k.endswith("_DEVICES")} for one in plan(POOLS)]
    assert devices == [
        {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
        {"CUDA_VISIBLE_DEVICES": "4,5,6,7"},
        {"HIP_VISIBLE_DEVICES": "0"},
        {},
        {},
    ]


def test_equal_specs_give_equal_plans():
    assert plan(POOLS) == plan(POOLS)


@pytest.mark.parametrize("arg", ["--port=1", "--host", "--served_model_name=x", "--api-key=x"])
def test_flags_that_the_plan_decides_are_refused(arg):
    with pytest.raises(OperatorError, match=f'args of pool "default": {arg}: .*(remove it|instead)'):
        plan(f"  pools: [{{args: ['{arg}']}}]")


@pytest.mark.parametrize("ports", [[9000], [9000, 9000]])
def test_ports_must_suffice_and_differ(ports):
    with pytest.raises(OperatorError, match="2 different ports are needed"):
        plan_processes(service("  pools: [{replicas: 2}]"), ports, "python")


def test_the_router_section_becomes_the_gateways_configuration():
    config = plan_gateway(service("  router: {policy: random, retry: {attempts: 1}}"), Listen(port=0))
    assert (config.policy, config.retry.attempts, config.listen.port, config.endpoints) == ("random", 1, 0, ())
