"""One serving address of an engine, and what is known of its load."""

from enum import StrEnum

from msgspec import Struct


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

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"


class LoadSample(Struct, frozen=True, kw_only=True):
    """One scrape of an engine's metrics. A field is None if the engine does not export it."""

    at_s: float
    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    """Share of KV blocks in use by requests, 0..1 (not counting idle cached blocks)."""
    kv_blocks: int | None = None
    block_tokens: int | None = None
