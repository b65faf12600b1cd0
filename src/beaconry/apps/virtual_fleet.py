"""One run of a scenario put together: engines by their presets, routers by the gateway's own root, the plan, and the virtual fleet."""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import msgspec
from msgspec import Struct

from beaconry.apps import engine as engine_verb
from beaconry.apps.assemble import GC_THRESHOLDS, make_router
from beaconry.config.gateway import Listen
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.kv_link import KvWay
from beaconry.engine_model.offload_tier import OffloadTier
from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine.options import EngineOptions
from beaconry.io.preset_file import read_preset
from beaconry.manifests.model_service import Metadata, ModelService, Pool, SimEngine, Spec
from beaconry.manifests.processes import count_ports, plan_gateway, plan_processes
from beaconry.manifests.scheduling import scheduling_flags
from beaconry.sim.fleet import Explained, Fleet
from beaconry.sim.host import MANY_STEPS
from beaconry.sim.recorder import Recorder
from beaconry.sim.report import Cell, CellResult
from beaconry.sim.scenario import Scenario
from beaconry.sim.setting import conditions_of, most_replicas
from beaconry.sim.workloads import openings
from beaconry.values.endpoint import Endpoint, Role
from beaconry.values.errors import OperatorError
from beaconry.workload.plan import Plan
from beaconry.workload.sample import Slo
from beaconry.workload.summary import summarise
from beaconry.workload.traces import TraceRow, read_trace

SKIPPED_ARGV = 4
"""`python -m beaconry engine` before an engine's own flags."""


def cells(scenario: Scenario) -> list[Cell]:
    """All combinations: loads outermost, then policies, then seeds."""
    policies = scenario.policies or (scenario.service.router.policy,)
    return [
        Cell(policy=policy, load=load, seed=seed)
        for load in scenario.loads
        for policy in policies
        for seed in range(1, scenario.seeds + 1)
    ]


def run_cell(
    scenario: Scenario,
    cell: Cell,
    folder: Path,
    *,
    explain: int = -1,
    steps_at_once: int = MANY_STEPS,
    progress: Callable[[float, int], None] | None = None,
) -> tuple[CellResult, list[Explained]]:
    """Simulate one cell. `folder` is where trace files are looked for. OperatorError for what cannot be simulated.

    `explain`: index of a request whose placements are returned; `steps_at_once`: 1 simulates every engine step by itself.
    """
    began_s = time.process_time()
    machines = make_machines(scenario, cell.seed)
    endpoints = machines.endpoints
    service = _service(scenario, scenario.service)
    config = msgspec.structs.replace(plan_gateway(service, Listen()), policy=cell.policy, profile=None)
    routers = [
        make_router(msgspec.structs.replace(config, seed=1000 * cell.seed + number))
        for number in range(scenario.fleet.routers)
    ]
    conditions = msgspec.structs.replace(
        conditions_of(scenario, endpoints),
        request_s=machines.request_s,
        kv_ways=machines.kv_ways,
        steps_at_once=steps_at_once,
    )
    fleet = Fleet(routers, machines.engines, endpoints, conditions=conditions, seed=cell.seed)
    recorder = Recorder()
    plan = Plan(openings(scenario.workloads, cell.load, cell.seed, TraceFiles(folder)), until_s=scenario.duration_s)
    until_s = float("inf") if scenario.duration_s is None else scenario.duration_s + scenario.settle_s
    with _few_collections():
        samples = fleet.run(plan, until_s=until_s, recorder=recorder, explain=explain, progress=progress)
    result = CellResult(
        cell=cell,
        summary=summarise(samples, slo=slo_of(scenario), warmup_s=scenario.warmup_s),
        looks=tuple(recorder.looks),
        virtual_s=fleet.now_s,
        cpu_s=time.process_time() - began_s,
        events=fleet.events,
    )
    return result, fleet.explained


@contextmanager
def _few_collections() -> Iterator[None]:
    """Collect cycles as rarely as the gateway does: there are few, and looking for them takes a seventh of the time."""
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def slo_of(scenario: Scenario) -> Slo | None:
    """The targets that goodput counts by; None without any."""
    if scenario.slo.ttft_s is None and scenario.slo.itl_s is None:
        return None
    return Slo(ttft_s=scenario.slo.ttft_s, itl_s=scenario.slo.itl_s)


class Machines(Struct, frozen=True, kw_only=True):
    """All that a scenario ever has, by name of the endpoint."""

    endpoints: dict[str, Endpoint]
    engines: dict[str, Engine]
    request_s: dict[str, float]
    """From a request's arrival at its engine to the engine's queue."""
    kv_ways: dict[str, KvWay]
    """How KV goes between its engine and others; of none unless some engine hands prompts over."""


def make_machines(scenario: Scenario, seed: int = 0) -> Machines:
    """Endpoints and engines, those included that are started later; `seed` is of the noise in their steps.

    OperatorError for engines without a preset.
    """
    most = most_replicas(scenario)
    pools = tuple(msgspec.structs.replace(pool, replicas=most[pool.name]) for pool in scenario.service.pools)
    service = _service(scenario, msgspec.structs.replace(scenario.service, pools=pools))
    ports = range(1, 1 + count_ports(service))
    by_pool = {pool.name: pool for pool in pools}
    machines = Machines(endpoints={}, engines={}, request_s={}, kv_ways={})
    every_options: dict[str, EngineOptions] = {}
    ways: dict[str, KvWay] = {}
    for process in plan_processes(service, ports, "python"):
        pool = by_pool[process.endpoint.pool]
        options = every_options.get(pool.name)
        if options is None:  # a pool's engines differ in their ports only
            arguments = _arguments(scenario, pool, process.argv)
            if any(one.role is Role.PREFILL for one in pools):
                ways[pool.name] = _kv_way(scenario, pool, arguments)
            options = every_options[pool.name] = engine_verb.options_of(arguments)
        settings = _with_blocks(options.settings, scenario.fleet.block_tokens)
        engine = Engine(
            settings,
            options.step_time,
            rng=Random(f"{seed} {process.name}"),
            record_events=scenario.fleet.kv_events,
            tiers=_tiers(options, settings.block_tokens),
        )
        machines.endpoints[process.name] = process.endpoint
        machines.engines[process.name] = engine
        machines.request_s[process.name] = options.request_s
        if pool.name in ways:
            machines.kv_ways[process.name] = ways[pool.name]
    return machines


class TraceFiles:
    """Reads the trace files that a scenario names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, file: str, block_tokens: int, model: str | None = None) -> Iterator[TraceRow]:
        """Rows of a file. OperatorError if it cannot be read."""
        path = self._folder / file
        try:
            with path.open(encoding="utf-8-sig") as lines:
                yield from read_trace(lines, str(path), block_tokens, model)
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"{path}: cannot read: {error}") from error


def provenance(scenario: Scenario) -> dict[str, str]:
    """By pool: the preset its engines are simulated by, and how well it is known."""
    found = {}
    for pool in scenario.service.pools:
        own = pool.engine or scenario.service.engine
        written = own.preset if isinstance(own, SimEngine) else None
        name = scenario.fleet.presets.get(pool.name) or written or engine_verb.DEFAULT_PRESET
        found[pool.name] = f"{name} ({read_preset(name).provenance.value})"
    return found


def _service(scenario: Scenario, spec: Spec) -> ModelService:
    return ModelService(
        api_version="beaconry/v1alpha1",
        kind="ModelService",
        metadata=Metadata(name=scenario.metadata.name),
        spec=spec,
    )


def _arguments(scenario: Scenario, pool: Pool, argv: tuple[str, ...]) -> argparse.Namespace:
    """The flags of a simulated engine that stands for one of the pool's."""
    parser = argparse.ArgumentParser(prog=f"engine of pool {pool.name}", add_help=False, exit_on_error=False)
    engine_verb.configure(parser)
    own = pool.engine or scenario.service.engine
    preset = scenario.fleet.presets.get(pool.name)
    try:
        if isinstance(own, SimEngine):
            flags = [*argv[SKIPPED_ARGV:], *(("--preset", preset) if preset else ())]
            return parser.parse_args(flags)
        if preset is None:
            raise OperatorError(
                f'pool "{pool.name}": a {own.__struct_config__.tag} engine needs a preset to be simulated by; give '
                f"fleet.presets: {{{pool.name}: MODEL/HARDWARE}}"
            )
        known, _ = parser.parse_known_args(["--preset", preset, *scheduling_flags(own), *own.args, *pool.args])
    except argparse.ArgumentError as error:
        raise OperatorError(f'args of pool "{pool.name}": {error}') from None
    return known


def _kv_way(scenario: Scenario, pool: Pool, arguments: argparse.Namespace) -> KvWay:
    preset = read_preset(arguments.preset)
    if preset.kv_bytes_per_token is None:
        raise OperatorError(
            f'pool "{pool.name}": {preset.name} does not say how large KV is, which goes from engine to engine; add '
            "kvBytesPerToken to it"
        )
    return scenario.network.kv_way(preset.kv_bytes_per_token, preset.accelerators)


def _tiers(options: EngineOptions, block_tokens: int) -> tuple[OffloadTier, ...]:
    """The memory beside the GPU, in blocks of another size."""
    if options.offload is None:
        return ()
    ratio = block_tokens / options.settings.block_tokens
    return (OffloadTier(max(int(options.offload.blocks / ratio), 1), options.offload.load_s * ratio),)


def _with_blocks(settings: EngineSettings, block_tokens: int) -> EngineSettings:
    """The same memory in blocks of another size."""
    blocks = settings.num_blocks * settings.block_tokens // block_tokens
    return msgspec.structs.replace(settings, num_blocks=max(blocks, 1), block_tokens=block_tokens)
