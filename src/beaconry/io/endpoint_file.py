"""The static endpoint list of a gateway configuration, re-read when the file changes.

The file is looked at once a second (size, time, inode: replacing it atomically and mounted ConfigMaps are noticed) and read once it
has stayed the same for two looks, so that a file being written is not taken half-way. A version that cannot be loaded, or lists an
endpoint twice, changes nothing: it is reported, and what was loaded before stays in force.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import structs

from beaconry.config.gateway import EndpointConfig, GatewayConfig
from beaconry.io.config_file import read_yaml
from beaconry.router.facts import EndpointGone, EndpointSeen, Fact
from beaconry.values.block_hash import DEFAULT_SEED
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import OperatorError
from beaconry.values.kv_events import KvBlocks

VLLM_BLOCKS = KvBlocks(block_tokens=16, algorithm="sha256", seed=DEFAULT_SEED)
"""vLLM's defaults."""
Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change in ns, inode."""


def read_gateway_config(path: Path) -> GatewayConfig:
    """Load the file, with its endpoints checked. Raises OperatorError."""
    config = read_yaml(path, GatewayConfig)
    refuse_duplicates(config.endpoints, str(path))
    return config


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


class EndpointFile:
    """Follows one file. `tell` gets the facts, `refused` the reason why a new version was not taken."""

    def __init__(
        self,
        path: Path,
        loaded: GatewayConfig,
        *,
        tell: Callable[[Fact], None],
        refused: Callable[[OperatorError], None],
        poll_s: float = 1.0,
    ) -> None:
        self._path = path
        self._tell = tell
        self._refused = refused
        self._poll_s = poll_s
        self._loaded = loaded
        self._stamp: Stamp | None = None  # of the version last read, good or bad; None until the first look

    async def follow(self) -> None:
        """Watch until cancelled."""
        pending: Stamp | None = None
        while True:
            stamp = _stamp(self._path)
            if stamp is not None and stamp == pending and stamp != self._stamp:
                self._stamp = stamp
                await self._reread()
            pending = stamp
            await asyncio.sleep(self._poll_s)

    async def _reread(self) -> None:
        try:
            # In a thread: a list of a thousand engines takes long enough to parse to be felt by the streams.
            config = await asyncio.to_thread(read_gateway_config, self._path)
        except OperatorError as fault:
            self._refused(fault)
            return
        fixed = [field for field in config.__struct_fields__ if field != "endpoints"]
        changed = [field for field in fixed if getattr(config, field) != getattr(self._loaded, field)]
        if changed:
            self._refused(
                OperatorError(
                    f"{self._path}: {', '.join(changed)}: takes effect at the next start; endpoints are taken now"
                )
            )
        for fact in changes(endpoints_of(self._loaded), endpoints_of(config)):
            self._tell(fact)
        self._loaded = config


def _stamp(path: Path) -> Stamp | None:
    """None if there is no file: it is being replaced, or gone; what was loaded stays in force."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ino)
