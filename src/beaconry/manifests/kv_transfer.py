"""What makes the engines of a plan hand KV over: wherever one pool computes prompts for the others.

Pools that answer take KV and give none, those of role both too: so vLLM wants it, and runs whole requests just the same. The side channel,
by which engines find each other's memory, stays on the loopback like everything else.
"""

import msgspec

from beaconry.manifests.kv_events import HOST
from beaconry.manifests.model_service import SimEngine, Spec, VllmEngine
from beaconry.values.endpoint import Role

_VLLM_CONNECTORS = {"nixl": "NixlConnector"}
"""vLLM's names of `kvTransfer.connector`."""


def takes_side_channel(spec: Spec, engine: SimEngine | VllmEngine) -> bool:
    """An engine of the spec needs a port for hand-overs."""
    return isinstance(engine, VllmEngine) and any(pool.role is Role.PREFILL for pool in spec.pools)


def transfer_flags(spec: Spec, role: Role) -> tuple[str, ...]:
    """The flags that make a vLLM engine of this role give KV, or take it."""
    config = {
        "kv_connector": _VLLM_CONNECTORS[spec.kv_transfer.connector],
        "kv_role": "kv_producer" if role is Role.PREFILL else "kv_consumer",
        "kv_load_failure_policy": spec.kv_transfer.on_load_failure,
    }
    return ("--kv-transfer-config", msgspec.json.encode(config).decode())


def simulated_transfer_flags(spec: Spec, role: Role) -> tuple[str, ...]:
    """The flags that make a simulated engine of this role give KV, or take it; none without a prefill pool."""
    if not any(pool.role is Role.PREFILL for pool in spec.pools):
        return ()
    part = "producer" if role is Role.PREFILL else "consumer"
    return ("--kv-role", part, "--kv-load-failure-policy", spec.kv_transfer.on_load_failure)


def transfer_environment(port: int) -> dict[str, str]:
    """Where a vLLM engine answers those that want to read its memory. What UCX is to use is up to the machine: it chooses by itself."""
    return {"VLLM_NIXL_SIDE_CHANNEL_HOST": HOST, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
