"""The asyncio driver: it feeds facts to the router and carries out its effects. The virtual one is `sim/fleet.py`."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from beaconry.disagg.connectors import Connector
from beaconry.io.relay import Relay
from beaconry.io.upstream import UpstreamPool
from beaconry.router.effects import Answer, BreakStream, CancelLeg, Ended, StartLeg, TellAllowance, WakeAt
from beaconry.router.facts import EndpointGone, Fact, TimerDue
from beaconry.router.router import Router
from beaconry.values.endpoint import Endpoint
from beaconry.values.stage import WHOLE

_LOG = logging.getLogger(__name__)


class Driver:
    """Between the router and the sockets."""

    def __init__(
        self,
        router: Router,
        loop: asyncio.AbstractEventLoop,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        connect_s: float,
        on_ended: Callable[[Relay, Ended], None],
        connector: Connector,
    ) -> None:
        self.router = router
        self.now_s = loop.time
        self._loop = loop
        self.spawn = spawn
        self._connect_s = connect_s
        self._connector = connector
        self._on_ended = on_ended
        self._relays: dict[str, Relay] = {}
        """By request id, from arrival until Ended."""
        self._pools: dict[str, UpstreamPool] = {}
        """By endpoint name, made when first needed."""
        self._keep_nothing: set[str] = set()
        """Endpoints of which that has been said."""
        self._timer: asyncio.TimerHandle | None = None
        self._facts: deque[Fact] = deque()
        """Facts that arose while effects are carried out: handled after them, in order."""
        self._busy = False

    def admit(self, relay: Relay, request_id: str, fact: Fact) -> None:
        """Bring in a new request."""
        self._relays[request_id] = relay
        self.tell(fact)

    def tell(self, fact: Fact) -> None:
        """Hand a fact to the router and carry out its effects. A fact told meanwhile waits its turn."""
        if self._busy:
            self._facts.append(fact)
            return
        self._busy = True
        try:
            self._take(fact)
            while self._facts:
                self._take(self._facts.popleft())
        finally:
            self._busy = False

    def _take(self, fact: Fact) -> None:
        for effect in self.router.handle(fact, self.now_s()):
            match effect:
                case StartLeg():
                    relay = self._relays[effect.request_id]
                    if effect.stage is WHOLE:
                        relay.start(effect, self.pool_of(effect.endpoint))
                    else:
                        relay.start_stage(effect, self.pool_of(effect.endpoint), self._connector)
                case Ended():
                    self._on_ended(self._relays.pop(effect.request_id), effect)
                case WakeAt():
                    self._wake_at(effect.at_s)
                case CancelLeg():
                    self._relays[effect.request_id].cancel()
                case TellAllowance():
                    self._relays[effect.request_id].allowances = effect.allowances
                case Answer():
                    self._relays[effect.request_id].answer(effect)
                case BreakStream():
                    self._relays[effect.request_id].break_off(effect)
        if type(fact) is EndpointGone:
            self._keep_nothing.discard(fact.name)
            pool = self._pools.pop(fact.name, None)
            if pool is not None:
                pool.close()

    def kept_nothing(self, endpoint: Endpoint) -> None:
        """Tell the operator, once: clients are served all the same, so nobody else would."""
        if endpoint.name not in self._keep_nothing:
            self._keep_nothing.add(endpoint.name)
            _LOG.warning(
                "endpoint %s has role prefill, but its answers name no KV that could be fetched: "
                "has it been started to hand KV over (vLLM: --kv-transfer-config, kv_producer)?",
                endpoint.name,
            )

    def pool_of(self, endpoint: Endpoint) -> UpstreamPool:
        """The connections to an endpoint; fresh ones if it has moved."""
        pool = self._pools.get(endpoint.name)
        if pool is None or pool.host != endpoint.host or pool.port != endpoint.port:
            if pool is not None:
                pool.close()
            pool = UpstreamPool(endpoint.host, endpoint.port, self._connect_s, self.spawn)
            self._pools[endpoint.name] = pool
        return pool

    def close(self) -> None:
        """Drop all connections to endpoints."""
        if self._timer is not None:
            self._timer.cancel()
        for pool in self._pools.values():
            pool.abort()
        self._pools.clear()

    @property
    def connections(self) -> int:
        """Open connections to endpoints."""
        return sum(pool.connections for pool in self._pools.values())

    def _wake_at(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.tell(TimerDue())
