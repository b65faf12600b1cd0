"""Fetching, health checks and scrapes against engines that answer, hang, lie, vanish and come back."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from beaconry.config.gateway import Health, Limits, Scrape
from beaconry.io.fetch import Fetched, fetch
from beaconry.io.http_exchange import Exchange
from beaconry.io.http_server import serve
from beaconry.io.monitor import ADAPTERS, Monitor, is_healthy, metrics_path, next_due_s, share
from beaconry.io.upstream import UpstreamPool
from beaconry.router.facts import AdaptersSeen, HealthChecked, LoadSampled
from beaconry.values.endpoint import Endpoint, EngineType
from beaconry.values.errors import EngineError, OperatorError

PATIENCE_S = 20.0
PAGE = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n"


def run(test: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), PATIENCE_S))  # type: ignore[arg-type]


class Engine:
    """A peer whose answers a test sets: status and body by path; None never answers."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes] | None] = {"/health": (200, b""), "/metrics": (200, PAGE)}
        self.asked: list[str] = []
        self.reached = asyncio.Event()
        """Set by the first request."""
        self.left = asyncio.Event()
        """Set when a client gave up waiting."""
        self.port = 0

    def handle(self, exchange: Exchange) -> None:
        self.asked.append(exchange.path)
        self.reached.set()
        answer = self.answers.get(exchange.path, (404, b"not found"))
        if answer is None:
            exchange.on_close = self.left.set
        else:
            exchange.respond(*answer)


@contextlib.asynccontextmanager
async def an_engine() -> AsyncIterator[Engine]:
    engine = Engine()
    server = await serve(engine.handle, "127.0.0.1", 0, Limits())
    engine.port = server.port
    try:
        yield engine
    finally:
        await server.abort_all()


@contextlib.asynccontextmanager
async def a_pool(port: int) -> AsyncIterator[UpstreamPool]:
    async with asyncio.TaskGroup() as group:
        pool = UpstreamPool("127.0.0.1", port, 5.0, group.create_task)
        try:
            yield pool
        finally:
            pool.abort()


class Watching:
    """A monitor at work, and what it has told."""

    def __init__(self, group: asyncio.TaskGroup, health: Health, scrape: Scrape) -> None:
        self._group = group
        self.pools: dict[int, UpstreamPool] = {}
        self.facts: asyncio.Queue[HealthChecked | LoadSampled] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.monitor = Monitor(self.facts.put_nowait, self.pool_of, health, scrape, loop.time)
        self.task = group.create_task(self.monitor.run())

    def pool_of(self, endpoint: Endpoint) -> UpstreamPool:
        if endpoint.port not in self.pools:
            self.pools[endpoint.port] = UpstreamPool("127.0.0.1", endpoint.port, 5.0, self._group.create_task)
        return self.pools[endpoint.port]

    async def next(self, wanted: Callable[[object], bool]) -> HealthChecked | LoadSampled:
        """The next fact that is wanted; the others are dropped."""
        while not wanted(fact := await self.facts.get()):
            pass
        return fact

    async def health(self, healthy: bool, name: str = "e") -> None:
        await self.next(lambda fact: isinstance(fact, HealthChecked) and (fact.name, fact.healthy) == (name, healthy))

    async def sample(self, name: str = "e") -> LoadSampled:
        return await self.next(lambda fact: isinstance(fact, LoadSampled) and fact.name == name)


@contextlib.asynccontextmanager
async def watching(
    *, health_s: float = 0.01, scrape_s: float = 0.01, timeout_s: float = 10.0
) -> AsyncIterator[Watching]:
    async with asyncio.TaskGroup() as group:
        health = Health(interval_s=health_s, timeout_s=timeout_s)
        one = Watching(group, health, Scrape(interval_s=scrape_s, timeout_s=timeout_s, models_interval_s=scrape_s))
        try:
            yield one
        finally:
            one.task.cancel()
            for pool in one.pools.values():
                pool.abort()


def endpoint(port: int, name: str = "e", engine: EngineType = EngineType.VLLM, *, draining: bool = False) -> Endpoint:
    return Endpoint(name=name, host="127.0.0.1", port=port, model="m", engine=engine, draining=draining)


# -- fetch


def test_a_fetch_returns_status_and_whole_body_and_keeps_the_connection():
    async def main():
        async with an_engine() as engine, a_pool(engine.port) as pool:
            engine.answers["/big"] = (200, b"x" * 300_000)
            assert await fetch(pool, "/big", "h", 10.0, 300_000) == Fetched(200, b"x" * 300_000)
            assert await fetch(pool, "/none", "h", 10.0, 100) == Fetched(404, b"not found")
            assert pool.connections == 1

    run(main)


def test_an_answer_larger_than_the_limit_is_an_error_and_the_connection_is_usable_or_gone():
    async def main():
        async with an_engine() as engine, a_pool(engine.port) as pool:
            engine.answers["/big"] = (200, b"x" * 3_000_000)
            with pytest.raises(EngineError, match=r"GET /big from h: the answer is larger than 1000 bytes"):
                await fetch(pool, "/big", "h", 10.0, 1000)
            assert (await fetch(pool, "/health", "h", 10.0, 1000)).status == 200

    run(main)


def test_a_fetch_that_takes_too_long_is_given_up_and_the_engine_notices():
    async def main():
        async with an_engine() as engine, a_pool(engine.port) as pool:
            engine.answers["/slow"] = None
            with pytest.raises(EngineError, match=r"GET /slow from h: no complete answer within 0\.05 s"):
                await fetch(pool, "/slow", "h", 0.05, 1000)
            await engine.left.wait()

    run(main)


def test_a_cancelled_fetch_drops_its_connection():
    async def main():
        async with an_engine() as engine, a_pool(engine.port) as pool:
            engine.answers["/slow"] = None
            task = asyncio.create_task(fetch(pool, "/slow", "h", 10.0, 1000))
            await engine.reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await engine.left.wait()

    run(main)


@contextlib.asynccontextmanager
async def a_peer(answer: bytes) -> AsyncIterator[int]:
    """The port of a server that writes `answer` and closes."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", b""])
def test_a_peer_that_breaks_off_or_does_not_speak_http_is_an_engine_error(answer):
    async def main():
        async with a_peer(answer) as port, a_pool(port) as pool:
            with pytest.raises(EngineError, match=r"GET /health from h: (reset|protocol): "):
                await fetch(pool, "/health", "h", 10.0, 1000)

    run(main)


def test_an_answer_that_ends_with_its_connection_is_complete():
    async def main():
        async with a_peer(b"HTTP/1.1 200 OK\r\n\r\nabc") as port, a_pool(port) as pool:
            assert await fetch(pool, "/health", "h", 10.0, 1000) == Fetched(200, b"abc")

    run(main)


def test_a_port_where_nobody_listens_is_an_engine_error():
    async def main():
        async with an_engine() as engine:
            port = engine.port
        async with a_pool(port) as pool:
            with pytest.raises(EngineError, match="GET /health from h: connect: "):
                await fetch(pool, "/health", "h", 10.0, 1000)

    run(main)


# -- monitor


def test_health_and_load_of_a_watched_endpoint_are_told_again_and_again():
    async def main():
        async with an_engine() as engine, watching() as watch:
            before_s = asyncio.get_running_loop().time()
            watch.monitor.watch(endpoint(engine.port))
            for _ in range(3):
                await watch.health(healthy=True)
                told = await watch.sample()
            assert (told.sample.running, told.sample.waiting) == (3, 1)
            assert before_s <= told.sample.at_s <= asyncio.get_running_loop().time()

    run(main)


def test_an_endpoint_watched_before_the_monitor_runs_is_watched_when_it_does():
    async def main():
        async with an_engine() as engine, watching() as watch:
            watch.monitor.watch(endpoint(engine.port))  # the task has not had its first turn
            await watch.health(healthy=True)

    run(main)


def test_an_endpoint_that_fails_and_recovers_is_told_and_logged_once_each(caplog):
    caplog.set_level(logging.INFO, "beaconry.io.monitor")

    async def main():
        async with an_engine() as engine, watching() as watch:
            watch.monitor.watch(endpoint(engine.port))
            await watch.health(healthy=True)
            engine.answers["/health"] = (503, b"engine dead")
            for _ in range(3):
                await watch.health(healthy=False)
            engine.answers["/health"] = (200, b"")
            await watch.health(healthy=True)

    run(main)
    warning, info = caplog.records
    assert (warning.levelname, info.levelname) == ("WARNING", "INFO")
    assert "endpoint e fails its health check: GET /health from 127.0.0.1:" in warning.message
    assert "status 503" in warning.message


def test_an_endpoint_that_hangs_or_is_gone_is_unhealthy():
    async def main():
        async with an_engine() as engine, watching(timeout_s=0.05) as watch:
            engine.answers["/health"] = None
            watch.monitor.watch(endpoint(engine.port, "hanging"))
            await watch.health(healthy=False, name="hanging")
        async with watching() as watch:  # the engine's port is closed by now
            watch.monitor.watch(endpoint(engine.port, "gone"))
            await watch.health(healthy=False, name="gone")

    run(main)


def test_an_endpoint_that_fails_its_check_is_not_asked_for_metrics():
    async def main():
        async with an_engine() as engine, watching() as watch:
            engine.answers["/health"] = (500, b"")
            watch.monitor.watch(endpoint(engine.port))
            for _ in range(5):
                await watch.health(healthy=False)
            assert set(engine.asked) == {"/health"}
            engine.answers["/health"] = (200, b"")
            await watch.sample()

    run(main)


@pytest.mark.parametrize("answer", [(404, b"not found"), (200, b"<html>"), (500, PAGE)])
def test_an_endpoint_without_metrics_is_asked_for_them_less_and_less_often(answer):
    async def main():
        async with an_engine() as engine, watching() as watch:
            engine.answers["/metrics"] = answer
            watch.monitor.watch(endpoint(engine.port))
            while engine.asked.count("/health") < 40:
                fact = await watch.facts.get()
                assert isinstance(fact, HealthChecked)
            # at 0, 2, 6, 14, 30 intervals, and so on: a slow machine gets further while it makes its 40 checks
            assert engine.asked.count("/metrics") <= 12

    run(main)


def test_metrics_that_appear_late_are_found():
    async def main():
        async with an_engine() as engine, watching() as watch:
            engine.answers["/metrics"] = (404, b"")
            watch.monitor.watch(endpoint(engine.port))
            while engine.asked.count("/metrics") < 2:
                await watch.facts.get()
            engine.answers["/metrics"] = (200, PAGE)
            await watch.sample()

    run(main)


def test_an_endpoint_no_longer_watched_is_left_alone_even_in_mid_request():
    async def main():
        async with an_engine() as engine, watching() as watch:
            engine.answers["/health"] = None
            watch.monitor.watch(endpoint(engine.port))
            await engine.reached.wait()
            watch.monitor.unwatch("e")
            await engine.left.wait()
            asked = len(engine.asked)
            await asyncio.sleep(0.1)
            assert len(engine.asked) == asked
            watch.monitor.unwatch("never watched")

    run(main)


def test_an_endpoint_that_moves_is_watched_at_its_new_address_only():
    async def main():
        async with an_engine() as old, an_engine() as new, watching() as watch:
            watch.monitor.watch(endpoint(old.port))
            await watch.health(healthy=True)
            watch.monitor.watch(endpoint(new.port))
            watch.monitor.watch(endpoint(new.port))  # said twice: no second watch
            asked = len(old.asked)
            while new.asked.count("/health") < 3:
                await watch.facts.get()
            assert len(old.asked) <= asked + 1  # one may have been under way

    run(main)


def test_endpoints_are_watched_side_by_side():
    async def main():
        async with an_engine() as quick, an_engine() as hanging, watching() as watch:
            hanging.answers["/health"] = None
            watch.monitor.watch(endpoint(hanging.port, "hanging"))
            watch.monitor.watch(endpoint(quick.port, "quick", draining=True))
            for _ in range(3):
                await watch.sample("quick")

    run(main)


def test_between_two_due_times_the_monitor_sleeps():
    async def main():
        async with an_engine() as engine, watching() as watch:
            asked_the_time = 0

            def now_s() -> float:
                nonlocal asked_the_time
                asked_the_time += 1
                return asyncio.get_running_loop().time()

            monitor = Monitor(watch.facts.put_nowait, watch.pool_of, Health(interval_s=0.01), Scrape(), now_s)
            monitor.watch(endpoint(engine.port))
            task = asyncio.create_task(monitor.run())
            for _ in range(20):
                await watch.health(healthy=True)
            task.cancel()
            assert asked_the_time <= 20 * 8

    run(main)


def test_cancelling_the_monitor_drops_what_is_under_way():
    async def main():
        async with an_engine() as engine:
            engine.answers["/health"] = None
            async with watching() as watch:
                watch.monitor.watch(endpoint(engine.port))
                await engine.reached.wait()
                watch.task.cancel()
                await engine.left.wait()

    run(main)


CARDS = b'{"data": [{"id": "m", "root": "m", "parent": null}%b]}'
ADAPTER = b', {"id": "ad", "root": "/ad", "parent": "m"}'


def test_adapters_are_told_once_and_again_when_they_change():
    async def main():
        async with an_engine() as engine, watching() as watch:
            engine.answers["/v1/models"] = (200, CARDS % ADAPTER)
            watch.monitor.watch(endpoint(engine.port))
            seen = await watch.next(lambda fact: isinstance(fact, AdaptersSeen))
            assert (seen.name, seen.adapters) == ("e", {"ad": "/ad"})
            engine.answers["/v1/models"] = (500, b"")
            asked = len(engine.asked)
            while engine.asked[asked:].count("/v1/models") < 3:
                await asyncio.sleep(0.01)
            engine.answers["/v1/models"] = (200, CARDS % b"")
            seen = await watch.next(lambda fact: isinstance(fact, AdaptersSeen))
            assert seen.adapters == {}

    run(main)


def test_of_an_engine_that_names_thousands_of_adapters_a_bounded_number_counts():
    async def main():
        async with an_engine() as engine, watching() as watch:
            many = b"".join(b', {"id": "ad%d", "root": "/ad", "parent": "m"}' % i for i in range(2 * ADAPTERS))
            engine.answers["/v1/models"] = (200, CARDS % many)
            watch.monitor.watch(endpoint(engine.port))
            seen = await watch.next(lambda fact: isinstance(fact, AdaptersSeen))
            assert len(seen.adapters) == ADAPTERS

    run(main)


# -- its arithmetic


def test_the_first_n_endpoints_are_spread_evenly_for_every_n():
    for n in (2, 4, 16, 100, 256):
        phases = sorted(share(i) for i in range(n))
        gaps = [b - a for a, b in zip(phases, [*phases[1:], phases[0] + 1.0], strict=True)]
        assert max(gaps) < 2.7 / n
        assert all(0.0 <= phase < 1.0 for phase in phases)


def test_the_next_time_is_on_the_grid_and_ahead():
    assert next_due_s(10.0, 2.0, 10.1) == 12.0
    assert next_due_s(10.0, 2.0, 12.0) == 14.0
    assert next_due_s(10.0, 2.0, 15.5) == 16.0
    assert next_due_s(10.0, 2.0, 9.9) == 12.0


@pytest.mark.parametrize(
    ("status", "engine", "healthy"),
    [
        (200, EngineType.VLLM, True),
        (204, EngineType.SGLANG, True),
        (503, EngineType.VLLM, False),
        (404, EngineType.VLLM, False),
        (404, EngineType.LLAMACPP, True),
        (503, EngineType.LLAMACPP, False),
        (302, EngineType.TRTLLM, False),
    ],
)
def test_which_answers_mean_healthy(status, engine, healthy):
    assert is_healthy(status, engine) is healthy


def test_trtllm_serves_prometheus_text_under_another_path_unless_the_operator_names_one():
    assert metrics_path(EngineType.TRTLLM, "/metrics") == "/prometheus/metrics"
    assert metrics_path(EngineType.TRTLLM, "/mine") == "/mine"
    assert metrics_path(EngineType.VLLM, "/metrics") == "/metrics"


def test_an_interval_of_zero_is_refused_by_name():
    with pytest.raises(OperatorError, match=r"health\.intervalS"):
        Monitor(print, print, Health(interval_s=0), Scrape(), float)
