"""The static endpoint list of a gateway configuration, re-read when the file changes; names of models and terms along with it.

A version that cannot be loaded, or lists an endpoint twice, changes nothing: it is reported, and what was loaded before stays in force.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import structs

from beaconry.config.gateway import EndpointConfig, GatewayConfig
from beaconry.io.config_file import read_yaml
from beaconry.io.watched_file import POLL_S, follow
from beaconry.router.facts import EndpointGone, EndpointSeen, Fact
from beaconry.values.block_hash import DEFAULT_SEED
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import OperatorError
from beaconry.values.kv_events import KvBlocks

VLLM_BLOCKS = KvBlocks(block_tokens=16, algorithm="sha256", seed=DEFAULT_SEED)
"""vLLM's defaults."""


def read_gateway_config(path: Path) -> GatewayConfig:
    """Load the file, with its endpoints checked. Raises OperatorError."""
    config = read_yaml(path, GatewayConfig)
    refuse_duplicates(config.endpoints, str(path))
    return structs.replace(config, tenants=config.tenants.beside(path))


def refuse_duplicates(endpoints: Sequence[EndpointConfig], source: str) -> None:
    """Raise OperatorError if two endpoints share a name, or an address and model: their load would be counted apart."""
    seen: dict[tuple[str, ...], int] = {}
    for index, one in enumerate(endpoints):
        for key in (("the name", one.name), ("address and model", f"{one.host}:{one.port} {one.model}")):
            if key in seen:
                raise OperatorError(
                    f"{source}: endpoints[{index}] has {key[0]} of endpoints[{seen[key]}] ({key[1]}); remove one"
                )
            seen[key] = index


def endpoints_of(config: GatewayConfig) -> tuple[Endpoint, ...]:
    """The configured endpoints as values."""
    return tuple(
        Endpoint(**structs.asdict(one) | {"kv_blocks": one.kv_blocks or (VLLM_BLOCKS if one.kv_events else None)})
        for one in config.endpoints
    )


def changes(old: Iterable[Endpoint], new: Iterable[Endpoint]) -> list[Fact]:
    """What the router must be told to get from `old` to `new`: additions and changes first, so that a model never runs dry between."""
    before = {endpoint.name: endpoint for endpoint in old}
    after = {endpoint.name: endpoint for endpoint in new}
    facts: list[Fact] = [EndpointSeen(endpoint) for name, endpoint in after.items() if before.get(name) != endpoint]
    return [*facts, *(EndpointGone(name) for name in before if name not in after)]


AT_ONCE = frozenset({"endpoints", "models", "objectives", "trusted_headers"})
"""Sections that take effect when the file changes."""


class EndpointFile:
    """Follows one file. `tell` gets the facts, `reconfigure` each good version, `refused` why (some of) a version was not taken."""

    def __init__(
        self,
        path: Path,
        loaded: GatewayConfig,
        *,
        tell: Callable[[Fact], None],
        reconfigure: Callable[[GatewayConfig], None],
        refused: Callable[[OperatorError], None],
        poll_s: float = POLL_S,
    ) -> None:
        self._path = path
        self._tell = tell
        self._reconfigure = reconfigure
        self._refused = refused
        self._poll_s = poll_s
        self._loaded = loaded

    async def follow(self) -> None:
        """Watch until cancelled."""
        await follow(self._path, self._reread, self._poll_s)

    async def _reread(self) -> None:
        try:
            # In a thread: a list of a thousand engines takes long enough to parse to be felt by the streams.
            config = await asyncio.to_thread(read_gateway_config, self._path)
        except OperatorError as fault:
            self._refused(fault)
            return
        fixed = [field for field in config.__struct_fields__ if field not in AT_ONCE]
        changed = [field for field in fixed if getattr(config, field) != getattr(self._loaded, field)]
        if changed:
            self._refused(
                OperatorError(
                    f"{self._path}: {', '.join(changed)}: takes effect at the next start; the rest is taken now"
                )
            )
        self._reconfigure(config)
        for fact in changes(endpoints_of(self._loaded), endpoints_of(config)):
            self._tell(fact)
        self._loaded = config
