"""One serving address of an engine, and what is known of its load."""

from enum import StrEnum

from msgspec import Struct

from beaconry.values.kv_events import KvBlocks, KvSource


class Role(StrEnum):
    """Which legs of a request an endpoint serves; values of the label `llm-d.ai/role`."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"
    ENCODE = "encode"


class EngineType(StrEnum):
    """The engine software behind an endpoint; values of the label `llm-d.ai/engine-type`, plus the simulated one."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TRTLLM = "trtllm"
    LLAMACPP = "llamacpp"
    SIM = "sim"


class SchedulingPolicy(StrEnum):
    """In which order an engine serves what waits in it; the first two are values of vLLM's `--scheduling-policy`."""

    FCFS = "fcfs"
    """As it comes, whatever requests say of their priority. All engines by default."""
    PRIORITY = "priority"
    """By the request's number in the engine's own direction: vLLM the lowest first, SGLang (`--enable-priority-scheduling`) the highest."""
    LOWEST_FIRST = "priority-lowest-first"
    """The lowest number first, whatever the engine: SGLang with `--schedule-low-priority-values-first` too."""


WITHOUT_PRIORITIES = frozenset({EngineType.TRTLLM, EngineType.LLAMACPP})
"""Engines whose requests have no priority: trtllm-serve refuses a body with one, llama.cpp ignores it."""


class KvEventsAddress(Struct, frozen=True, kw_only=True):
    """Where an engine publishes what its prefix cache holds. Each data-parallel rank has ports of its own: rank r at port + r."""

    endpoint: str
    """ZeroMQ's, for example `tcp://10.0.0.7:5557`."""
    replay: str | None = None
    """Where past batches are answered; None if the engine was started without."""
    ranks: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for ranks that cannot be addressed."""
        if self.ranks < 1:
            raise ValueError(f"{self.ranks} ranks: there is at least one")
        if self.ranks > 1 and not all(one.startswith("tcp://") for one in (self.endpoint, self.replay or "tcp://")):
            raise ValueError(
                f"{self.endpoint}: {self.ranks} ranks are told apart by their ports, so they need tcp:// addresses"
            )


class Endpoint(Struct, frozen=True, kw_only=True):
    """An address that serves one model. `name` is its identity: a restart on the same address keeps the name."""

    name: str
    host: str
    port: int
    model: str
    pool: str = "default"
    role: Role = Role.BOTH
    engine: EngineType = EngineType.VLLM
    variant: str = "default"
    """Model x hardware x parallelism: endpoints of one variant run equally fast, so their rates are learnt together."""
    draining: bool = False
    """Finishes what it has and gets nothing new."""
    scheduling_policy: SchedulingPolicy = SchedulingPolicy.FCFS
    kv_events: KvEventsAddress | None = None
    """None: it publishes none, or nobody said where."""
    kv_blocks: KvBlocks | None = None
    """None: unknown."""

    @property
    def kv_sources(self) -> tuple[KvSource, ...]:
        """What to listen to for its KV events, one source per data-parallel rank."""
        told = self.kv_events
        if told is None:
            return ()
        return tuple(
            KvSource(
                name=self.name,
                address=_port_plus(told.endpoint, rank),
                replay=None if told.replay is None else _port_plus(told.replay, rank),
                rank=rank,
                blocks=self.kv_blocks,
            )
            for rank in range(told.ranks)
        )

    def told_priority(self, priority: int) -> int | None:
        """What the engine is to be told of a request whose priority is `priority` (the highest goes first); None: nothing."""
        policy = self.scheduling_policy
        if policy is SchedulingPolicy.FCFS:
            return None
        return priority if policy is SchedulingPolicy.PRIORITY and self.engine is EngineType.SGLANG else -priority

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"


class AdapterLoad(Struct, frozen=True, kw_only=True):
    """Which LoRA adapters an engine is busy with."""

    running: frozenset[str]
    """Some request runs with them: they are in the accelerator's memory."""
    waiting: frozenset[str]
    """Some request waits for them."""
    slots: int | None = None
    """Adapters that may run at once; None if the engine does not say."""


class LoadSample(Struct, frozen=True, kw_only=True):
    """One scrape of an engine's metrics. A field is None if the engine does not export it."""

    at_s: float
    running: int | None = None
    waiting: int | None = None
    deferred: int | None = None
    """How many of those waiting would not run if there were room: their KV is on its way, or their adapter has no slot."""
    kv_usage: float | None = None
    """Share of KV blocks in use by requests, 0..1 (not counting idle cached blocks)."""
    kv_blocks: int | None = None
    block_tokens: int | None = None
    adapters: AdapterLoad | None = None

    @property
    def queued(self) -> int:
        """How many wait for a place or for memory."""
        return max((self.waiting or 0) - (self.deferred or 0), 0)


def _port_plus(address: str, rank: int) -> str:
    """The address of a rank. That of rank 0 stays as it is, since it may have no port."""
    if not rank:
        return address
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + rank}"
