"""What an engine says of itself on pages that only an examination reads: version, models, cache settings, where its KV events are.

Sources: vLLM's `/version`, `/v1/models`, `/metrics` (`vllm:cache_config_info`) and `/kv_event_sources`. Whatever cannot be read is None.
"""

import re
from typing import TypeVar

import msgspec
from msgspec import Struct

from beaconry.values.endpoint import KvEventsAddress

_Kind = TypeVar("_Kind")
_CACHE_CONFIG = re.compile(rb"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(rb'(\w+)="((?:[^"\\]|\\.)*)"')
_FETCHED = re.compile(
    rb'^vllm:prompt_tokens_by_source_total\{[^}\n]*source="external_kv_transfer"[^}\n]*\}[ \t]+(\d[^ \t\r\n]*)',
    re.MULTILINE,
)
_PORT = re.compile(r":(\d+)$")


class _Version(Struct):
    version: str


class _Card(Struct):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Cards(Struct):
    data: list[_Card]


class _Source(Struct):
    endpoint: str
    replay_endpoint: str | None = None


class _TokensDetails(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int
    prompt_tokens_details: _TokensDetails | None = None


class Completion(Struct):
    """The parts of a completion that tell of the engine rather than of the text."""

    created: int
    """The engine's clock, s."""
    usage: _Usage

    @property
    def cached_tokens(self) -> int | None:
        """None if the engine does not say."""
        details = self.usage.prompt_tokens_details
        return None if details is None else details.cached_tokens


class Models(Struct, frozen=True):
    """What an engine serves."""

    names: tuple[str, ...]
    adapters: dict[str, str]
    """Paths of LoRA adapters by name: they enter the block hashes."""


def parse_version(body: bytes) -> str | None:
    """The engine's version."""
    found = _decode(body, _Version)
    return None if found is None else found.version


def parse_models(body: bytes) -> Models | None:
    """The models and adapters it answers to."""
    found = _decode(body, _Cards)
    if found is None:
        return None
    adapters = {card.id: card.root for card in found.data if card.parent is not None and card.root is not None}
    return Models(tuple(card.id for card in found.data), adapters)


def parse_completion(body: bytes) -> Completion | None:
    """A completion's frame."""
    return _decode(body, Completion)


def parse_cache_config(metrics: bytes) -> dict[str, str]:
    """The labels of `vllm:cache_config_info`: block_size, prefix_caching_hash_algo, enable_prefix_caching and more. Empty if absent."""
    line = _CACHE_CONFIG.search(metrics)
    if line is None:
        return {}
    return {name.decode(): value.decode("utf-8", "replace") for name, value in _LABEL.findall(line[1])}


def parse_event_sources(body: bytes, host: str) -> KvEventsAddress | None:
    """Where the KV events are, for one who reaches the engine at `host`. None if there are none, or the ranks' ports are not in a row."""
    found = _decode(body, dict[str, _Source])
    if not found:
        return None
    ranks = [found.get(str(rank)) for rank in range(len(found))]
    endpoints = [None if source is None else _seen_from(source.endpoint, host) for source in ranks]
    first = ranks[0]
    if first is None or endpoints[0] is None:
        return None
    try:
        told = KvEventsAddress(
            endpoint=endpoints[0],
            replay=None if first.replay_endpoint is None else _seen_from(first.replay_endpoint, host),
            ranks=len(ranks),
        )
    except ValueError:
        return None
    start = _PORT.search(told.endpoint)
    if len(ranks) > 1 and start is not None:
        expected = [f"{told.endpoint[: start.start()]}:{int(start[1]) + rank}" for rank in range(len(ranks))]
        if endpoints != expected:
            return None
    return told


def _seen_from(address: str, host: str) -> str:
    """An address that the engine binds, as others reach it."""
    for everywhere in ("tcp://*:", "tcp://0.0.0.0:", "tcp://[::]:"):
        if address.startswith(everywhere):
            return f"tcp://{host}:{address.removeprefix(everywhere)}"
    return address


def _decode(body: bytes, kind: type[_Kind]) -> _Kind | None:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def parse_fetched_tokens(page: bytes) -> float:
    """Prompt tokens whose KV vLLM has fetched from another engine; 0 where a metrics page tells of none."""
    try:
        return sum(float(value) for value in _FETCHED.findall(page))
    except ValueError:
        return 0.0
