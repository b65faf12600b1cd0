"""The gateway's knobs: one Struct per section, the unit in each name, each default with its reason.

In YAML the names are camelCase (`firstByteS`). Sources: file, then flags.
"""

from typing import Annotated

from msgspec import Meta, field

from beaconry.config.disaggregation import Disaggregation, role_fault
from beaconry.config.flow import Flow
from beaconry.config.section import ABOVE_0, Section
from beaconry.config.tenants import ModelConfig, Objective, Tenants, TrustedHeader
from beaconry.values.endpoint import WITHOUT_PRIORITIES, EngineType, KvEventsAddress, Role, SchedulingPolicy
from beaconry.values.kv_events import KvBlocks

PATH = Meta(pattern=r"^/[\x21-\x7e]*$")
"""An absolute path without spaces or control characters: it goes onto the request line as it is."""


class Listen(Section, frozen=True):
    """Where clients connect."""

    host: str = "127.0.0.1"
    """Loopback: exposing a gateway to a network is a decision, not a default."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    """0 takes a free port."""


class Limits(Section, frozen=True):
    """What one client may take."""

    header_bytes: int = 65_536
    """Request line and headers; nginx 32 KiB, Envoy 60 KiB."""
    headers: int = 256
    """Their number, since each costs far more than its bytes; Envoy takes 100, nginx any number."""
    body_bytes: int = 67_108_864
    """One body: 64 MiB holds a 126k-token prompt many times and several images; llm-d's coordinator takes the same."""
    buffered_bytes: int = 1_073_741_824
    """All bodies held at once; beyond it new bodies get 503."""
    connections: int = 16_384
    """Client connections; beyond it new ones are closed."""
    pipelined_requests: int = 16
    """Requests a client may send ahead on one connection; answered in order."""
    header_s: float = 10.0
    """From the first byte of a request to the end of its headers."""
    body_s: float = 60.0
    """From the end of the headers to the end of the body."""
    keep_alive_s: float = 120.0
    """An idle client connection; longer than the usual 60-90 s of proxies in front, so that they close first."""
    stalled_write_s: float = 60.0
    """A client that does not read."""


class Deadlines(Section, frozen=True):
    """Bounds on waiting for an engine."""

    connect_s: float = 2.0
    """TCP connect: engines are in the same data centre."""
    first_byte_s: float = 300.0
    """Prefill of a long prompt behind a queue takes minutes on a saturated engine."""
    idle_s: float = 60.0
    """Between two pieces of an answer that has begun; a stalled engine step is seconds at most."""
    total_s: float = 3600.0
    """One request, all attempts; long reasoning answers stream for tens of minutes."""
    drain_s: float = 30.0
    """Graceful stop; the grace period of a Kubernetes pod."""


class Retry(Section, frozen=True):
    """Another endpoint for a request whose answer has not begun."""

    attempts: int = 3
    """Legs per request, the first one included; Envoy's guidance is two to three."""
    budget_ratio: float = 0.2
    """Retries per request over the recent past, so that an outage is not multiplied; linkerd and Envoy take 0.2."""
    budget_floor: int = 10
    """Retries always allowed in the window, for low traffic."""


class Health(Section, frozen=True):
    """Active checks and passive ejection."""

    path: Annotated[str, PATH] = "/health"
    interval_s: Annotated[float, ABOVE_0] = 2.0
    timeout_s: Annotated[float, ABOVE_0] = 1.0
    unhealthy_after: int = 3
    """Failed checks in a row; one slow step of an engine is not an outage."""
    eject_after: int = 3
    """Failed legs in a row; Envoy's outlier detection takes 5 of far more requests."""
    eject_base_s: float = 1.0
    """First ejection; doubles each time."""
    eject_max_s: float = 60.0


class Scrape(Section, frozen=True):
    """Reading the engines' metrics: a correction of our own counters, so once a second is enough."""

    path: Annotated[str, PATH] = "/metrics"
    """trtllm-serve is read at /prometheus/metrics unless this is changed."""
    interval_s: Annotated[float, ABOVE_0] = 1.0
    timeout_s: Annotated[float, ABOVE_0] = 1.0
    body_bytes: int = 4_194_304
    models_interval_s: Annotated[float, ABOVE_0] = 10.0
    """Between two looks at the models served: a LoRA adapter loaded at run time is found within this."""


class Tokens(Section, frozen=True):
    """Prompts to tokens, for engines that tell their KV events."""

    model_dirs: dict[str, str] = field(default_factory=dict)
    """Directory with `tokenizer.json` and chat template, by model: the fastest way (`pip install 'beaconry[tokenizers]'`)."""
    ask_engines: bool = True
    """Else, or if that fails, an engine's own `/tokenize` is asked."""
    deadline_s: Annotated[float, ABOVE_0] = 0.05
    """For all of it; then the request goes on by the approximate view."""
    cache_bytes: int = 134_217_728
    """Per model, for tokens and again for keys of earlier turns."""


class Offloading(Section, frozen=True):
    """Sizes and bandwidths of KV offloading. All of it is only where learning begins: observed first tokens correct it."""

    kv_bytes_per_token: Annotated[float, ABOVE_0] | None = None
    """Over all layers, for example 131,072 for Llama-3.1-8B in BF16. Absent: loading is taken for a share of the time of computing."""
    cpu_bytes_per_s: Annotated[float, ABOVE_0] = 25e9
    """From the host's memory to all accelerators of an engine together: a PCIe 4.0 link has 32 GB/s, of which copies reach 25."""
    storage_bytes_per_s: Annotated[float, ABOVE_0] = 3e9
    """From an engine's own disk: one NVMe drive reads 3 to 7 GB/s."""
    shared_bytes_per_s: Annotated[float, ABOVE_0] = 3e9
    """From a store that all engines share: a 25 Gbit/s link."""


class Forecasting(Section, frozen=True):
    """Ranges of predicted latencies, by which requests with objectives are placed, and sheddable ones refused."""

    coverage: Annotated[float, Meta(ge=0.5, le=0.99)] = 0.9
    """Share of outcomes that shall lie below a range's upper end; as many lie above its lower end. llm-d predicts the same quantile. More
    refuses only what is more surely late; beyond 0.99 the latest two hundred outcomes, by which ranges are set, do not tell."""


class Access(Section, frozen=True):
    """Logs and debug output."""

    log: str | None = None
    """File of JSON lines, one per request, never prompts; "-" is standard output, absent is none."""
    record: str | None = None
    """File for a recording of the traffic (sizes, times, shared prefixes as numbers; never prompts), to be replayed under another policy
    or fleet. Appending to another run's recording is refused."""
    debug_headers: bool = False
    """Answer a request that carries `x-beaconry-debug: 1` with the decision in `x-beaconry-*` headers."""
    session_header: str | None = None
    """Header with a session key, only if the clients may be trusted to pin their traffic."""


class Profile(Section, frozen=True):
    """How requests are placed, by the names of plugins."""

    policy: str = "expected-cost"
    """A policy's name, or "weighted" for the sum of `scorers`."""
    filters: tuple[str, ...] = ()
    """Applied in order before the policy."""
    cost_terms: tuple[str, ...] = ()
    """Further parts of the expected cost; for the policy "expected-cost" only."""
    scorers: dict[str, float] = field(default_factory=dict)
    """Weights by scorer; for the policy "weighted" only. llm-d's default is queue 2, KV cache 2, prefix 3."""
    picker: str = "max-score-picker"
    """Takes one by the weighted scores."""


class EndpointConfig(Section, frozen=True):
    """One engine address of a static list."""

    name: str
    host: str
    port: Annotated[int, Meta(ge=1, le=65535)]
    model: str
    pool: str = "default"
    role: Role = Role.BOTH
    engine: EngineType = EngineType.VLLM
    variant: str = "default"
    draining: bool = False
    scheduling_policy: SchedulingPolicy = SchedulingPolicy.FCFS
    """As the engine was started: where it serves by priority it is told that of each request."""
    kv_events: KvEventsAddress | None = None
    """Where the engine publishes its KV events; absent: the approximate view only."""
    kv_blocks: KvBlocks | None = None
    """How it names its blocks; absent with `kvEvents` is vLLM's default."""

    def __post_init__(self) -> None:
        """Raise ValueError for a policy that the engine does not have."""
        if self.scheduling_policy is not SchedulingPolicy.FCFS and self.engine in WITHOUT_PRIORITIES:
            raise ValueError(
                f'endpoint "{self.name}": engine "{self.engine}" does not take a priority with a request; '
                "remove schedulingPolicy"
            )


class GatewayConfig(Section, frozen=True):
    """All of it: the file given to `beaconry serve --config`."""

    listen: Listen = Listen()
    limits: Limits = Limits()
    deadlines: Deadlines = Deadlines()
    retry: Retry = Retry()
    health: Health = Health()
    scrape: Scrape = Scrape()
    tokens: Tokens = Tokens()
    offloading: Offloading = Offloading()
    forecasts: Forecasting = Forecasting()
    access: Access = Access()
    flow: Flow = Flow()
    disaggregation: Disaggregation = Disaggregation()
    policy: str = "expected-cost"
    """A policy's name: `beaconry policies` lists them."""
    profile: Profile | None = None
    """Instead of `policy`: one with filters, cost terms or scorers."""
    shortlist_above: Annotated[int, Meta(ge=1)] = 16
    """Endpoints of a model that are all judged for each request. Of more, those are judged that hold most of the prompt or have little to
    do, about sixteen: judging a thousand takes milliseconds. Round robin and other policies that ignore both want a higher value."""
    index_bytes: int = 1_073_741_824
    """Bound on the prefix index: about ten million blocks of 64 tokens, the caches of a thousand engines. A small fleet takes what it
    needs; a bound that is too low for the fleet costs cache hits."""
    exact_index_bytes: int = 1_073_741_824
    """Bound on the index of engine events: about eleven million blocks."""
    tenants: Tenants = Tenants()
    trusted_headers: tuple[TrustedHeader, ...] = ()
    """What every client may say of its requests: none by default, since nothing stops it from saying that it matters most."""
    objectives: dict[str, Objective] = field(default_factory=dict)
    """By the name that requests give in `x-llm-d-inference-objective`."""
    models: dict[str, ModelConfig] = field(default_factory=dict)
    """Aliases, canaries and defaults, by the name that clients use. Engines' models need not be listed."""
    seed: int = 0
    """Of the policy's own chance (tie breaks, random policies)."""
    endpoints: tuple[EndpointConfig, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for endpoints whose roles leave a request nowhere to go."""
        roles: dict[str, set[Role]] = {}
        for one in self.endpoints:
            roles.setdefault(one.model, set()).add(one.role)
        for model, its in roles.items():
            fault = role_fault(its, self.disaggregation.mode)
            if fault is not None:
                raise ValueError(f'model "{model}" has {fault}')
