"""What an engine tells the world about its prefix cache, as values. Names and contents follow vLLM's KV events."""

from msgspec import Struct


class BlockStored(Struct, frozen=True, kw_only=True):
    """A run of consecutive blocks of one sequence became shareable."""

    block_hashes: tuple[int, ...]
    """Whole digests; vLLM publishes their low 64 bits unless told otherwise."""
    parent_hash: int | None
    """Hash of the block before the first one; None at the start of a prompt."""
    token_ids: tuple[int, ...]
    """The tokens of exactly these blocks; () if the sequence came without token ids."""
    block_tokens: int
    lora: str | None = None
    salt: str | None = None
    """The cache salt, only where the run starts a prompt: it enters the first block's hash only."""


class BlockRemoved(Struct, frozen=True, kw_only=True):
    """One block of this hash is gone. Others of the same hash may be left: as many as were stored and not removed."""

    block_hash: int


class AllBlocksCleared(Struct, frozen=True):
    """The whole prefix cache was dropped."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared
