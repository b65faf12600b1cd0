"""A ModelService to engine processes: argv, environment, port and the endpoint each one serves. Nothing is started here.

Engines bind to 127.0.0.1, since they trust whoever reaches them; clients come in by the gateway. The order of pools and replicas gives
names (`pool-index`), ports and devices, so equal specs give equal plans.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from beaconry.config.gateway import GatewayConfig, Listen
from beaconry.manifests.model_service import ModelService, Pool, SimEngine, Spec, VllmEngine
from beaconry.values.endpoint import Endpoint, EngineType
from beaconry.values.errors import OperatorError

ENGINE_HOST = "127.0.0.1"
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
    """How many processes, so how many ports, `service` takes."""
    return sum(pool.replicas for pool in service.spec.pools)


def plan_processes(service: ModelService, ports: Sequence[int], python: str) -> tuple[EngineProcess, ...]:
    """Return one process per replica, on `ports` in order. `python` runs this package, for simulated engines.

    Raises OperatorError for flags that contradict the plan, and for ports that repeat or are too few.
    """
    if len(ports) < count_engines(service) or len(set(ports)) < len(ports):
        raise OperatorError(
            f"{count_engines(service)} different ports are needed, one per engine; given: {list(ports)}"
        )
    processes: list[EngineProcess] = []
    used_devices: dict[str, int] = {}
    for pool in service.spec.pools:
        engine = pool.engine or service.spec.engine
        _refuse_planned_flags((*engine.args, *pool.args), pool)
        for index in range(pool.replicas):
            devices = _devices(pool, engine, used_devices)
            port = ports[len(processes)]
            endpoint = Endpoint(
                name=f"{pool.name}-{index}",
                host=ENGINE_HOST,
                port=port,
                model=service.spec.model.served_name,
                pool=pool.name,
                role=pool.role,
                engine=EngineType.SIM if isinstance(engine, SimEngine) else EngineType.VLLM,
                variant=pool.name,
            )
            processes.append(
                EngineProcess(
                    name=endpoint.name,
                    argv=_argv(service.spec, pool, port, python),
                    env=_environment(engine, devices) | engine.env | pool.env,
                    host=ENGINE_HOST,
                    port=port,
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
        deadlines=router.deadlines,
        retry=router.retry,
        health=router.health,
        scrape=router.scrape,
        access=router.access,
        policy=router.policy,
    )


def _argv(spec: Spec, pool: Pool, port: int, python: str) -> tuple[str, ...]:
    engine = pool.engine or spec.engine
    address = ("--host", ENGINE_HOST, "--port", str(port))
    if isinstance(engine, SimEngine):
        argv = [python, "-m", "beaconry", "engine", *address, "--model", spec.model.served_name]
        if engine.preset is not None:
            argv += ["--preset", engine.preset]
        argv += ["--speed", f"{engine.speed:g}"]
        if engine.blocks is not None:
            argv += ["--blocks", str(engine.blocks)]
        return (*argv, *engine.args, *pool.args)
    model = (spec.model.path,) if engine.command[-1] == "serve" else ("--model", spec.model.path)
    argv = [*engine.command, *model, *address, "--served-model-name", spec.model.served_name]
    if pool.parallelism.tensor > 1:
        argv += ["--tensor-parallel-size", str(pool.parallelism.tensor)]
    if pool.parallelism.pipeline > 1:
        argv += ["--pipeline-parallel-size", str(pool.parallelism.pipeline)]
    argv.append("--enable-prompt-tokens-details")  # the router learns from usage.prompt_tokens_details.cached_tokens
    return (*argv, *engine.args, *pool.args)


def _environment(engine: SimEngine | VllmEngine, devices: Mapping[str, str]) -> dict[str, str]:
    environment = {"PYTHONUNBUFFERED": "1", **devices}  # the last words of a crash are seen
    if isinstance(engine, VllmEngine):
        # vLLM closes idle connections after 5 s by default, under a request that is just being sent.
        environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "120"
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


def _refuse_planned_flags(args: Sequence[str], pool: Pool) -> None:
    for arg in args:
        flag = arg.partition("=")[0].replace("_", "-")
        if flag in _PLANNED_FLAGS:
            raise OperatorError(f'args of pool "{pool.name}": {arg}: {_PLANNED_FLAGS[flag]}')
