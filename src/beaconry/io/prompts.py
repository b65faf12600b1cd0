"""From a request's body to the keys by which engines name its blocks, for the models whose engines tell their KV events.

Tokens come from `tokenizing.py`, keys from them by `kvindex/block_keys.py`. Whatever is missing, late or doubtful on the way only means
that the request goes on without keys, by the approximate view, and says why.
"""

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from msgspec import Struct, structs

from beaconry.config.gateway import Tokens
from beaconry.io.engine_tokens import EngineTokens
from beaconry.io.loading_tokens import LoadingTokens
from beaconry.io.model_directory import local_tokens
from beaconry.io.sim_tokens import sim_tokens
from beaconry.io.token_source import Source
from beaconry.io.tokenizing import Tokenizing, TokenizingStatistics, keys_of
from beaconry.io.upstream import UpstreamPool
from beaconry.kvindex.block_keys import BlockKeys
from beaconry.router.facts import AdaptersSeen, Fact, HealthChecked, LoadSampled
from beaconry.values.block_hash import Adapter, BlockHasher
from beaconry.values.endpoint import Endpoint, EngineType
from beaconry.values.kv_events import KvBlocks
from beaconry.values.request import Api, Usage
from beaconry.wire.tokens import PromptTokens

INLINE_TOKENS = 4096
"""Prompts up to this length are hashed at once: 0.5 ms with SHA-256 and blocks of 16. Longer ones let other requests in between."""


class Keyed(Struct, frozen=True):
    """A prompt's tokens, and the keys of those of its full blocks that can be reused; none if they cannot be had or trusted."""

    tokens: PromptTokens
    keys: Sequence[int]
    key_tokens: int


class _Model:
    """One model's way of tokenizing and hashing."""

    def __init__(self, blocks: KvBlocks, tokenizing: Tokenizing, cache_bytes: int) -> None:
        self.blocks = blocks
        """Of positive size."""
        self.tokenizing = tokenizing
        self.key_tokens = blocks.block_tokens
        self.keys = BlockKeys(BlockHasher(self.key_tokens, blocks.algorithm, blocks.seed), cache_bytes)


class Prompts:
    """All models. Belongs to the event loop."""

    def __init__(
        self,
        knobs: Tokens,
        executor: Executor,
        pool_of: Callable[[Endpoint], UpstreamPool],
        now_s: Callable[[], float],
    ) -> None:
        self._knobs = knobs
        self._executor = executor
        self._pool_of = pool_of
        self._now_s = now_s
        self._models: dict[str, _Model] = {}
        """Those whose engines tell their events and how they hash."""
        self._endpoints: dict[str, Endpoint] = {}
        """All that serve, by name."""
        self._local: dict[str, LoadingTokens] = {}
        """By directory."""
        self._adapters: dict[str, dict[str, str]] = {}
        """Paths of the LoRA adapters that each endpoint serves, by their names."""
        self._healthy: set[str] = set()
        """Names of those whose last health check passed."""

    def tell(self, fact: Fact) -> None:
        """Take what is of interest here from what the router is told. Raises OperatorError as `seen` does."""
        if isinstance(fact, HealthChecked):
            (self._healthy.add if fact.healthy else self._healthy.discard)(fact.name)
        elif isinstance(fact, AdaptersSeen):
            self._adapters[fact.name] = dict(fact.adapters)
        elif isinstance(fact, LoadSampled):
            endpoint, size = self._endpoints.get(fact.name), fact.sample.block_tokens
            if (
                endpoint is not None
                and endpoint.kv_blocks is not None
                and endpoint.kv_blocks.block_tokens == 0
                and size
            ):
                self.seen(structs.replace(endpoint, kv_blocks=structs.replace(endpoint.kv_blocks, block_tokens=size)))

    def seen(self, endpoint: Endpoint) -> None:
        """An endpoint serves. Raises OperatorError if nobody can hash as it is said to. Call on the event loop."""
        self._endpoints[endpoint.name] = endpoint
        blocks = endpoint.kv_blocks
        if blocks is None or endpoint.kv_events is None or not blocks.block_tokens:
            return  # without a configured block size its metrics will tell
        known = self._models.get(endpoint.model)
        if known is None or known.blocks != blocks:
            tokenizing = Tokenizing(self._sources(endpoint), self._now_s, deadline_s=self._knobs.deadline_s)
            self._models[endpoint.model] = _Model(blocks, tokenizing, self._knobs.cache_bytes)

    def gone(self, name: str) -> None:
        """An endpoint serves no longer."""
        self._endpoints.pop(name, None)
        self._adapters.pop(name, None)
        self._healthy.discard(name)

    def begin(self, model: str, api: Api, body: bytes) -> Keyed | Awaitable[Keyed] | None:
        """The keys at once, or what to await for them; None if the model's engines tell no events."""
        if not self._models:
            return None
        known, adapter = self._known(model)
        if known is None or api not in (Api.CHAT, Api.COMPLETIONS):
            return None
        told = known.tokenizing.begin(api, body)
        if not isinstance(told, PromptTokens):
            return _later(known, told, adapter)
        found = _of_adapter(told, adapter)
        if found.ids is not None and len(found.ids) > INLINE_TOKENS:
            return _hashed(known, found)
        if found.ids is None or known.keys.hasher.doubt(found.extras) is not None:
            return Keyed(found, (), 0)
        return _reusable(known, found, known.keys.keys(found.ids, found.extras))

    def reported(self, model: str, tokens: PromptTokens, usage: Usage) -> None:
        """Hold our token count against the engine's."""
        known, _ = self._known(model)
        if known is not None:
            known.tokenizing.reported(tokens, usage.prompt_tokens)

    def statistics(self) -> dict[str, TokenizingStatistics]:
        """Counts by model."""
        return {name: known.tokenizing.statistics() for name, known in self._models.items()}

    def _known(self, model: str) -> tuple[_Model | None, Adapter | None]:
        """The model that a request names, by its own name or by that of an adapter to it, which is told as well.

        Engines that were told different paths of one adapter name its blocks differently: the first one's names count.
        """
        known = self._models.get(model)
        if known is not None:
            return known, None
        for name, adapters in self._adapters.items():
            endpoint = self._endpoints.get(name)
            if model in adapters and endpoint is not None:
                return self._models.get(endpoint.model), (model, adapters[model])
        return None, None

    def _sources(self, endpoint: Endpoint) -> list[Source]:
        model, cache_bytes = endpoint.model, self._knobs.cache_bytes
        directory = self._knobs.model_dirs.get(model)
        sources: list[Source] = []
        if endpoint.engine is EngineType.SIM:
            sources.append(sim_tokens(self._executor, cache_bytes=cache_bytes))
        elif directory is not None:
            if directory not in self._local:
                load = partial(local_tokens, Path(directory), self._executor, cache_bytes=cache_bytes)
                self._local[directory] = LoadingTokens(f"the tokenizer in {directory}", load)
            sources.append(self._local[directory])
        if self._knobs.ask_engines:
            sources.append(EngineTokens(partial(self._healthy_ones, model), self._pool_of, self._now_s))
        return sources

    def _healthy_ones(self, model: str) -> list[Endpoint]:
        return [e for e in self._endpoints.values() if e.model == model and e.name in self._healthy]


async def _later(known: _Model, told: Awaitable[PromptTokens], adapter: Adapter | None) -> Keyed:
    return await _hashed(known, _of_adapter(await told, adapter))


async def _hashed(known: _Model, found: PromptTokens) -> Keyed:
    if found.ids is None or known.keys.hasher.doubt(found.extras) is not None:
        return Keyed(found, (), 0)
    return _reusable(known, found, await keys_of(known.keys, found.ids, found.extras))


def _reusable(known: _Model, found: PromptTokens, keys: Sequence[int]) -> Keyed:
    """The keys of the blocks that an engine may reuse: whole ones, without the last token, which is always computed."""
    assert found.ids is not None
    whole = len(keys) * known.key_tokens == len(found.ids)
    return Keyed(found, keys[:-1] if whole else keys, known.key_tokens)


def _of_adapter(tokens: PromptTokens, adapter: Adapter | None) -> PromptTokens:
    """The same tokens, whose blocks are an adapter's own."""
    return tokens if adapter is None else structs.replace(tokens, extras=structs.replace(tokens.extras, lora=adapter))
