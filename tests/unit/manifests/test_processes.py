"""Plans: the exact argv, environment and endpoint of each engine."""

import json

import pytest

from beaconry.config.gateway import Listen
from beaconry.config.loading import load_yaml
from beaconry.manifests.model_service import ModelService
from beaconry.manifests.processes import EngineProcess, count_ports, plan_gateway, plan_processes
from beaconry.values.endpoint import Endpoint, EngineType, KvEventsAddress, SchedulingPolicy
from beaconry.values.errors import OperatorError
from beaconry.values.kv_events import KvBlocks


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
    return plan_processes(found, range(9000, 9000 + count_ports(found)), "python")


def test_a_simulated_engine_is_this_package_with_the_planned_port():
    (process,) = plan("  engine: {type: sim, preset: p, speed: 2.5, blocks: 64, args: [--seed=1]}\n")
    assert process == EngineProcess(
        name="default-0",
        argv=(
            *("python", "-m", "beaconry", "engine", "--host", "127.0.0.1", "--port", "9000", "--model", "gpt-oss"),
            *(
                "--preset",
                "p",
                "--speed",
                "2.5",
                "--blocks",
                "64",
                "--kv-events-port",
                "9001",
                "--kv-replay-port",
                "9002",
            ),
            *("--kv-events-topic", "kv@default-0@gpt-oss", "--seed=1"),
        ),
        env={"PYTHONUNBUFFERED": "1"},
        host="127.0.0.1",
        port=9000,
        endpoint=Endpoint(
            name="default-0",
            host="127.0.0.1",
            port=9000,
            model="gpt-oss",
            engine=EngineType.SIM,
            variant="default",
            kv_events=KvEventsAddress(endpoint="tcp://127.0.0.1:9001", replay="tcp://127.0.0.1:9002"),
            kv_blocks=KvBlocks(block_tokens=16, algorithm="fast", seed="vllm-none-hash"),
        ),
        ready_within_s=30.0,
    )


def test_a_vllm_engine_reports_cached_tokens_and_keeps_connections():
    (process,) = plan("  engine: {type: vllm, args: [--block-size=128], env: {HF_HUB_OFFLINE: '1'}}\n")
    assert process.argv == (
        *("vllm", "serve", "openai/gpt-oss-120b", "--host", "127.0.0.1", "--port", "9000"),
        *("--served-model-name", "gpt-oss", "--enable-prompt-tokens-details", "--kv-events-config", process.argv[11]),
        "--block-size=128",
    )
    assert process.env == {
        "PYTHONUNBUFFERED": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    assert process.endpoint.engine is EngineType.VLLM


def test_a_vllm_engine_publishes_its_events_on_the_loopback_only():
    (process,) = plan("  engine: {type: vllm, args: [--block-size=128]}\n")
    assert json.loads(process.argv[11]) == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://[::ffff:127.0.0.1]:9001",
        "replay_endpoint": "tcp://127.0.0.1:9002",
        "topic": "kv@default-0@gpt-oss",
    }
    assert process.endpoint.kv_events == KvEventsAddress(endpoint="tcp://127.0.0.1:9001", replay="tcp://127.0.0.1:9002")
    assert process.endpoint.kv_blocks == KvBlocks(block_tokens=128, algorithm="sha256", seed="0")


def test_host_memory_for_blocks_is_given_and_its_events_are_told_in_full():
    (simulated,) = plan("  engine: {type: sim, kvOffloadingGib: 1.5}\n")
    assert simulated.argv[simulated.argv.index("--kv-offloading-size") :][:2] == ("--kv-offloading-size", "1.5")
    (real,) = plan("  engine: {type: vllm, kvOffloadingGib: 64}\n")
    at = real.argv.index("--kv-offloading-size")
    assert real.argv[at : at + 3] == ("--kv-offloading-size", "64", "--kv-transfer-config")
    assert json.loads(real.argv[at + 3]) == {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"self_describing_kv_events": True},
    }


APART = """
  pools:
  - {name: prefill, role: prefill, replicas: 2}
  - {name: decode, role: decode, parallelism: {tensor: 2}}
  - {name: both, env: {UCX_TLS: tcp, VLLM_NIXL_SIDE_CHANNEL_HOST: 127.0.0.2}}
"""


def transfer_config(process):
    return json.loads(process.argv[process.argv.index("--kv-transfer-config") + 1])


def test_vllm_engines_that_prefill_give_kv_and_all_others_take_it():
    processes = plan("  engine: {type: vllm, kvEvents: false}" + APART)
    assert {p.name: transfer_config(p)["kv_role"] for p in processes} == {
        "prefill-0": "kv_producer",
        "prefill-1": "kv_producer",
        "decode-0": "kv_consumer",
        "both-0": "kv_consumer",
    }
    assert transfer_config(processes[0]) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer",
        "kv_load_failure_policy": "fail",
    }
    decode = processes[2]
    assert decode.argv == (
        *("vllm", "serve", "openai/gpt-oss-120b", "--host", "127.0.0.1", "--port", "9002"),
        *("--served-model-name", "gpt-oss", "--tensor-parallel-size", "2", "--enable-prompt-tokens-details"),
        *("--kv-transfer-config", decode.argv[-1]),
    )
    assert decode.env == {
        "PYTHONUNBUFFERED": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        "PYTHONHASHSEED": "0",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": "9006",
    }
    assert [p.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] for p in processes] == ["9004", "9005", "9006", "9007"]
    assert (processes[3].env["VLLM_NIXL_SIDE_CHANNEL_HOST"], processes[3].env["UCX_TLS"]) == ("127.0.0.2", "tcp")


def test_what_an_engine_does_that_cannot_fetch_is_the_specs_to_say():
    processes = plan("  kvTransfer: {connector: nixl, onLoadFailure: recompute}" + APART)
    assert {transfer_config(p)["kv_load_failure_policy"] for p in processes} == {"recompute"}


def test_ports_for_events_and_hand_overs_do_not_meet():
    processes = plan(APART)
    taken = [p.port for p in processes] + [int(p.env["VLLM_NIXL_SIDE_CHANNEL_PORT"]) for p in processes]
    taken += [
        int(address.rpartition(":")[2])
        for p in processes
        for address in (p.endpoint.kv_events.endpoint, p.endpoint.kv_events.replay)
    ]
    assert sorted(taken) == list(range(9000, 9016))


def test_without_a_prefill_pool_nothing_is_handed_over():
    (process,) = plan("  kvTransfer: {connector: nixl}\n  pools: [{role: decode}]\n")
    assert "--kv-transfer-config" not in process.argv
    assert not any("NIXL" in name for name in process.env)


def test_two_connectors_in_one_engine_are_refused():
    with pytest.raises(
        OperatorError, match=r'pool "prefill": kvOffloadingGib beside a pool of role prefill: .*; remove it'
    ):
        plan("  engine: {type: vllm, kvOffloadingGib: 1}" + APART)


@pytest.mark.parametrize(
    ("engine", "blocks"),
    [
        ("{type: vllm}", (0, "sha256", "0")),
        ("{type: vllm, args: [--block_size, '32', --prefix-caching-hash-algo=sha256_cbor]}", (32, "sha256_cbor", "0")),
        ("{type: vllm, args: [--block-size=16, --block-size=64]}", (64, "sha256", "0")),
        ("{type: vllm, env: {PYTHONHASHSEED: '7'}}", (0, "sha256", "7")),
        ("{type: vllm, args: [--block-size, many]}", (0, "sha256", "0")),
        (
            "{type: sim, args: [--block-size, '32', --prefix-caching-hash-algo, sha256]}",
            (32, "sha256", "vllm-none-hash"),
        ),
    ],
)
def test_how_blocks_are_named_follows_from_flags_and_environment(engine, blocks):
    (process,) = plan(f"  engine: {engine}\n")
    told = process.endpoint.kv_blocks
    assert (told.block_tokens, told.algorithm, told.seed) == blocks


@pytest.mark.parametrize(
    "engine",
    [
        "{type: vllm, kvEvents: false, args: [--data-parallel-size=2]}",
        "{type: sim, kvEvents: false}",
        "{type: sim, args: [--no-enable-prefix-caching]}",
        "{type: vllm, args: [--no-enable-prefix-caching]}",
    ],
)
def test_an_engine_that_is_to_tell_nothing_takes_one_port(engine):
    found = service(f"  engine: {engine}\n")
    assert count_ports(found) == 1
    (process,) = plan_processes(found, [9000], "python")
    assert not any("kv-" in arg for arg in process.argv)
    assert (process.endpoint.kv_events, process.endpoint.kv_blocks) == (None, None)


@pytest.mark.parametrize("arg", ["--kv-events-config={}", "--kv_events_config", "--kv-events-port=1", "-dp"])
def test_flags_against_the_planned_events_are_refused(arg):
    with pytest.raises(OperatorError, match=f'args of pool "default": {arg}: .*(remove it|instead)'):
        plan(f"  pools: [{{args: ['{arg}']}}]")


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
    told = [one.endpoint.kv_events.endpoint.rpartition(":")[2] for one in processes]
    assert told == ["9005", "9007", "9009", "9011", "9013"]
    assert [one.endpoint.variant for one in processes] == ["big", "big", "amd", "cpu", "sim"]


def test_a_pool_adds_to_its_engine_and_wins():
    big = plan(POOLS)[0]
    flags = ("--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", "--enable-prompt-tokens-details")
    assert big.argv[-9:-4] == flags
    assert big.argv[-2:] == ("--a", "--b")
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
    with pytest.raises(OperatorError, match="6 different ports are needed"):
        plan_processes(service("  pools: [{replicas: 2}]"), ports, "python")


def test_the_router_section_becomes_the_gateways_configuration():
    router = "  router: {policy: random, retry: {attempts: 1}, offloading: {kvBytesPerToken: 131072}, forecasts: {coverage: 0.8}}"
    config = plan_gateway(service(router), Listen(port=0))
    assert (config.policy, config.retry.attempts, config.listen.port, config.endpoints) == ("random", 1, 0, ())
    assert (config.offloading.kv_bytes_per_token, config.forecasts.coverage) == (131_072, 0.8)


def test_a_service_s_tenants_and_names_reach_its_gateway():
    found = plan_gateway(
        service(
            "  router: {tenants: {file: t.yaml}, models: {a: {targets: [{model: gpt-oss}]}}, trustedHeaders: [slo]}"
        ),
        Listen(),
    )
    assert (found.tenants.file, list(found.models), found.trusted_headers) == ("t.yaml", ["a"], ("slo",))


def kv_roles(processes):
    return [one.argv[one.argv.index("--kv-role") + 1] if "--kv-role" in one.argv else None for one in processes]


def test_simulated_engines_hand_kv_over_if_there_is_a_prefill_pool():
    pools = """  engine: {type: sim}
  pools:
  - {name: p, role: prefill}
  - {name: d, role: decode, replicas: 2}
  - {name: b}
"""
    assert kv_roles(plan(pools)) == ["producer", "consumer", "consumer", "consumer"]
    (*_, last) = plan(pools + "  kvTransfer: {onLoadFailure: recompute}\n")
    assert last.argv[last.argv.index("--kv-load-failure-policy") + 1] == "recompute"
    assert kv_roles(plan(pools.replace("role: prefill", "role: decode"))) == [None, None, None, None]


@pytest.mark.parametrize("engine", ["vllm", "sim"])
@pytest.mark.parametrize(
    ("said", "flags", "policy"),
    [
        ("", (), SchedulingPolicy.FCFS),
        (", schedulingPolicy: priority", ("--scheduling-policy", "priority"), SchedulingPolicy.PRIORITY),
        (", args: [--scheduling-policy=priority]", ("--scheduling-policy=priority",), SchedulingPolicy.PRIORITY),
        (", args: [--scheduling_policy, priority]", ("--scheduling_policy", "priority"), SchedulingPolicy.PRIORITY),
        (
            ", schedulingPolicy: priority, args: [--scheduling-policy, fcfs]",
            ("--scheduling-policy", "priority", "--scheduling-policy", "fcfs"),
            SchedulingPolicy.FCFS,
        ),
    ],
)
def test_the_router_knows_which_engines_serve_by_priority(engine, said, flags, policy):
    (process,) = plan(f"  engine: {{type: {engine}, kvEvents: false{said}}}\n")
    assert process.argv[len(process.argv) - len(flags) :] == flags
    assert process.endpoint.scheduling_policy is policy


def test_a_pool_may_serve_by_priority_alone():
    pools = "[{name: a}, {name: b, args: [--scheduling-policy, priority]}]"
    first, second = plan(f"  engine: {{type: sim}}\n  pools: {pools}\n")
    assert first.endpoint.scheduling_policy is SchedulingPolicy.FCFS
    assert second.endpoint.scheduling_policy is SchedulingPolicy.PRIORITY


def test_an_unknown_order_of_service_is_refused_with_those_that_exist():
    with pytest.raises(OperatorError, match=r'"prio" is no choice; did you mean "priority".*fcfs'):
        service("  engine: {type: vllm, schedulingPolicy: prio}\n")
