"""KV on its way between engines in virtual time: who fetches from whom, over links that are shared, and what becomes of it.

As with vLLM's NIXL connector: the decode engine fetches once it has room, the prefill engine frees its blocks when they are read. While a
decode leg is at its engine, this renews the lease, so it ends only where nobody asks any more: a request lost between its legs, or a
decode engine that died. Who finds nothing to fetch fails with 500 (`kv_load_failure_policy: fail`), or computes the prompt (`recompute`).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping

from beaconry.engine_model.kv_link import KvLink, KvWay
from beaconry.engine_model.sequence import Sequence
from beaconry.sim.flight import Leg
from beaconry.sim.heap import NEVER, EventHeap
from beaconry.sim.host import Host

RENEWED_SHARE = 2 / 3
"""Of a lease, is left when its reader has just been heard for the last time."""


class Transfers:
    """All KV on its way. `_outwards` and `_inwards` are the links of the engines by name."""

    def __init__(
        self,
        heap: EventHeap,
        ways: Mapping[str, KvWay],
        running: Mapping[str, Leg],
        failed: Callable[[Leg], None],
    ) -> None:
        """`ways` of engines by name; between those that have none KV comes at once.

        `running` are the legs that engines work on, by sequence id; `failed` is told of those whose KV is gone.
        """
        self._heap = heap
        self._ways = ways
        self._running = running
        self._failed = failed
        self._outwards: defaultdict[str, KvLink] = defaultdict(KvLink)
        self._inwards: defaultdict[str, KvLink] = defaultdict(KvLink)

    def expect(self, leg: Leg) -> None:
        """A decode leg is at its engine: from now on its KV is kept for it."""
        if leg.kept is not None:
            leg.kept.host.renew(leg.kept.sequence_id, NEVER)

    def fetch(self, sequence: Sequence) -> None:
        """A decode leg's engine has room for its prompt's KV."""
        leg, tokens = self._running[sequence.id], sequence.fetched
        kept = leg.kept
        if kept is None or not kept.there:
            self._failed(leg)
            return
        now_s = self._heap.now_s
        through_s = (
            self._outwards[kept.host.name].send(now_s, self._seconds(kept.host, tokens)),
            self._inwards[leg.host.name].send(now_s, self._seconds(leg.host, tokens)),
        )
        way = self._ways.get(leg.host.name)
        self._heap.at(max(through_s) + (0.0 if way is None else way.latency_s), self._come, leg)

    def leave(self, leg: Leg) -> None:
        """A decode leg is cancelled at its engine, which lets the other one know."""
        if leg.kept is not None:
            leg.kept.host.release(leg.kept.sequence_id)

    def lost(self, leg: Leg) -> None:
        """A decode leg's engine has died, and is heard no more."""
        if leg.kept is not None:
            lease_s = leg.kept.host.engine.settings.kv_lease_s
            leg.kept.host.renew(leg.kept.sequence_id, self._heap.now_s + RENEWED_SHARE * lease_s)

    def _come(self, leg: Leg) -> None:
        kept = leg.kept
        assert kept is not None
        if leg.sequence_id not in self._running:
            return
        if kept.there:
            kept.host.release(kept.sequence_id)
            leg.host.imported(leg.sequence_id)
        else:
            self._failed(leg)

    def _seconds(self, host: Host, tokens: int) -> float:
        way = self._ways.get(host.name)
        return 0.0 if way is None else way.seconds(tokens)
