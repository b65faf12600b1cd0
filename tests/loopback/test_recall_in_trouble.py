"""Giving way beside everything else that may happen to a request: each still has one outcome, and nothing is left behind."""

import asyncio
import json

import pytest
from msgspec.structs import replace

from beaconry.config.disaggregation import Disaggregation
from beaconry.config.flow import Flow
from beaconry.config.gateway import Access, Retry
from beaconry.config.tenants import Tenants
from beaconry.router.exchange import RECALLS
from beaconry.router.facts import AdaptersSeen, EndpointGone, EndpointSeen
from beaconry.tenancy.keys import hash_of
from beaconry.values.endpoint import Role
from tests.loopback.fake_engine import DONE, Reply, chat, event, gateway, post, run, send
from tests.loopback.keeping_engine import (
    LONG,
    SECTIONS,
    Keeping,
    contested,
    high,
    low,
    objective,
    outcomes,
    sending,
    taken_back,
    until,
    waiting,
)


def draining(running, index: int, *, so: bool) -> None:
    endpoint = running.statistics().endpoints[index].endpoint
    running.tell(EndpointSeen(replace(endpoint, draining=so)))


async def in_the_queue(running, engine):
    """A request of the lower band that waits since a long one of the higher band has come, which is kept: the replies of both."""
    slow = sending(running, low())
    await until(lambda: engine.seen[-1:] == ["low"])
    fast = sending(running, high(len(LONG) // 4))
    await taken_back(running, engine)
    assert waiting(running) == 1
    return slow, fast


def test_an_engine_that_goes_on_without_its_client_gets_the_same_request_a_bounded_number_of_times():
    async def main():
        engine = Keeping("low", aborts=False)
        async with contested(engine) as running:
            slow = sending(running, low())
            await until(lambda: engine.seen[2:] == ["low"])
            for _ in range(RECALLS):
                assert (await send(running.port, high())).status == 200
            patient = sending(running, high())
            await until(lambda: waiting(running) == 1)
            assert engine.seen.count("low") == 1 + RECALLS
            engine.let_go["low"].set()
            assert [(await slow).status, (await patient).status] == [200, 200]
            assert outcomes(running) == {"completed": 4 + RECALLS}

    run(main)


def test_connections_of_what_was_taken_back_are_closed_and_all_others_used_again():
    async def main():
        engine = Keeping("low")
        async with contested(engine) as running:
            slow = sending(running, low())
            await until(lambda: engine.seen[2:] == ["low"])
            for _ in range(RECALLS - 1):
                assert (await send(running.port, high())).status == 200
            engine.let_go["low"].set()
            assert (await slow).status == 200
            await until(lambda: engine.open_connections == running._driver.connections == 2)

    run(main)


def test_what_fails_after_it_was_taken_back_is_tried_elsewhere_and_then_stays(tmp_path):
    """To have given way is no attempt, and who has been let down once does not give way again."""
    log = tmp_path / "access.log"

    async def main():
        engine, other = Keeping("low"), Keeping("low")
        sections = {"retry": Retry(attempts=2), "access": Access(log=str(log))}
        async with contested(engine, other, **sections) as running:
            draining(running, 1, so=True)
            slow = sending(running, low())
            await until(lambda: engine.seen[-1:] == ["low"])
            assert (await send(running.port, high())).status == 200
            await until(lambda: engine.seen.count("low") == 2)
            draining(running, 1, so=False)
            engine.broken = True
            engine.let_go["low"].set()
            await until(lambda: other.seen[-1:] == ["low"])
            draining(running, 0, so=True)
            replies = [sending(running, high()) for _ in range(3)]
            await until(lambda: waiting(running) == 3)
            other.let_go["low"].set()
            assert [(await reply).status for reply in [slow, *replies]] == [200] * 4
            statistics = running.statistics()
            assert (statistics.recalls, statistics.retries, other.aborted) == (1, 1, [])

    run(main)
    (told,) = (line for line in map(json.loads, log.read_text().splitlines()) if line["attempts"] == 2)
    assert (told["outcome"], told["endpoint"]) == ("completed", "e1")


@pytest.mark.parametrize("mode", ["always", "auto"])
def test_a_prefill_leg_gives_way_and_is_run_again(mode):
    async def main():
        prefill, decode = Keeping("low", role=Role.PREFILL), Keeping(role=Role.DECODE)
        split = Disaggregation(mode=mode, min_uncached_tokens=0)
        async with contested(prefill, decode, disaggregation=split) as running:
            slow = sending(running, low(stream=True))
            await until(lambda: prefill.seen[2:] == ["low"])
            assert (await send(running.port, high())).status == 200
            await taken_back(running, prefill)
            prefill.let_go["low"].set()
            reply = await slow
            assert (reply.status, reply.body) == (200, event("a") + event("b") + DONE)
            assert prefill.seen[2:] == ["low", "high", "low"]
            assert decode.seen[2:] == ["high", "low"]
            assert outcomes(running) == {"completed": 4}

    run(main)


def test_what_waits_is_sent_elsewhere_if_its_engine_drains():
    async def main():
        engine, other = Keeping("low", "high"), Keeping()
        async with contested(engine, other) as running:
            draining(running, 1, so=True)
            slow, fast = await in_the_queue(running, engine)
            draining(running, 0, so=True)
            draining(running, 1, so=False)
            assert (await slow).status == 200
            assert other.seen[-1:] == ["low"]
            engine.let_go["high"].set()
            assert (await fast).status == 200

    run(main)


def test_what_waits_is_answered_in_time_if_its_only_engine_leaves():
    async def main():
        engine = Keeping("low", "high")
        async with contested(engine, flow=Flow(ttl_s=0.3, engine_wait_s=0.3)) as running:
            slow, fast = await in_the_queue(running, engine)
            running.tell(EndpointGone("e0"))
            refused = await slow
            assert (refused.status, refused.json()["error"]["code"]) == (503, "no_endpoint")
            engine.let_go["high"].set()
            assert (await fast).status == 200
            assert outcomes(running) == {"completed": 3, "no-endpoint": 1}

    run(main)


@pytest.mark.parametrize("models", [("ad", "m"), ("m", "ad"), ("ad", "ad")], ids="-before-".join)
def test_adapters_and_their_model_give_way_to_each_other(models):
    async def main():
        engine = Keeping("low")
        async with contested(engine) as running:
            running.tell(AdaptersSeen("e0", {"ad": "/ad"}))
            slow = sending(running, low(model=models[0]))
            await until(lambda: engine.seen[2:] == ["low"])
            assert (await send(running.port, high(model=models[1]))).status == 200
            await taken_back(running, engine)
            engine.let_go["low"].set()
            assert (await slow).status == 200
            assert engine.seen[2:] == ["low", "high", "low"]

    run(main)


def test_a_tenant_pays_once_and_holds_its_place_while_its_request_waits_again(tmp_path):
    file = tmp_path / "tenants.yaml"
    file.write_text(
        f'tenants:\n  slow:\n    keys: ["{hash_of("of-slow")}"]\n    limits: {{concurrency: 1, requestsPerS: 100}}\n'
        f'  fast:\n    keys: ["{hash_of("of-fast")}"]\n'
    )

    def keyed(payload: bytes, tenant: str) -> bytes:
        return payload.replace(b"host: x\r\n", b"host: x\r\nauthorization: Bearer of-%b\r\n" % tenant.encode(), 1)

    short = post(chat(), headers=objective("batch"))

    async def main():
        engine = Keeping("low")
        async with gateway(engine, tenants=Tenants(file=str(file)), **SECTIONS) as running:

            async def status(payload: bytes, tenant: str) -> int:
                return (await send(running.port, keyed(payload, tenant))).status

            assert await status(short, "slow") == 200
            slow = sending(running, keyed(low(), "slow"))
            await until(lambda: engine.seen[1:] == ["low"])
            assert await status(high(), "fast") == 200
            await taken_back(running, engine)
            assert await status(short, "slow") == 429
            engine.let_go["low"].set()
            reply: Reply = await slow
            assert reply.status == 200
            assert await status(short, "slow") == 200
            told = running.statistics().tenants["slow"]
            assert {outcome.value: count for outcome, count in told.outcomes.items()} == {
                "completed": 3,
                "rate-limited": 1,
            }
            assert (told.running, told.input_tokens, told.output_tokens) == (0, 15, 6)  # 5 and 2 each, says the engine

    run(main)


@pytest.mark.parametrize("in_time", [True, False])
def test_a_gateway_that_stops_completes_what_waits_again_or_says_so(in_time):
    async def main():
        engine = Keeping("low", "high")
        async with contested(engine) as running:
            slow, fast = await in_the_queue(running, engine)
            stopping = asyncio.create_task(running.stop(20.0 if in_time else 0.05))
            await until(lambda: running.statistics().draining)
            for let_go in engine.let_go.values() if in_time else ():
                let_go.set()
            replies = [await slow, await fast]
            await stopping
            if in_time:
                assert [reply.status for reply in replies] == [200, 200]
                assert outcomes(running) == {"completed": 4}
            else:
                assert [reply.json()["error"]["code"] for reply in replies] == ["shutting_down"] * 2
                assert outcomes(running) == {"completed": 2, "shutting-down": 2}

    run(main)
