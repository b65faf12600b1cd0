"""The fleet over time: what waits, how full the KV memory is, what the caches hit, how many engines serve.

Looks at the engines at even intervals; when there are too many looks, every second one is dropped and the interval doubles, so a run
of any length keeps `MOST_LOOKS` at most.
"""

from collections.abc import Collection
from statistics import fmean

from msgspec import Struct

from beaconry.sim.host import Host

MOST_LOOKS = 240
FIRST_INTERVAL_S = 1.0


class Look(Struct, frozen=True, kw_only=True):
    """The whole fleet at one moment. Counts are sums over the engines, totals since the start."""

    at_s: float
    replicas: int
    """Engines that serve."""
    waiting: int
    running: int
    kv_usage: float
    """Mean share of KV blocks in use by sequences over the engines that serve; 0 without any."""
    fullest_kv_usage: float
    """The same over the engines of one pool: that in which it is highest."""
    prompt_tokens: int
    """Looked up in prefix caches so far."""
    cached_tokens: int
    """Found there so far."""
    preemptions: int


class Recorder:
    """Follows one run."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._interval_s = FIRST_INTERVAL_S

    def look(self, now_s: float, hosts: Collection[Host]) -> float:
        """Look at the engines; returns when to look again."""
        serving = [host for host in hosts if host.answers and host.listed]
        every = [host.statistics() for host in hosts]
        pools: dict[str, list[float]] = {}
        for host, one in zip(hosts, every, strict=True):
            if host.answers and host.listed:
                pools.setdefault(host.endpoint.pool, []).append(one.kv_usage)
        self.looks.append(
            Look(
                at_s=now_s,
                replicas=len(serving),
                waiting=sum(one.waiting for one in every),
                running=sum(one.running for one in every),
                kv_usage=sum(one.kv_usage for one in every) / max(len(serving), 1),
                fullest_kv_usage=max(map(fmean, pools.values()), default=0.0),
                prompt_tokens=sum(one.prefix_queries for one in every),
                cached_tokens=sum(one.prefix_hits for one in every),
                preemptions=sum(one.preemptions for one in every),
            )
        )
        if len(self.looks) > MOST_LOOKS:
            del self.looks[1::2]
            self._interval_s *= 2
        return self.looks[-1].at_s + self._interval_s
