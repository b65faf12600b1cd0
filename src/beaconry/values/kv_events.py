"""What an engine tells the world about its prefix cache, as values. Names and contents follow vLLM's KV events."""

from enum import StrEnum

from msgspec import Struct


class Tier(StrEnum):
    """Where a block lies, fastest first."""

    GPU = "gpu"
    CPU = "cpu"
    STORAGE = "storage"
    """A disk of this engine's own."""
    SHARED = "shared"
    """A store that all engines read: holding a block there sets no engine apart."""

    __hash__ = str.__hash__  # an enum's own is a Python function, and there are several look-ups by tier per block


class BlockStored(Struct, frozen=True, kw_only=True, gc=False):
    """A run of consecutive blocks of one sequence became shareable."""

    block_hashes: tuple[int, ...]
    """Whole digests from an engine's own pool; from the wire their low 64 bits at least."""
    parent_hash: int | None
    """Hash of the block before the first one; None at the start of a prompt."""
    token_ids: tuple[int, ...]
    """The tokens of exactly these blocks; () if the sequence came without token ids, or nobody asked for them."""
    block_tokens: int
    """0 if the engine does not say, as for blocks that a connector moved to another tier."""
    lora: str | None = None
    salt: str | None = None
    """The cache salt, only where the run starts a prompt: it enters the first block's hash only."""
    tier: Tier = Tier.GPU
    group: int = 0
    """Which of the model's KV cache groups the blocks belong to; most models have one."""
    dense: bool = True
    """The group keeps all of a prompt's blocks. False for sliding windows, Mamba states and the like, whose blocks prove no prefix."""
    window: int | None = None
    """Tokens that a sliding-window group looks back; None for other groups, and where the engine does not say."""
    extras: tuple[bytes, ...] = ()
    """Per block what else entered its hash (adapter, images, salt) as the engine wrote it, b"" for nothing; () if nothing in any."""


class BlockRemoved(Struct, frozen=True, kw_only=True, gc=False):
    """One block of this hash is gone. Others of the same hash may be left: as many as were stored and not removed."""

    block_hash: int
    tier: Tier = Tier.GPU
    group: int = 0


class AllBlocksCleared(Struct, frozen=True):
    """The whole prefix cache was dropped."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvBatch(Struct, frozen=True, kw_only=True):
    """What changed in one step of an engine."""

    ts: float
    """The engine's clock, s: repeated as it was when the batch is replayed."""
    events: tuple[KvEvent, ...]
    rank: int | None = None
    """Data-parallel rank of the publisher; None if it does not say."""
    skipped: int = 0
    """Events of a type unknown here."""


class KvBlocks(Struct, frozen=True, kw_only=True, rename="camel"):
    """How an engine names its KV blocks, so that their names can be computed from a prompt's tokens; see `block_hash.py`."""

    block_tokens: int
    """0: as the engine's metrics and events say."""
    algorithm: str
    seed: str


class KvSource(Struct, frozen=True, kw_only=True):
    """Where one engine, or one data-parallel rank of it, publishes its KV events. All addresses are ZeroMQ's (`tcp://host:port`)."""

    name: str
    """Of the endpoint."""
    address: str
    replay: str | None = None
    """Where past batches are answered; None if the engine was started without."""
    rank: int = 0
    topic: str = ""
    """Prefix of the topics to hear; empty for all."""
    blocks: KvBlocks | None = None
    """How its blocks are expected to be hashed. Events that turn out to be hashed otherwise are told in these hashes all the same.
    None: they are told as they are, unverified."""
    tokens: bool = False
    """Tell the events as they are, with their token ids, whatever `blocks` says: for those who examine an engine."""


class SourceState(StrEnum):
    """How well an engine's cache is known."""

    EXACT = "exact"
    """Every batch since the engine started, or since it last cleared its cache."""
    DEGRADED = "degraded"
    """Something may be missing or gone; see the reason that comes with it."""
    COLD = "cold"
    """Nothing is known."""
