"""What `beaconry plan` is asked: a model, hardware to choose from with its prices, traffic, and targets.

apiVersion: beaconry/v1alpha1
kind: Planning
metadata: {name: chat}
model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct"}
variants:                     # what a replica may be; prices are per accelerator and hour, in any currency
- {preset: llama-3.1-8b/h100, price: 2.95}
- {preset: llama-3.1-8b/a100, price: 1.30, most: 20}
workloads:
- {type: sessions, arrivals: {rate: 3}, turns: 6}
slo: {ttftS: 1.5, itlS: 0.05}
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from beaconry.config.section import Section
from beaconry.engine_model.presets import Variant, variant
from beaconry.manifests.model_service import (
    Accelerator,
    Metadata,
    Model,
    ModelService,
    Parallelism,
    Pool,
    Router,
    SimEngine,
    Spec,
    VllmEngine,
)
from beaconry.sim.scenario import (
    Above0,
    ClientsSection,
    FleetSection,
    Network,
    NotNegative,
    Number,
    Scenario,
    SloSection,
)
from beaconry.sim.workloads import Trace, Workload
from beaconry.values.endpoint import Role

Counts = tuple[int, ...]
"""Replicas of each kind, in the order of `kinds`."""


class VariantSection(Section, frozen=True):
    """One thing that a replica may be."""

    preset: str
    """Model and hardware: `beaconry presets` lists them. `MODEL/HARDWARExN` is tensor parallelism over N accelerators."""
    price: Above0
    """Of one accelerator for one hour."""
    most: Number = 64
    """Replicas that can be had."""
    accelerator: str | None = None
    """Its name in the plan's spec; absent: nvidia- or amd- and the preset's hardware."""

    def what(self) -> Variant:
        """The preset itself. Raises OperatorError if there is none of that name."""
        return variant(self.preset)

    def replica_price(self) -> float:
        """Of one replica for one hour."""
        return self.price * self.what().tensor_parallel


class TargetSection(SloSection, frozen=True):
    """What a good answer is, and how many have to be good."""

    attainment: Annotated[float, Meta(gt=0, le=1)] = 0.95
    """Share of the requests within all targets; failed ones are not."""


class Planning(Section, frozen=True):
    """The file given to `beaconry plan`."""

    api_version: Literal["beaconry/v1alpha1"]
    kind: Literal["Planning"]
    metadata: Metadata
    model: Model
    variants: Annotated[tuple[VariantSection, ...], Meta(min_length=1, max_length=16)]
    workloads: Annotated[tuple[Workload, ...], Meta(min_length=1)]
    slo: TargetSection
    router: Router = Router()
    engine: VllmEngine = VllmEngine()
    """Of the spec that comes out; its flags count in the simulation as well."""
    mix: bool = True
    """Fleets of two variants are looked at too."""
    prefill_decode: bool = False
    """Fleets of prefill and decode engines, each of one variant, are looked at too. Which requests run in two legs is
    `router.disaggregation`."""
    spare: Annotated[int, Meta(ge=0, le=8)] = 0
    """Replicas, whichever, that may be lost without missing the targets."""
    simulations: Number = 80
    """At most so many fleets are simulated."""
    fleet: FleetSection = FleetSection()
    network: Network = Network()
    clients: ClientsSection = ClientsSection()
    seeds: Number = 2
    """Each fleet has to meet the targets with every seed."""
    warmup_s: NotNegative = 60.0
    duration_s: Above0 | None = 600.0
    settle_s: Above0 = 120.0

    def __post_init__(self) -> None:
        if self.slo.ttft_s is None and self.slo.itl_s is None:
            raise ValueError("slo: without a target the cheapest fleet is none; give ttftS or itlS, or both")
        presets = [choice.preset for choice in self.variants]
        if len(set(presets)) < len(presets):
            raise ValueError("variants: each preset is there once; remove the repetition")
        if self.duration_s is None and not all(isinstance(workload, Trace) for workload in self.workloads):
            raise ValueError("durationS: needed where a workload has no end of its own")


class Kind(Struct, frozen=True):
    """What a replica may be, and do."""

    section: VariantSection
    role: Role
    pool: str
    """Name of its pool."""


def kinds(planning: Planning) -> tuple[Kind, ...]:
    """Every variant for whole requests, then, if they may be apart, every one for prefill and every one for decode."""
    names = [_dashed(choice.preset.partition("/")[2]) for choice in planning.variants]
    names = [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names)]
    variants = list(zip(planning.variants, names, strict=True))
    found = [Kind(section, Role.BOTH, name) for section, name in variants]
    for role in (Role.PREFILL, Role.DECODE) if planning.prefill_decode else ():
        found += [Kind(section, role, f"{role.value}-{name}") for section, name in variants]
    return tuple(found)


def scenario_of(planning: Planning, counts: Counts, load: float = 1.0) -> Scenario:
    """The fleet `counts` under the planned traffic times `load`, to be simulated."""
    pools = tuple(
        Pool(name=kind.pool, role=kind.role, replicas=count, engine=SimEngine(preset=kind.section.preset))
        for kind, count in zip(kinds(planning), counts, strict=True)
        if count
    )
    return Scenario(
        api_version="beaconry/v1alpha1",
        kind="Scenario",
        metadata=planning.metadata,
        service=Spec(model=planning.model, engine=SimEngine(), pools=pools, router=planning.router),
        workloads=planning.workloads,
        fleet=planning.fleet,
        network=planning.network,
        clients=planning.clients,
        slo=SloSection(ttft_s=planning.slo.ttft_s, itl_s=planning.slo.itl_s),
        loads=(load,),
        seeds=planning.seeds,
        warmup_s=planning.warmup_s,
        duration_s=planning.duration_s,
        settle_s=planning.settle_s,
    )


def service_of(planning: Planning, counts: Counts) -> ModelService:
    """The spec to deploy."""
    pools = []
    for kind, count in zip(kinds(planning), counts, strict=True):
        if count:
            what = kind.section.what()
            pools.append(
                Pool(
                    name=kind.pool,
                    role=kind.role,
                    replicas=count,
                    parallelism=Parallelism(tensor=what.tensor_parallel),
                    accelerator=Accelerator(type=kind.section.accelerator or _accelerator(what.hardware.name)),
                )
            )
    spec = Spec(model=planning.model, engine=planning.engine, pools=tuple(pools), router=planning.router)
    return ModelService(api_version="beaconry/v1alpha1", kind="ModelService", metadata=planning.metadata, spec=spec)


def fleet_name(planning: Planning, counts: Counts) -> str:
    """A fleet in a few words."""
    named = [f"{count} x {kind.pool}" for kind, count in zip(kinds(planning), counts, strict=True) if count]
    return " + ".join(named) or "no engines"


def without(counts: Counts, spare: int) -> Sequence[Counts]:
    """The fleet after `spare` replicas of one kind are lost, for each kind that there is."""
    if not spare:
        return (counts,)
    return [
        (*counts[:number], max(count - spare, 0), *counts[number + 1 :]) for number, count in enumerate(counts) if count
    ]


def _accelerator(hardware: str) -> str:
    return ("amd-" if hardware.startswith("mi") else "nvidia-") + hardware


def _dashed(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
