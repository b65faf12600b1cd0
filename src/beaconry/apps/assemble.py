"""The composition root: the only place where router, driver, door, monitor and server meet."""

import asyncio
import gc
import logging
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

from beaconry.config.gateway import GatewayConfig
from beaconry.config.tenants import TenantsFile
from beaconry.disagg.connectors import CONNECTORS
from beaconry.io.access_log import AccessLog
from beaconry.io.door import Door
from beaconry.io.driver import Driver
from beaconry.io.endpoint_file import endpoints_of
from beaconry.io.http_server import HttpServer, ServerStatistics, serve
from beaconry.io.kv_metrics import cache_families, feed_families
from beaconry.io.metrics import MetricsPage
from beaconry.io.monitor import Monitor
from beaconry.io.prompts import Prompts
from beaconry.io.recorder import Recorder
from beaconry.io.relay import Relay
from beaconry.io.tenant_file import TenantFile, limits_of, read_key
from beaconry.io.tenant_metrics import key_metrics
from beaconry.io.zmq_events import KvFeeds
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.kv_links import KvLinks
from beaconry.latency.rates import RateBook
from beaconry.latency.tier_loads import TierLoads
from beaconry.plugins.registry import Registry
from beaconry.router.caches import Caches
from beaconry.router.effects import Ended
from beaconry.router.facts import AdaptersSeen, Drain, EndpointGone, EndpointSeen, Fact
from beaconry.router.router import Router
from beaconry.router.statistics import RouterStatistics
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.tenancy.reception import Reception
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import OperatorError

_LOG = logging.getLogger(__name__)
GC_THRESHOLDS = (50_000, 20, 50)
"""Requests make few cycles and many short-lived objects: the default of 700 scans the heap hundreds of times a second."""


def make_router(config: GatewayConfig) -> Router:
    """The machine alone, as both drivers use it. Raises OperatorError for an unknown policy."""
    rates = RateBook()
    forecasts = Forecasts(rates, config.forecasts.coverage, idle=True)
    return Router(
        config,
        scheduler=make_scheduler(config.profile or config.policy, rates, Registry.installed(), forecasts),
        caches=Caches(
            ApproximateIndex(config.index_bytes),
            ExactIndex(config.exact_index_bytes),
            TierLoads(rates, config.offloading),
            KvLinks(rates, config.offloading.kv_bytes_per_token, config.disaggregation.transfer_bytes_per_s),
        ),
        rates=rates,
        forecasts=forecasts,
        rng=Random(config.seed),
    )


class Gateway:
    """A running gateway. `start` and `stop` belong to one task."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.port = 0
        """The bound port, once started."""
        self._router = make_router(config)
        self._reception = Reception()
        self.reconfigure(config)
        self._stack = AsyncExitStack()
        self._log: AccessLog | None = None
        self._recorder: Recorder | None = None
        self._driver: Driver
        self._server: HttpServer
        self._monitor: Monitor
        self._feeds: KvFeeds
        self._prompts: Prompts

    async def start(self) -> None:
        """Bind and serve. Raises OperatorError if the address or a file cannot be had; then nothing is left open."""
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        config = self.config
        _raise_file_limit()
        if config.access.log is not None:
            self._log = AccessLog(config.access.log, loop)
            self._stack.callback(self._log.close)
        if config.access.record is not None:
            policy = config.policy if config.profile is None else config.profile.policy
            self._recorder = Recorder(config.access.record, loop, policy)
            self._stack.callback(self._recorder.close)
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        connector = CONNECTORS[config.disaggregation.connector]
        connect_s = config.deadlines.connect_s
        self._driver = Driver(self._router, loop, group.create_task, connect_s, self._ended, connector)
        self._stack.callback(self._driver.close)
        self._monitor = Monitor(self.tell, self._driver.pool_of, config.health, config.scrape, loop.time)
        self._feeds = KvFeeds(self._driver.tell)
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens")
        self._stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        self._prompts = Prompts(config.tokens, executor, self._driver.pool_of, loop.time)
        page = MetricsPage(
            self.statistics,
            self.server_statistics,
            self._prompts.statistics,
            lambda: feed_families(self._feeds.statistics()),
            lambda: cache_families(self._router.cache_statistics()),
            lambda: key_metrics(self._reception.statistics()),
        )
        key_file = config.tenants.engine_key_file
        door = Door(
            self._driver,
            self._prompts,
            self._reception,
            page.slices,
            config.access,
            engine_key=None if key_file is None else read_key(Path(key_file)),
        )
        tenants = self._load_tenants()
        self._server = await serve(door.handle, config.listen.host, config.listen.port, config.limits, door.screen)
        self.port = self._server.port
        following = [] if tenants is None else [tenants.follow()]
        for work in (self._monitor.run(), self._feeds.run(), *following):
            self._stack.callback(group.create_task(work).cancel)
        for endpoint in endpoints_of(config):
            self.tell(EndpointSeen(endpoint))
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    def reconfigure(self, config: GatewayConfig) -> None:
        """Take over what may change while the gateway runs: names of models, objectives, trusted headers."""
        self._reception.configure(config.models, config.objectives, config.trusted_headers)

    def _load_tenants(self) -> TenantFile | None:
        """Know the tenants' keys before anybody comes. Raises OperatorError; a later version that is bad is only reported."""
        path = self.config.tenants.file
        if path is None:
            return None
        file = TenantFile(
            Path(path),
            take=lambda tenants: self._take_tenants(tenants, path),
            refused=lambda fault: _LOG.error("not taken over, the keys from before stay in force: %s", fault),
        )
        file.load()
        return file

    def _take_tenants(self, file: TenantsFile, path: str) -> None:
        self._reception.take_keys(file, path)
        self._driver.tell(limits_of(file))
        _LOG.info("%s: %d tenants", path, len(file.tenants))

    def tell(self, fact: Fact) -> None:
        """Hand in a fact from outside: discovery's EndpointSeen and EndpointGone."""
        self._driver.tell(fact)
        match fact:
            case EndpointSeen() if not fact.endpoint.draining:
                self._monitor.watch(fact.endpoint)
                self._hear(fact.endpoint)
            case EndpointSeen():
                self._unwatch(fact.endpoint.name)
            case EndpointGone():
                self._unwatch(fact.name)
            case _:
                self._prompts.tell(fact)
                if isinstance(fact, AdaptersSeen):
                    self._feeds.adapters(fact.name, fact.adapters)

    def _hear(self, endpoint: Endpoint) -> None:
        """Follow an endpoint's KV events. What cannot be made of them must not keep it from serving: then it is seen approximately."""
        try:
            self._prompts.seen(endpoint)
            for source in endpoint.kv_sources:
                self._feeds.watch(source)
        except OperatorError as error:
            _LOG.warning("endpoint %s: its KV events are not used: %s", endpoint.name, error)

    def _unwatch(self, name: str) -> None:
        self._monitor.unwatch(name)
        self._prompts.gone(name)
        self._feeds.unwatch(name)

    def statistics(self) -> RouterStatistics:
        """What the router has counted."""
        return self._router.statistics(self._driver.now_s())

    def server_statistics(self) -> ServerStatistics:
        """What the listener holds."""
        return self._server.statistics()

    async def stop(self, grace_s: float) -> None:
        """Take no new requests, let running ones finish for at most `grace_s`, then end them and close everything."""
        deadline_s = self._driver.now_s() + grace_s
        self.tell(Drain(deadline_s))
        await self._server.drain(deadline_s + 0.5)
        await self._server.abort_all()
        await self._stack.aclose()

    def _ended(self, relay: Relay, ended: Ended) -> None:
        if relay.tokens is not None and relay.usage is not None:
            self._prompts.reported(relay.parsed.model, relay.tokens, relay.usage)
        if self._log is not None:
            self._log.write(relay, ended)
        if self._recorder is not None and relay.request is not None:
            self._recorder.write(relay.request, relay, ended, self._router.tokens_per_byte(relay.request.model))


def _raise_file_limit() -> None:
    """Every connection takes a file descriptor, and the usual soft limit of 1,024 is meant for interactive programs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
