"""One inference request as the router sees it: sizes, identity and prefix, never the text itself."""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct


class Api(StrEnum):
    """The OpenAI endpoint a request came in by."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    OTHER = "other"


class Request(Struct, frozen=True, kw_only=True, gc=False):
    """What scheduling may know of a request.

    `prefix` holds chained 64-bit hashes over the canonical prompt: `prefix[i]` stands for all of the prompt up to the end of
    block i, and each block stands for `block_tokens` prompt tokens. Equal hash, equal prefix. Only full blocks are there.
    """

    id: str
    model: str
    api: Api
    arrived_s: float
    prompt_tokens: int
    """Estimated, or exact where the prompt came as token ids."""
    prompt_bytes: int = 0
    """Length of the canonical prompt text; 0 where the token count is exact."""
    prefix: tuple[int, ...] = ()
    block_tokens: float = 64.0
    keys: Sequence[int] = ()
    """The engine's own hashes of the prompt's full blocks, where its tokens are known: what its KV events name them by."""
    key_tokens: int = 0
    """Prompt tokens that each key stands for; 0 without keys."""
    tokens_from: str = ""
    """Where the tokens came from, or why there are none; "" if nobody asked."""
    output_tokens: int | None = None
    """The caller's cap per sequence (`max_tokens`), None if absent."""
    sequences: int = 1
    """`n`: how many completions share the prompt."""
    divisible: bool = True
    """Its prompt may be computed on one engine and answered by another, as far as its body asks for nothing against it."""
    stream: bool = False
    session: str | None = None
    """A session key the caller sent, only where the operator configured a header for it."""
    tenant: str = "default"
    """Who pays: requests of one tenant share a fair queue. From its API key, or a trusted header; never from an untrusted client."""
    account: str | None = None
    """The configured tenant whose API key came with it, and whose limits it is charged to; None where no keys are asked for."""
    asked_model: str | None = None
    """What the client called the model, where that is another name."""
    weight: float = 1.0
    """The tenant's share against others' of the same priority."""
    priority: int = 0
    """The band: higher goes first, negative may be shed."""
    program: str | None = None
    """The agent or workflow that the request is a step of, where a trusted header names it."""
    ttl_s: float | None = None
    """How long it may wait for dispatch, from arrival; None takes its band's."""
    slo_ttft_s: float | None = None
    """The objective for arrival to first token; None is best effort."""
    slo_itl_s: float | None = None
    """The objective for the mean time between tokens."""


class Usage(Struct, frozen=True, kw_only=True, gc=False):
    """Token counts as the engine reported them at the end of a leg."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """Prompt tokens the engine found in its prefix cache; None if it does not say."""
