"""What one simulated engine is to be like: all that its command line says."""

from msgspec import Struct

from beaconry.engine_model.step_time import StepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine.kv_params import KvTransferOptions
from beaconry.wire.kv_events import Form


class KvEventsOptions(Struct, frozen=True, kw_only=True):
    """How an engine publishes its KV events. Ports are of the engine's own host, 0 for a free one."""

    port: int
    replay_port: int | None = None
    """None: nothing is remembered for those who come late."""
    topic: str = ""
    form: Form = Form.MAPS
    buffer_steps: int = 10_000
    """Batches remembered; as many as vLLM remembers by default."""


class OffloadOptions(Struct, frozen=True, kw_only=True):
    """The engine keeps copies of cached blocks in its host's memory."""

    blocks: int
    load_s: float
    """Model seconds to load one block from there."""


class EngineOptions(Struct, frozen=True, kw_only=True):
    """One simulated engine, and what it says of itself."""

    models: tuple[str, ...]
    """Names it answers to, its own first."""
    adapters: dict[str, str] = {}
    """LoRA adapters that it serves, paths by name. They keep blocks apart and change nothing else."""
    settings: EngineSettings
    step_time: StepTime
    max_model_len: int
    """Tokens of prompt and reply together; they must fit into the KV memory."""
    request_s: float = 0.0
    """Model seconds from a request's arrival to its being queued: HTTP, tokenization, hand-over."""
    speed: float = 1.0
    """Model seconds per real second."""
    seed: int = 0
    hash_algorithm: str = "fast"
    max_queued: int = 16_384
    """Waiting sequences; beyond it new requests get 503. vLLM has no bound by default."""
    kv_events: KvEventsOptions | None = None
    """None: it publishes none."""
    offload: OffloadOptions | None = None
    """None: what the GPU evicts is gone."""
    kv_transfer: KvTransferOptions | None = None
    """None: it hands no prompts over and takes none."""

    @property
    def names(self) -> tuple[str, ...]:
        """All that a request may ask for."""
        return (*self.models, *self.adapters)
