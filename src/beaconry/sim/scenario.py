"""A scenario: what `beaconry simulate` runs, as an operator writes it. Loaded strictly; the workload sections are `workloads.py`.

apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {name: eight-engines}
service:                      # the `spec` of a ModelService
  model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct"}
  engine: {type: sim, preset: llama-3.1-8b/h100}
  pools: [{name: engine, replicas: 8}]
workloads:
- {type: sessions, arrivals: {rate: 2}, turns: 6}
policies: [expected-cost, round-robin]
"""

from typing import Annotated, Literal

from msgspec import Meta, field

from beaconry.config.section import ABOVE_0, Section
from beaconry.engine_model.kv_link import KvWay, Wire, make_way
from beaconry.manifests.model_service import Metadata, Spec
from beaconry.sim.workloads import Trace, Workload

Above0 = Annotated[float, ABOVE_0]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Number = Annotated[int, Meta(ge=1)]


class FleetSection(Section, frozen=True):
    """What a spec does not say of a fleet."""

    presets: dict[str, str] = field(default_factory=dict)
    """Model and hardware by pool, for pools whose engines are not simulated ones: the same spec that runs in production."""
    block_tokens: Number = 64
    """Tokens per simulated KV block. Engines have 16; larger ones are simulated faster, and hit rates fall by less than a block per
    prompt."""
    start_s: NotNegative = 60.0
    """From an engine's start to its first answer; minutes for large models from cold disks."""
    zones: Number = 1
    """Engines are spread over so many zones in turn."""
    kv_events: bool = False
    """Routers are told what each engine's cache holds; else they judge by what they have sent."""
    routers: Number = 1
    """Router replicas: each sees its own requests, and what engines tell."""


class Network(Section, frozen=True):
    """Delays, one way, and losses."""

    client_s: NotNegative = 0.0
    engine_s: NotNegative = 0.0005
    """Router to engine; half a millisecond within a data centre."""
    scrape_delay_s: NotNegative = 0.01
    """From an engine's state to the router's knowledge; the pace is the service's `router.scrape.intervalS`."""
    scrape_loss: Share = 0.0
    event_delay_s: NotNegative = 0.005
    event_loss: Share = 0.0
    """Share of the KV-event batches that get lost."""
    kv_link: Wire = Wire.INFINIBAND
    """What KV goes over from prefill to decode engines."""
    kv_gb_per_s: Annotated[float, ABOVE_0] | None = field(default=None, name="kvGBPerS")
    """Gigabytes a second, per accelerator and direction, instead of the link's own."""
    kv_latency_s: NotNegative | None = None
    """Of one transfer, beside its bytes, instead of the link's own."""

    def kv_way(self, bytes_per_token: float, accelerators: int) -> KvWay:
        """How KV goes in and out of an engine."""
        return make_way(
            self.kv_link, bytes_per_token, accelerators, gb_per_s=self.kv_gb_per_s, latency_s=self.kv_latency_s
        )


class ClientsSection(Section, frozen=True):
    """What clients do when answers are late or bad."""

    timeout_s: Above0 | None = None
    """They leave when an answer is not complete by then."""
    retries: Annotated[int, Meta(ge=0)] = 0
    """After an error answer."""
    backoff_s: Above0 = 1.0
    """Before the first retry; doubled each time."""


class SloSection(Section, frozen=True):
    """What a good answer is: goodput counts those within all targets."""

    ttft_s: Above0 | None = None
    itl_s: Above0 | None = None
    """Mean time between the tokens of an answer."""


class FaultSection(Section, frozen=True):
    """Something goes wrong. Either `zone`, or the first `engines` of `pool`."""

    type: Literal["crash", "hang", "slow", "event-gap"]
    at_s: NotNegative
    for_s: Above0 = 60.0
    """A crashed engine is back after it, empty."""
    pool: str | None = None
    """Absent: all pools."""
    engines: Number = 1
    zone: Annotated[int, Meta(ge=0)] | None = None
    """All engines of this zone."""
    factor: Above0 = 3.0
    """For slow: each step takes so many times as long."""


class ScalingSection(Section, frozen=True):
    """A pool is given another number of engines; new ones take `fleet.startS`, those that go finish what they have."""

    at_s: NotNegative
    pool: str
    replicas: Annotated[int, Meta(ge=0)]


class Scenario(Section, frozen=True):
    """The file given to `beaconry simulate`."""

    api_version: Literal["beaconry/v1alpha1"]
    kind: Literal["Scenario"]
    metadata: Metadata
    service: Spec
    workloads: Annotated[tuple[Workload, ...], Meta(min_length=1)]
    fleet: FleetSection = FleetSection()
    network: Network = Network()
    clients: ClientsSection = ClientsSection()
    slo: SloSection = SloSection()
    policies: tuple[str, ...] = ()
    """To be compared; absent: the service's own."""
    loads: Annotated[tuple[Above0, ...], Meta(min_length=1)] = (1.0,)
    """Factors on all arrival rates, to be compared."""
    seeds: Number = 1
    """Repetitions with other chance; several give confidence intervals."""
    warmup_s: NotNegative = 0.0
    """What arrives before is simulated, and not counted."""
    duration_s: Above0 | None = None
    """Nothing arrives after it. Needed where a workload has no end of its own."""
    settle_s: Above0 = 600.0
    """What has not ended so long after the last arrival counts as unfinished."""
    faults: tuple[FaultSection, ...] = ()
    scaling: tuple[ScalingSection, ...] = ()

    def __post_init__(self) -> None:
        for number, workload in enumerate(self.workloads):
            if self.duration_s is None and not isinstance(workload, Trace) and workload.requests is None:
                raise ValueError(f"workloads[{number}] never ends; give it requests, or give durationS")
        if len(set(self.policies)) < len(self.policies):
            raise ValueError("policies: each is compared once; remove the repetition")
