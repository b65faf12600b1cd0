"""Through the whole gateway: what the router believes cached is what the engines report, and a restart leaves no ghosts."""

import asyncio
import logging
import sys
from contextlib import asynccontextmanager
from random import Random

import pytest

from beaconry.apps.assemble import Gateway
from beaconry.config.gateway import Access, EndpointConfig, GatewayConfig, Listen
from beaconry.io.children.supervisor import free_ports
from beaconry.kvindex.agreement import HashSettings
from beaconry.values.block_hash import DEFAULT_SEED
from beaconry.values.endpoint import EngineType, KvEventsAddress
from beaconry.values.kv_events import KvBlocks, SourceState
from tests.loopback.fake_engine import Reply, post, run, send

HOST = "127.0.0.1"


class Engine:
    """A simulated engine process that can be restarted on its ports."""

    def __init__(self, name: str, ports: list[int], *flags: str) -> None:
        self.config = EndpointConfig(
            name=name,
            host=HOST,
            port=ports[0],
            model="m",
            engine=EngineType.SIM,
            kv_events=KvEventsAddress(endpoint=f"tcp://{HOST}:{ports[1]}", replay=f"tcp://{HOST}:{ports[2]}"),
            kv_blocks=KvBlocks(block_tokens=16, algorithm="fast", seed=DEFAULT_SEED),
        )
        port, events, replay = map(str, ports)
        self._argv = [sys.executable, "-m", "beaconry", "engine", "--model", "m", "--host", HOST, "--port", port, "--speed", "20",
                      "--kv-events-port", events, "--kv-replay-port", replay, *flags]  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._argv, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 20)
        assert line.startswith(b"ready"), line

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process._transport.close()


@asynccontextmanager
async def fleet(count: int, *flags: str):
    ports = free_ports(3 * count, HOST, Random())
    engines = [Engine(f"e{i}", ports[3 * i : 3 * i + 3], *flags) for i in range(count)]
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        endpoints = tuple(engine.config for engine in engines)
        gateway = Gateway(GatewayConfig(listen=Listen(port=0), endpoints=endpoints, access=Access(debug_headers=True)))
        await gateway.start()
        try:
            await known(gateway, count)
            yield gateway, engines
        finally:
            await gateway.stop(1.0)
    finally:
        await asyncio.gather(*(engine.kill() for engine in engines))


async def known(gateway: Gateway, count: int) -> None:
    """Wait until all engines' caches are known exactly."""
    while [e.kv_state for e in gateway.statistics().endpoints] != [SourceState.EXACT] * count:
        await asyncio.sleep(0.05)


def chat(text: str, model: str = "m") -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 2}


async def ask(gateway: Gateway, text: str, model: str = "m") -> tuple[Reply, int, int]:
    """The reply, with predicted and reported cached tokens."""
    reply = await send(gateway.port, post(chat(text, model), headers="x-beaconry-debug: 1\r\n"))
    assert reply.status == 200, reply
    reported = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return reply, int(reply.headers["x-beaconry-matched-tokens"]), reported


def prompts(rng: Random, count: int) -> list[str]:
    groups = [" ".join(rng.choices(("alpha", "beta", "gamma", "delta"), k=rng.randint(100, 400))) for _ in range(6)]
    return [rng.choice(groups) + f" question {i}" for i in range(count)]


@pytest.mark.parametrize(
    "flags", [(), ("--kv-events-form", "arrays"), ("--blocks", "300")], ids=["maps", "arrays", "evicting"]
)
def test_predicted_cached_tokens_are_the_reported_ones(flags: tuple[str, ...]):
    async def main():
        async with fleet(2, *flags) as (gateway, _):
            told = [await ask(gateway, text) for text in prompts(Random(1), 60)]
            assert all(reply.headers["x-beaconry-view"] == "exact" for reply, _, _ in told)
            assert all(reply.headers["x-beaconry-tokens"] == "local" for reply, _, _ in told)
            right = sum(predicted == reported for _, predicted, reported in told)
            assert right >= 0.99 * len(told), [(p, r) for _, p, r in told if p != r]
            assert sum(reported for _, _, reported in told) > 0
            page = (await send(gateway.port, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")).body.decode()
            assert 'beaconry_kv_feed_self_test{endpoint="e0",rank="0",verdict="agreed"} 1.0' in page
            lag = next(line for line in page.splitlines() if line.startswith("beaconry_kv_feed_lag_seconds_sum{"))
            assert 0.0 < float(lag.split()[-1]) < 60.0

    run(main)


def test_an_engine_that_hashes_otherwise_than_configured_is_predicted_exactly_and_told(
    caplog: pytest.LogCaptureFixture,
):
    async def main():
        async with fleet(2, "--prefix-caching-hash-algo", "sha256") as (gateway, _):
            told = [await ask(gateway, text) for text in prompts(Random(1), 60)]
            assert all(reply.headers["x-beaconry-view"] == "exact" for reply, _, _ in told)
            right = sum(predicted == reported for _, predicted, reported in told)
            assert right >= 0.99 * len(told), [(p, r) for _, p, r in told if p != r]
            assert sum(reported for _, _, reported in told) > 0
            for figures in gateway._feeds.statistics().values():
                assert figures.verdict is not None
                assert figures.verdict.engine == HashSettings(algorithm="sha256", seed=DEFAULT_SEED, block_tokens=16)
                assert figures.dual_keys is not None
                assert figures.dual_keys.blocks > 0

    with caplog.at_level(logging.WARNING, "beaconry.io.zmq_events"):
        run(main)
    said = [record.getMessage() for record in caplog.records if "block hashes" in record.getMessage()]
    assert sorted(text[:23] for text in said) == ["KV events of e0 rank 0:", "KV events of e1 rank 0:"]
    assert all("the algorithm differs. The engine uses sha256 with seed" in text for text in said)


def test_a_restarted_engine_leaves_no_ghost_blocks():
    async def main():
        async with fleet(1) as (gateway, engines):
            text = " ".join(["again"] * 300)
            while (await ask(gateway, text))[1] == 0:
                await asyncio.sleep(0.05)
            await engines[0].kill()
            while gateway.statistics().endpoints[0].kv_state == SourceState.EXACT:
                await asyncio.sleep(0.05)
            await engines[0].start()
            await known(gateway, 1)
            _, predicted, reported = await ask(gateway, text)
            assert (predicted, reported) == (0, 0)

    run(main)


def test_an_engine_whose_events_stop_is_seen_approximately_and_still_found():
    async def main():
        async with fleet(2) as (gateway, _):
            text = " ".join(["steady"] * 300)
            first, _, _ = await ask(gateway, text)
            for endpoint in ("e0", "e1"):
                gateway._feeds.unwatch(endpoint)
                gateway._router._caches.changed(endpoint, 0, SourceState.COLD)
            again, predicted, reported = await ask(gateway, text)
            assert again.headers["x-beaconry-view"] == "approximate"
            assert again.headers["x-beaconry-endpoint"] == first.headers["x-beaconry-endpoint"]
            assert 0 < predicted <= reported + 64

    run(main)


def test_blocks_in_an_engines_host_memory_are_predicted_as_well():
    flags = ("--blocks", "60", "--kv-offloading-size", "4", "--kv-offloading-bandwidth", "1")

    async def main():
        async with fleet(2, *flags) as (gateway, _):
            told = [await ask(gateway, text) for text in prompts(Random(1), 60)]
            right = sum(predicted == reported for _, predicted, reported in told)
            assert right >= 0.99 * len(told), [(p, r) for _, p, r in told if p != r]
            assert sum(int(reply.headers["x-beaconry-loaded-tokens"]) for reply, _, _ in told) > 0

    run(main)


def test_an_adapters_requests_are_predicted_exactly_and_share_nothing_with_the_models():
    async def main():
        async with fleet(2, "--lora-modules", "ad=/adapters/ad", "other=/adapters/other") as (gateway, _):
            while "ad" not in gateway._router.models():
                await asyncio.sleep(0.05)
            text = " ".join(["again"] * 300)
            for model in ("m", "ad", "other"):
                _, predicted, reported = await ask(gateway, text, model)
                assert (predicted, reported) == (0, 0)
            told = [await ask(gateway, text, "ad") for text in prompts(Random(1), 30)]
            assert all(reply.headers["x-beaconry-view"] == "exact" for reply, _, _ in told)
            right = sum(predicted == reported for _, predicted, reported in told)
            assert right >= 0.99 * len(told), [(p, r) for _, p, r in told if p != r]
            assert sum(reported for _, _, reported in told) > 0
            while not all(feed.verdict and feed.verdict.exact for feed in gateway._feeds.statistics().values()):
                await asyncio.sleep(0.05)

    run(main)
