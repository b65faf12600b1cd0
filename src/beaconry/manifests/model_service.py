"""The ModelService spec: one model, its engines and pools, and the router's policy, as an operator writes it.

The same file is meant for a laptop (`engine.type: sim`) and for real engines. Keys of the published spec that nothing acts on yet
are refused with a reason (`NOT_YET`, see `config/loading.py`), never ignored. Five lines are enough:

    apiVersion: beaconry/v1alpha1
    kind: ModelService
    metadata: {name: demo}
    spec:
      model: {uri: "hf://Qwen/Qwen3-0.6B"}
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from beaconry.config.disaggregation import ConnectorName, Disaggregation, role_fault
from beaconry.config.flow import Flow
from beaconry.config.gateway import Access, Deadlines, Forecasting, Health, Limits, Offloading, Profile, Retry, Scrape
from beaconry.config.section import Section
from beaconry.config.tenants import ModelConfig, Objective, Tenants, TrustedHeader
from beaconry.values.endpoint import Role

Name = Annotated[
    str,
    Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?\Z", description='a name of a-z, 0-9 and inner "-", at most 40'),
]
"""As in a DNS label: it ends up in host names, labels and metrics."""
Uri = Annotated[
    str,
    Meta(
        pattern=r"^(hf://[^/\s]+/[^/\s]+|file:///.+)\Z", description='"hf://organisation/model" or "file:///directory"'
    ),
]
"""A model on the Hugging Face hub, or the directory with the weights."""
Count = Annotated[int, Meta(ge=0, le=1024)]
Degree = Annotated[int, Meta(ge=1, le=64)]
Positive = Annotated[float, Meta(gt=0)]

_KUBERNETES = "it only means something on Kubernetes; remove it"


class Metadata(Section, frozen=True):
    """The service's identity."""

    name: Name
    NOT_YET: ClassVar[Mapping[str, str]] = {
        "namespace": _KUBERNETES,
        "labels": _KUBERNETES,
        "annotations": _KUBERNETES,
    }


class Model(Section, frozen=True):
    """What is served."""

    uri: Uri
    name: str | None = None
    """The `model` clients ask for; by default what follows `hf://`, or the directory's name."""
    NOT_YET: ClassVar[Mapping[str, str]] = {"lora": "pass the adapters in engine.args, as the engine's own flags"}

    @property
    def path(self) -> str:
        """What the engine calls it: `organisation/model`, or an absolute path."""
        return self.uri.removeprefix("hf://").removeprefix("file://")

    @property
    def served_name(self) -> str:
        """What clients call it."""
        return self.name or (self.path if self.uri.startswith("hf://") else self.path.rstrip("/").rpartition("/")[2])


Policy = Literal["fcfs", "priority"]


class SimEngine(Section, frozen=True, tag_field="type", tag="sim"):
    """Simulated engines: the interfaces and timing of vLLM, without model and accelerator."""

    preset: str | None = None
    """Model and hardware whose speed is simulated, or a file of `beaconry fit`, its path seen from where `up` runs; absent is the
    engine's own default."""
    speed: Positive = 1.0
    """Above 1 everything takes that much less time."""
    blocks: Annotated[int, Meta(ge=1)] | None = None
    """KV blocks; absent is what the preset's memory holds."""
    scheduling_policy: Policy = "fcfs"
    """As for vLLM."""
    kv_events: bool = True
    """As for vLLM."""
    kv_offloading_gib: Positive | None = None
    """Host memory of each engine for copies of cached blocks; absent is none."""
    args: tuple[str, ...] = ()
    """Further flags of `beaconry engine`; the last one wins."""
    env: dict[str, str] = field(default_factory=dict)
    ready_within_s: Positive = 30.0
    """Start-up takes one second; a machine that swaps takes longer."""
    NOT_YET: ClassVar[Mapping[str, str]] = {"image": _KUBERNETES}


class VllmEngine(Section, frozen=True, tag_field="type", tag="vllm"):
    """vLLM processes on this machine."""

    command: Annotated[tuple[str, ...], Meta(min_length=1)] = ("vllm", "serve")
    """How vLLM starts: absolute paths for an environment of its own, for example
    `[/opt/vllm/bin/python, -m, vllm.entrypoints.openai.api_server]`."""
    scheduling_policy: Policy = "fcfs"
    """`priority`: engines serve first what is of the highest priority, which the gateway tells them with each request."""
    kv_events: bool = True
    """Engines tell the gateway what their prefix caches hold; without it the gateway guesses from what it sent them."""
    kv_offloading_gib: Positive | None = None
    """Host memory of each engine for copies of cached blocks (vLLM's own offloading connector); absent is none."""
    args: tuple[str, ...] = ()
    """vLLM's own flags; the last one wins."""
    env: dict[str, str] = field(default_factory=dict)
    ready_within_s: Positive = 1800.0
    """Weights are loaded and graphs captured first: minutes for a large model, more on the first download."""
    NOT_YET: ClassVar[Mapping[str, str]] = {"image": _KUBERNETES}


class Parallelism(Section, frozen=True):
    """How many accelerators work as one engine."""

    tensor: Degree = 1
    pipeline: Degree = 1
    NOT_YET: ClassVar[Mapping[str, str]] = {
        "data": "use replicas instead: each is an engine of its own",
        "dataLocal": "use replicas instead: each is an engine of its own",
        "expert": "pass --enable-expert-parallel in args",
    }


class Accelerator(Section, frozen=True):
    """The hardware of a pool. With `nvidia-*` and `amd-*` each engine gets devices of its own, from 0 on."""

    type: str
    NOT_YET: ClassVar[Mapping[str, str]] = {"resource": _KUBERNETES}


class Pool(Section, frozen=True):
    """Equal engines."""

    name: Name = "default"
    role: Role = Role.BOTH
    replicas: Count = 1
    parallelism: Parallelism = Parallelism()
    accelerator: Accelerator | None = None
    engine: SimEngine | VllmEngine | None = None
    """Instead of `spec.engine`, as a whole."""
    args: tuple[str, ...] = ()
    """After the engine's `args`."""
    env: dict[str, str] = field(default_factory=dict)
    """Over the engine's `env`."""
    NOT_YET: ClassVar[Mapping[str, str]] = {
        "scaling": "the number of engines is fixed; set replicas",
        "cost": "all pools count the same; remove it",
        "podTemplate": _KUBERNETES,
    }

    def __post_init__(self) -> None:
        if self.role is Role.ENCODE:
            raise ValueError(f'role "{self.role}" is understood, but not acted on in this version: use "both"')


class Router(Section, frozen=True):
    """How requests are spread: the sections of the gateway's own configuration that make sense beside a spec."""

    policy: str = "expected-cost"
    profile: Profile | None = None
    """Instead of `policy`: one with filters, cost terms or scorers."""
    access: Access = Access()
    tenants: Tenants = Tenants()
    trusted_headers: tuple[TrustedHeader, ...] = ()
    objectives: dict[str, Objective] = field(default_factory=dict)
    models: dict[str, ModelConfig] = field(default_factory=dict)
    flow: Flow = Flow()
    disaggregation: Disaggregation = Disaggregation()
    deadlines: Deadlines = Deadlines()
    health: Health = Health()
    limits: Limits = Limits()
    offloading: Offloading = Offloading()
    forecasts: Forecasting = Forecasting()
    retry: Retry = Retry()
    scrape: Scrape = Scrape()
    shortlist_above: Annotated[int, Meta(ge=1)] = 16
    """As in the gateway's own configuration."""


class KvTransfer(Section, frozen=True):
    """How prompts' KV goes from pools of role prefill to those that answer. Without the former nothing of it happens."""

    connector: ConnectorName = "nixl"
    """`nixl`: vLLM's NixlConnector, over whatever UCX finds on the machine (`env: {UCX_TLS: ...}` says it)."""
    on_load_failure: Literal["fail", "recompute"] = "fail"
    """What an engine does that cannot fetch. `fail`: the gateway runs the request whole where it disturbs least; `recompute`: the engine
    computes the prompt itself, at once."""
    NOT_YET: ClassVar[Mapping[str, str]] = {"network": _KUBERNETES}


class Spec(Section, frozen=True):
    """The service itself."""

    model: Model
    engine: SimEngine | VllmEngine = field(default_factory=VllmEngine)
    pools: Annotated[tuple[Pool, ...], Meta(min_length=1)] = (Pool(),)
    kv_transfer: KvTransfer = KvTransfer()
    router: Router = Router()
    NOT_YET: ClassVar[Mapping[str, str]] = {
        "slo": "set router.models.NAME.defaults (sloTtftS, sloItlS) instead",
        "kvCacheOffloading": "set engine.kvOffloadingGib instead",
        "rollout": "stop and start `up` to change engines; remove it",
    }

    def __post_init__(self) -> None:
        names = [pool.name for pool in self.pools]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'{names.count(name)} pools are called "{name}"; names must differ')
        if not any(pool.replicas for pool in self.pools):
            raise ValueError("all pools have 0 replicas: nothing would serve; set replicas of one")
        fault = role_fault({pool.role for pool in self.pools}, self.router.disaggregation.mode)
        if fault is not None:
            raise ValueError(f"the pools have {fault}")


class ModelService(Section, frozen=True):
    """The file given to `beaconry up`."""

    api_version: Literal["beaconry/v1alpha1"]
    kind: Literal["ModelService"]
    metadata: Metadata
    spec: Spec
