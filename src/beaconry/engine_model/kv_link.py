"""The way KV takes between engines: bytes per token, over a link that transfers share.

A transfer goes through two links, the reader's inwards and the holder's outwards. Each serves what it is given in order, at full speed, and
a transfer has ended when both have; so whichever is the bottleneck decides, and an idle one costs nothing. A reader asks in the order in
which its engine makes room, so serving in order is close to what readers see, and each transfer's end is known when it begins.
"""

from enum import StrEnum
from types import MappingProxyType
from typing import Final

from msgspec import Struct


class Wire(StrEnum):
    """What the bytes go over."""

    NVLINK = "nvlink"
    """Engines on one machine, GPU to GPU."""
    INFINIBAND = "infiniband"
    """An adapter of 400 Gb/s for each accelerator, as in most H100 and H200 machines; RoCE and EFA of that speed too."""
    TCP = "tcp"
    """No RDMA: UCX falls back to it without saying so."""


class KvWay(Struct, frozen=True, kw_only=True):
    """How KV goes in and out of an engine."""

    bytes_per_token: float
    bytes_per_s: float
    """One direction, all accelerators of the engine together."""
    latency_s: float
    """Per transfer, beside its bytes: the question, the list of blocks, the notice that they are read."""

    def seconds(self, tokens: int) -> float:
        """Return how long the bytes take with nothing else on the link."""
        return tokens * self.bytes_per_token / self.bytes_per_s


def make_way(
    wire: Wire,
    bytes_per_token: float,
    accelerators: int,
    *,
    gb_per_s: float | None = None,
    latency_s: float | None = None,
) -> KvWay:
    """How KV goes in and out of an engine of so many accelerators; `gb_per_s` (of each) and `latency_s` instead of the wire's own."""
    per_s = BYTES_PER_S[wire] if gb_per_s is None else 1e9 * gb_per_s
    return KvWay(
        bytes_per_token=bytes_per_token,
        bytes_per_s=per_s * accelerators,
        latency_s=LATENCY_S[wire] if latency_s is None else latency_s,
    )


class KvLink:
    """One direction of an engine's link. `_free_s` is when it has sent all it has been given."""

    def __init__(self) -> None:
        self._free_s = 0.0

    def send(self, now_s: float, seconds: float) -> float:
        """Put a transfer behind the others; return when its last byte is through."""
        self._free_s = max(self._free_s, now_s) + seconds
        return self._free_s


BYTES_PER_S: Final = MappingProxyType({Wire.NVLINK: 200e9, Wire.INFINIBAND: 40e9, Wire.TCP: 3e9})
"""Per accelerator and direction, as reached and not as printed on the box. NVLink 4 has 450 GB/s and copies of scattered blocks reach about
half; 400 Gb/s are 50 GB/s, of which RDMA reads of small blocks reach about 40; TCP through UCX reaches some 25 Gb/s. Estimates: measure
your own with `vllm:nixl_bytes_transferred` over `vllm:nixl_xfer_time_seconds`. Dynamo's simulator takes 64 GB/s."""

LATENCY_S: Final = MappingProxyType({Wire.NVLINK: 0.002, Wire.INFINIBAND: 0.005, Wire.TCP: 0.010})
"""Per transfer: thousands of block descriptors are prepared, posted and polled for once a step. Estimates."""
