"""What the engines of a plan are to tell of their KV caches: the flags that make them do so, and how their blocks are named.

Everything stays on the loopback: events hold the prompts' tokens.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from beaconry.manifests.flags import last_value
from beaconry.manifests.model_service import SimEngine, VllmEngine
from beaconry.values.block_hash import DEFAULT_SEED, engine_seed
from beaconry.values.endpoint import KvEventsAddress
from beaconry.values.kv_events import KvBlocks

HOST = "127.0.0.1"
REFUSED_FLAGS = {
    "--kv-events-config": "events are published where the gateway listens; remove it, or set engine.kvEvents: false",
    "--kv-events-port": "ports are chosen when the fleet starts; remove it",
    "--kv-replay-port": "ports are chosen when the fleet starts; remove it",
    "--data-parallel-size": "use replicas instead, each is an engine of its own; or set engine.kvEvents: false",
    "-dp": "use replicas instead, each is an engine of its own; or set engine.kvEvents: false",
}
"""In the arguments of an engine whose events are planned."""
_SIM_BLOCK_TOKENS = "16"
_AS_METRICS_SAY = "0"
"""vLLM's own block size depends on platform, attention and model."""


class EventPorts(Struct, frozen=True, kw_only=True):
    """Where one engine publishes."""

    live: int
    replay: int

    @property
    def address(self) -> KvEventsAddress:
        """Where to listen."""
        return KvEventsAddress(endpoint=f"tcp://{HOST}:{self.live}", replay=f"tcp://{HOST}:{self.replay}")


def tells(engine: SimEngine | VllmEngine, args: Sequence[str]) -> bool:
    """Whether an engine is to publish: unless it is not wanted, or there is no prefix cache."""
    return engine.kv_events and "--no-enable-prefix-caching" not in args


def event_flags(engine: SimEngine | VllmEngine, topic: str, ports: EventPorts) -> tuple[str, ...]:
    """The flags that make an engine publish."""
    if isinstance(engine, SimEngine):
        return (
            *("--kv-events-port", str(ports.live), "--kv-replay-port", str(ports.replay)),
            *("--kv-events-topic", topic),
        )
    config = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        # vLLM binds only what has a "*" or "::" in it, and "*" is every interface: so the loopback as IPv6 writes it.
        "endpoint": f"tcp://[::ffff:{HOST}]:{ports.live}",
        "replay_endpoint": f"tcp://{HOST}:{ports.replay}",
        "topic": topic,
    }
    return ("--kv-events-config", msgspec.json.encode(config).decode())


def offloading_flags(engine: SimEngine | VllmEngine, gib: float) -> tuple[str, ...]:
    """The flags that make an engine keep copies of blocks in its host's memory, and tell of them as fully as of those on the GPU."""
    size = ("--kv-offloading-size", f"{gib:g}")
    if isinstance(engine, SimEngine):
        return size
    config = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"self_describing_kv_events": True},
    }
    return (*size, "--kv-transfer-config", msgspec.json.encode(config).decode())


def kv_blocks(engine: SimEngine | VllmEngine, args: Sequence[str], environment: Mapping[str, str]) -> KvBlocks:
    """How an engine started with these arguments names its blocks. OperatorError if each start would name them differently."""
    simulated = isinstance(engine, SimEngine)
    size = last_value(args, "--block-size") or (_SIM_BLOCK_TOKENS if simulated else _AS_METRICS_SAY)
    algorithm = last_value(args, "--prefix-caching-hash-algo") or ("fast" if simulated else "sha256")
    return KvBlocks(
        block_tokens=int(size) if size.isdecimal() else 0,  # else the engine refuses it
        algorithm=algorithm,
        seed=DEFAULT_SEED if simulated else engine_seed(algorithm, environment.get("PYTHONHASHSEED")),
    )
