"""A ModelService to engine processes: argv, environment, port and the endpoint each one serves. Nothing is started here.

Engines bind to 127.0.0.1, since they trust whoever reaches them; clients come in by the gateway. The order of pools and replicas gives
names (`pool-index`), ports and devices, so equal specs give equal plans.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from beaconry.config.gateway import GatewayConfig, Listen
from beaconry.manifests.kv_events import (
    HOST,
    REFUSED_FLAGS,
    EventPorts,
    event_flags,
    kv_blocks,
    offloading_flags,
    tells,
)
from beaconry.manifests.kv_transfer import (
    simulated_transfer_flags,
    takes_side_channel,
    transfer_environment,
    transfer_flags,
)
from beaconry.manifests.model_service import ModelService, Pool, SimEngine, Spec, VllmEngine
from beaconry.manifests.scheduling import scheduling_flags, scheduling_policy
from beaconry.values.endpoint import Endpoint, EngineType
from beaconry.values.errors import OperatorError

ENGINE_HOST = HOST
_PLANNED_FLAGS = {
    "--host": "engines are reached through the gateway; remove it",
    "--port": "ports are chosen when the fleet starts; remove it",
    "--uds": "the gateway reaches engines by TCP; remove it",
    "--model": "set model.uri instead",
    "--served-model-name": "set model.name instead",
    "--api-key": "the gateway could not reach the engine; remove it, the engine listens on loopback only",
}
_DEVICE_VARIABLES = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "HIP_VISIBLE_DEVICES"}


class EngineProcess(Struct, frozen=True, kw_only=True):
    """One process to start, and where it serves."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    """On top of the environment of the process that starts it."""
    host: str
    port: int
    endpoint: Endpoint
    ready_within_s: float
    """It answers /health with 200 by then, or it counts as failed."""


def count_engines(service: ModelService) -> int:
    """How many processes `service` takes."""
    return sum(pool.replicas for pool in service.spec.pools)


def count_ports(service: ModelService) -> int:
    """How many ports `service` takes: one per engine, two more for each that publishes KV events, one more for each that hands KV over."""
    spec = service.spec
    handing = sum(pool.replicas for pool in spec.pools if takes_side_channel(spec, _engine(spec, pool)[0]))
    return count_engines(service) + 2 * _count_telling(spec) + handing


def plan_processes(service: ModelService, ports: Sequence[int], python: str) -> tuple[EngineProcess, ...]:
    """Return one process per replica. `python` runs this package, for simulated engines.

    `ports` are used in order: one for each engine to serve at, then two for the KV events of each that publishes them, then one for
    each that hands KV over.
    Raises OperatorError for flags that contradict the plan, and for ports that repeat or are too few.
    """
    if len(ports) < count_ports(service) or len(set(ports)) < len(ports):
        raise OperatorError(f"{count_ports(service)} different ports are needed; given: {list(ports)}")
    spec = service.spec
    serving, telling = iter(ports), iter(ports[count_engines(service) :])
    handing = iter(ports[count_engines(service) + 2 * _count_telling(spec) :])
    processes: list[EngineProcess] = []
    used_devices: dict[str, int] = {}
    for pool in spec.pools:
        engine, args = _engine(spec, pool)
        _refuse_contradictions(spec, pool)
        for index in range(pool.replicas):
            environment = _environment(engine, _devices(pool, engine, used_devices))
            if takes_side_channel(spec, engine):
                environment |= transfer_environment(next(handing))
            environment |= engine.env | pool.env
            events = EventPorts(live=next(telling), replay=next(telling)) if tells(engine, args) else None
            endpoint = Endpoint(
                name=f"{pool.name}-{index}",
                host=ENGINE_HOST,
                port=next(serving),
                model=spec.model.served_name,
                pool=pool.name,
                role=pool.role,
                engine=EngineType.SIM if isinstance(engine, SimEngine) else EngineType.VLLM,
                variant=pool.name,
                scheduling_policy=scheduling_policy(engine, args),
                kv_events=None if events is None else events.address,
                kv_blocks=None if events is None else kv_blocks(engine, args, environment),
            )
            processes.append(
                EngineProcess(
                    name=endpoint.name,
                    argv=_argv(spec, pool, endpoint, events, python),
                    env=environment,
                    host=ENGINE_HOST,
                    port=endpoint.port,
                    endpoint=endpoint,
                    ready_within_s=engine.ready_within_s,
                )
            )
    return tuple(processes)


def plan_gateway(service: ModelService, listen: Listen) -> GatewayConfig:
    """Return the configuration of the gateway in front; endpoints are told to it as they come up."""
    router = service.spec.router
    return GatewayConfig(
        listen=listen,
        limits=router.limits,
        offloading=router.offloading,
        forecasts=router.forecasts,
        deadlines=router.deadlines,
        retry=router.retry,
        health=router.health,
        scrape=router.scrape,
        shortlist_above=router.shortlist_above,
        access=router.access,
        flow=router.flow,
        disaggregation=structs.replace(router.disaggregation, connector=service.spec.kv_transfer.connector),
        policy=router.policy,
        profile=router.profile,
        tenants=router.tenants,
        trusted_headers=router.trusted_headers,
        objectives=router.objectives,
        models=router.models,
    )


def _engine(spec: Spec, pool: Pool) -> tuple[SimEngine | VllmEngine, tuple[str, ...]]:
    """A pool's engine, and the operator's arguments to it."""
    engine = pool.engine or spec.engine
    return engine, (*engine.args, *pool.args)


def _count_telling(spec: Spec) -> int:
    return sum(pool.replicas for pool in spec.pools if tells(*_engine(spec, pool)))


def _argv(spec: Spec, pool: Pool, endpoint: Endpoint, events: EventPorts | None, python: str) -> tuple[str, ...]:
    engine, args = _engine(spec, pool)
    address = ("--host", endpoint.host, "--port", str(endpoint.port))
    if isinstance(engine, SimEngine):
        argv = [python, "-m", "beaconry", "engine", *address, "--model", endpoint.model]
        if engine.preset is not None:
            argv += ["--preset", engine.preset]
        argv += ["--speed", f"{engine.speed:g}"]
        if engine.blocks is not None:
            argv += ["--blocks", str(engine.blocks)]
        argv += simulated_transfer_flags(spec, pool.role)
    else:
        model = (spec.model.path,) if engine.command[-1] == "serve" else ("--model", spec.model.path)
        argv = [*engine.command, *model, *address, "--served-model-name", endpoint.model]
        if pool.parallelism.tensor > 1:
            argv += ["--tensor-parallel-size", str(pool.parallelism.tensor)]
        if pool.parallelism.pipeline > 1:
            argv += ["--pipeline-parallel-size", str(pool.parallelism.pipeline)]
        argv.append(
            "--enable-prompt-tokens-details"
        )  # the router learns from usage.prompt_tokens_details.cached_tokens
    if takes_side_channel(spec, engine):
        argv += transfer_flags(spec, pool.role)
    if engine.kv_offloading_gib is not None:
        argv += offloading_flags(engine, engine.kv_offloading_gib)
    if events is not None:
        argv += event_flags(engine, f"kv@{endpoint.name}@{endpoint.model}", events)
    return (*argv, *scheduling_flags(engine), *args)


def _environment(engine: SimEngine | VllmEngine, devices: Mapping[str, str]) -> dict[str, str]:
    environment = {"PYTHONUNBUFFERED": "1", **devices}  # the last words of a crash are seen
    if isinstance(engine, VllmEngine):
        # vLLM closes idle connections after 5 s by default, under a request that is just being sent.
        environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "120"
        # It seeds the names of KV blocks; older versions, and the hashes named xxhash, take a random one without it.
        environment["PYTHONHASHSEED"] = "0"
    return environment


def _devices(pool: Pool, engine: SimEngine | VllmEngine, used: dict[str, int]) -> dict[str, str]:
    """Devices of one engine, as environment. Takes them from `used`: how many are taken, by variable."""
    vendor = pool.accelerator.type.partition("-")[0] if pool.accelerator else ""
    if vendor not in _DEVICE_VARIABLES or isinstance(engine, SimEngine):
        return {}
    variable = _DEVICE_VARIABLES[vendor]
    first = used.get(variable, 0)
    used[variable] = first + pool.parallelism.tensor * pool.parallelism.pipeline
    return {variable: ",".join(str(device) for device in range(first, used[variable]))}


def _refuse_contradictions(spec: Spec, pool: Pool) -> None:
    """Raise OperatorError for what would undo the plan."""
    engine, args = _engine(spec, pool)
    _refuse_planned_flags(args, pool, _PLANNED_FLAGS)
    if tells(engine, args):
        _refuse_planned_flags(args, pool, REFUSED_FLAGS)
    if takes_side_channel(spec, engine) and engine.kv_offloading_gib is not None:
        raise OperatorError(
            f'pool "{pool.name}": kvOffloadingGib beside a pool of role prefill: one connector would take the place of the other; '
            "remove it, or pass a MultiConnector as --kv-transfer-config in each pool's args"
        )


def _refuse_planned_flags(args: Sequence[str], pool: Pool, planned: Mapping[str, str]) -> None:
    for arg in args:
        flag = arg.partition("=")[0].replace("_", "-")
        if flag in planned:
            raise OperatorError(f'args of pool "{pool.name}": {arg}: {planned[flag]}')
