"""Asks every endpoint how it is: its health, its load as its metrics page tells it, and the LoRA adapters that it serves.

One task per endpoint. The tasks are spread over the interval by their number (golden ratio, even for any count), and keep to a fixed
grid, so that a fleet is asked evenly and not in bursts. An endpoint that does not answer its health check is not asked for its load.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import Callable
from typing import Final

from beaconry.config.gateway import Health, Scrape
from beaconry.io.fetch import fetch
from beaconry.io.upstream import UpstreamPool
from beaconry.router.facts import AdaptersSeen, Fact, HealthChecked, LoadSampled
from beaconry.values.endpoint import Endpoint, EngineType
from beaconry.values.errors import EngineError, OperatorError
from beaconry.wire.engine_metrics import parse_load
from beaconry.wire.engine_pages import parse_models

HEALTH_BYTES = 65_536
"""Of a health check's answer; engines send none or a line."""
RECHECK = 0.25
"""Of the interval, from a failed health check to the next one."""
MODELS_BYTES = 1_048_576
ADAPTERS: Final = 1024
"""Of one endpoint, at most: each becomes a label of the metrics."""
RETRY_MAX_S = 60.0
"""How rarely an endpoint without metrics is asked for them: it may get some by a restart with other flags."""
_WITH_ADAPTERS = frozenset({EngineType.VLLM, EngineType.SGLANG, EngineType.SIM})
"""Engines whose model list tells adapters from models."""
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_LOG = logging.getLogger(__name__)


class Monitor:
    """Checks and scrapes the endpoints it is told to watch, and tells what it has found."""

    def __init__(
        self,
        tell: Callable[[Fact], None],
        pool_of: Callable[[Endpoint], UpstreamPool],
        health: Health,
        scrape: Scrape,
        now_s: Callable[[], float],
    ) -> None:
        if health.interval_s <= 0 or scrape.interval_s <= 0:
            raise OperatorError("health.intervalS and scrape.intervalS must be above 0")
        self._tell = tell
        self._pool_of = pool_of
        self._health = health
        self._scrape = scrape
        self._now_s = now_s
        self._endpoints: dict[str, Endpoint] = {}
        """All that are watched, by name."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """While running: one per endpoint."""
        self._group: asyncio.TaskGroup | None = None
        """None while not running."""
        self._begun = 0
        """Watches begun so far."""

    def watch(self, endpoint: Endpoint) -> None:
        """Watch a new endpoint, or one that has changed."""
        if self._endpoints.get(endpoint.name) == endpoint:
            return
        self.unwatch(endpoint.name)
        self._endpoints[endpoint.name] = endpoint
        if self._group is not None:
            self._begin(self._group, endpoint)

    def unwatch(self, name: str) -> None:
        """Watch an endpoint no longer; what is under way there is dropped."""
        self._endpoints.pop(name, None)
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for endpoint in self._endpoints.values():
                    self._begin(group, endpoint)
                await asyncio.Event().wait()
            finally:
                self._group = None
                self._tasks.clear()

    def _begin(self, group: asyncio.TaskGroup, endpoint: Endpoint) -> None:
        self._tasks[endpoint.name] = group.create_task(self._follow(endpoint, share(self._begun)))
        self._begun += 1

    async def _follow(self, endpoint: Endpoint, phase: float) -> None:
        """Check and scrape one endpoint, beginning after `phase` (0..1) of the interval."""
        healthy, pause_s = True, self._scrape.interval_s
        adapters: dict[str, str] | None = None
        begun_s = self._now_s()
        check_s = begun_s + phase * self._health.interval_s
        scrape_s = begun_s + phase * pause_s
        models_s = scrape_s if endpoint.engine in _WITH_ADAPTERS else math.inf
        models_pace_s = self._scrape.models_interval_s
        while True:
            due_s = min(check_s, scrape_s, models_s)
            await asyncio.sleep(due_s - self._now_s())
            # what was due counts as due, although a timer may ring a fraction of a millisecond early
            if check_s <= max(due_s, self._now_s()):
                healthy = await self._check(endpoint, before=healthy)
                now_s = self._now_s()
                pace_s = self._health.interval_s
                # a failure is confirmed, or proved a moment's trouble, soon: requests are waiting there
                check_s = next_due_s(check_s, pace_s, now_s) if healthy else now_s + pace_s * RECHECK
            if scrape_s <= max(due_s, self._now_s()):
                if healthy:
                    pause_s = await self._sample(endpoint, pause_s)
                scrape_s = next_due_s(scrape_s, pause_s, self._now_s())
            if models_s <= max(due_s, self._now_s()):
                if healthy:
                    adapters = await self._list_adapters(endpoint, adapters)
                models_s = next_due_s(begun_s + phase * models_pace_s, models_pace_s, self._now_s())

    async def _check(self, endpoint: Endpoint, *, before: bool) -> bool:
        """Check health once and tell it; log it where it differs from `before`."""
        health = self._health
        try:
            answer = await fetch(self._pool_of(endpoint), health.path, endpoint.address, health.timeout_s, HEALTH_BYTES)
        except EngineError as error:
            healthy, why = False, str(error)
        else:
            healthy = is_healthy(answer.status, endpoint.engine)
            why = f"GET {health.path} from {endpoint.address}: status {answer.status}"
        if healthy and not before:
            _LOG.info("endpoint %s passes its health check again: %s", endpoint.name, why)
        elif before and not healthy:
            _LOG.warning("endpoint %s fails its health check: %s", endpoint.name, why)
        self._tell(HealthChecked(endpoint.name, healthy))
        return healthy

    async def _list_adapters(self, endpoint: Endpoint, before: dict[str, str] | None) -> dict[str, str] | None:
        """Read which adapters are served, and tell it where that differs from `before`. Returns what is known now."""
        scrape = self._scrape
        try:
            answer = await fetch(
                self._pool_of(endpoint), "/v1/models", endpoint.address, scrape.timeout_s, MODELS_BYTES
            )
        except EngineError:
            return before
        models = parse_models(answer.body) if answer.status == 200 else None
        if models is None:
            return before
        adapters = dict(itertools.islice(models.adapters.items(), ADAPTERS))
        if adapters != before:
            self._tell(AdaptersSeen(endpoint.name, adapters))
        return adapters

    async def _sample(self, endpoint: Endpoint, pause_s: float) -> float:
        """Scrape once and tell what was found. Returns the time between this and the next scrape, given the last one."""
        scrape = self._scrape
        path = metrics_path(endpoint.engine, scrape.path)
        try:
            answer = await fetch(self._pool_of(endpoint), path, endpoint.address, scrape.timeout_s, scrape.body_bytes)
        except EngineError:
            return pause_s  # a moment's trouble: the last sample's age shows it, and the health check judges it
        sample = parse_load(answer.body if answer.status == 200 else b"", endpoint.engine, self._now_s())
        if sample.running is None and sample.waiting is None and sample.kv_usage is None:
            return min(2.0 * pause_s, max(RETRY_MAX_S, scrape.interval_s))
        self._tell(LoadSampled(endpoint.name, sample))
        return scrape.interval_s


def share(index: int) -> float:
    """A number in 0..1 for each index, such that any first n of them lie evenly (the golden ratio's multiples)."""
    return index * _GOLDEN % 1.0


def next_due_s(due_s: float, interval_s: float, now_s: float) -> float:
    """The first time after `now_s` that lies whole intervals after `due_s`: what was missed is left out, not made up for."""
    return due_s + interval_s * (max(0.0, (now_s - due_s) // interval_s) + 1.0)


def is_healthy(status: int, engine: EngineType) -> bool:
    """Whether a health check's answer means that the engine serves. llama-cpp-python has no health path: it serves if it answers."""
    return 200 <= status < 300 or (status == 404 and engine is EngineType.LLAMACPP)


def metrics_path(engine: EngineType, configured: str) -> str:
    """Where an engine has its metrics, unless the operator says otherwise: trtllm-serve has JSON under the usual path."""
    if engine is EngineType.TRTLLM and configured == Scrape().path:
        return "/prometheus/metrics"
    return configured
