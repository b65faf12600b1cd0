"""What a lower band has in prefill is taken back for a higher one, and sent again: nobody's client notices more than the wait."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from beaconry.apps.assemble import Gateway
from beaconry.config.flow import Flow
from beaconry.config.gateway import Access, EndpointConfig, GatewayConfig, Listen
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.values.endpoint import EngineType
from tests.loopback import engine_client
from tests.loopback.engine_client import call, metrics, on_loop
from tests.loopback.fake_engine import DONE, SSE_HEAD, chat, chunk, event, post, read_reply, run, send, whole
from tests.loopback.keeping_engine import (
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

STEP_TOKENS = 256
"""The simulated engine's budget."""
LONG = [n % 250 for n in range(150 * STEP_TOKENS)]
"""A prompt of so many steps."""
RECALLED = ("beaconry_flow_recalled_total",)


def lines(log) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


# -- before a simulated engine


@asynccontextmanager
async def simulated(log, **flow):
    """A gateway that has seen both bands, before an engine that prefills slowly."""
    settings = EngineSettings(num_blocks=4096, max_num_seqs=8, max_num_batched_tokens=STEP_TOKENS)
    slow = {"settings": settings, "step_time": LinearStepTime(fixed_s=0.006), "max_model_len": 50_000}
    async with engine_client.running(**slow) as (engine, engine_port):
        endpoint = EndpointConfig(name="e", host="127.0.0.1", port=engine_port, model="tiny", engine=EngineType.SIM)
        config = GatewayConfig(
            listen=Listen(port=0), endpoints=(endpoint,), flow=Flow(**flow), access=Access(log=str(log)), **SECTIONS
        )
        front = Gateway(config)
        await front.start()
        try:
            for name in SECTIONS["objectives"]:
                assert (await ask(front, name, [9])).status == 200
            yield front, engine
            front._router.check()
            assert front.statistics().in_flight == 0
            assert front.server_statistics().buffered_bytes == 0
        finally:
            await front.stop(1.0)


async def ask(front, name, prompt, **fields):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 3, "ignore_eos": True} | fields
    headers = ("content-type: application/json", objective(name).strip())
    return await call(front.port, "/v1/completions", body, headers=headers)


async def long_and_short(front, engine, **fields):
    """A long prompt of the lower band, and a short one of the higher while that is computed: replies in the order of their ends."""
    order = []

    async def one(name, prompt):
        reply = await ask(front, name, prompt, **fields)
        order.append((name, reply))

    async with asyncio.TaskGroup() as group:
        group.create_task(one("batch", LONG))
        computed = engine.generation.engine.statistics().computed_tokens
        await until(lambda: engine.generation.engine.statistics().computed_tokens >= computed + 10 * STEP_TOKENS)
        group.create_task(one("urgent", [3] * 20))
    return order


def text(reply, stream):
    """What the reply says."""
    parts = reply.events if stream else [reply.json]
    return "".join(part["choices"][0]["text"] for part in parts)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@on_loop
async def test_a_long_prompt_gives_way_to_a_higher_band_and_is_answered_in_full_afterwards(tmp_path, stream):
    log = tmp_path / "access.log"
    async with simulated(log) as (front, engine):
        order = await long_and_short(front, engine, stream=stream)
        assert [(name, reply.status) for name, reply in order] == [("urgent", 200), ("batch", 200)]
        assert (await metrics(front.port))[RECALLED] == 1
        assert engine.generation.observations.finished["abort"] == 1
        assert engine.generation.open_answers == 0
        recalled = order[1][1]
        assert text(recalled, stream) == text(await ask(front, "batch", LONG, stream=stream), stream)
    told = lines(log)
    assert len({line["id"] for line in told}) == len(told) == 5
    assert all((line["outcome"], line["status"], line["attempts"]) == ("completed", 200, 1) for line in told)
    assert [line["prompt_tokens"] for line in told] == [1, 1, 20, len(LONG), len(LONG)]
    assert told[3]["cached_tokens"] >= 10 * STEP_TOKENS  # what was computed before it gave way


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@on_loop
async def test_without_recall_a_long_prompt_is_computed_first(tmp_path, stream):
    async with simulated(tmp_path / "access.log", recall=False) as (front, engine):
        order = await long_and_short(front, engine, stream=stream, max_tokens=1)
        assert [(name, reply.status) for name, reply in order] == [("batch", 200), ("urgent", 200)]
        assert (await metrics(front.port))[RECALLED] == 0
        assert engine.generation.observations.finished["abort"] == 0


# -- before scripted engines


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("early", [False, True], ids=["silent", "head-first"])
def test_what_is_sent_again_is_the_same_byte_for_byte_and_is_answered_once(stream, early):
    """Also if the engine tells the status long before it has anything to say."""

    async def main():
        opening = SSE_HEAD if stream else whole("low").partition(b"{")[0]
        engine = Keeping("low", opening=opening if early else b"")
        async with contested(engine) as running:
            body = low(stream=stream, max_tokens=7)
            assert len(body) > 400_000
            slow = sending(running, body)
            await until(lambda: engine.seen[2:] == ["low"])
            assert (await send(running.port, high())).status == 200
            await taken_back(running, engine)
            engine.let_go["low"].set()
            reply = await slow
            assert (reply.status, reply.complete) == (200, True)
            assert reply.body == (event("a") + event("b") + DONE if stream else whole("low").partition(b"\r\n\r\n")[2])
            assert engine.seen[2:] == ["low", "high", "low"]
            first, _, second = engine.requests[2:]
            assert (first.body, first.headers, first.target) == (second.body, second.headers, second.target)
            assert outcomes(running) == {"completed": 4}

    run(main)


def test_a_response_that_has_only_announced_itself_gives_way_and_announces_itself_once():
    async def main():
        announced = chunk(b'event: response.created\ndata: {"type":"response.created"}\n\n')
        engine = Keeping("low", opening=SSE_HEAD + announced)
        async with contested(engine) as running:
            asked = {"model": "m", "input": "many words " * 40_000, "stream": True, "user": "low"}
            slow = sending(running, post(asked, "/v1/responses", headers=objective("batch")))
            await until(lambda: engine.seen[2:] == ["low"])
            assert (await send(running.port, high())).status == 200
            await taken_back(running, engine)
            await until(lambda: engine.seen[2:] == ["low", "high", "low"])
            engine.let_go["low"].set()
            reply = await slow
            assert (reply.status, reply.body.count(b"response.created\n")) == (200, 1)
            assert reply.body.endswith(event("a") + event("b") + DONE)
            assert outcomes(running) == {"completed": 4}

    run(main)


def test_a_body_of_megabytes_is_sent_again_byte_for_byte():
    async def main():
        engine = Keeping("low")
        async with contested(engine) as running:
            asked = chat(messages=[{"role": "user", "content": '\u00e9\\"' * 700_000}], user="low")
            document = json.dumps(asked, ensure_ascii=False).encode()
            slow = sending(running, post(document, headers=objective("batch")))
            await until(lambda: engine.seen[2:] == ["low"])
            assert (await send(running.port, high())).status == 200
            await taken_back(running, engine)
            engine.let_go["low"].set()
            assert (await slow).status == 200
            assert [got.body == document for got in engine.requests[2:]] == [True, False, True]

    run(main)


def test_an_answer_and_a_recall_that_cross_each_other_make_one_answer():
    """The engine's answer is on its way when the higher request comes: whichever is read first, nobody gets two or none."""
    turns = 40

    async def main():
        engine = Keeping("low")
        async with contested(engine) as running:
            for turn in range(turns):
                let_go = engine.let_go["low"] = asyncio.Event()
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                seen = len(engine.seen)
                writer.write(low(f"{turn} ") + post(chat(user="next"), headers=objective("batch")))
                await until(lambda seen=seen: len(engine.seen) > seen)
                let_go.set()
                await asyncio.sleep(turn * 0.0001)
                fast = sending(running, high())
                said = [(await read_reply(reader)).json() for _ in range(2)] + [(await fast).json()]
                assert [reply["choices"][0]["message"]["content"] for reply in said] == ["low", "next", "high"]
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()
            assert outcomes(running) == {"completed": 2 + 3 * turns}

    run(main)


def test_a_client_that_leaves_while_its_request_is_taken_back_leaves_nothing_behind():
    async def main():
        engine = Keeping("low", "high")
        async with contested(engine) as running:
            _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(low(stream=True))
            await until(lambda: engine.seen[2:] == ["low"])
            fast = sending(running, high(100_000, stream=True))
            await taken_back(running, engine)
            assert waiting(running) == 1
            writer.transport.abort()
            await until(lambda: running.statistics().in_flight == 1)
            assert waiting(running) == 0
            engine.let_go["high"].set()
            assert (await fast).status == 200
            assert engine.seen[2:] == ["low", "high"]
            assert outcomes(running) == {"completed": 3, "client-gone": 1}

    run(main)


def test_a_client_that_leaves_when_its_request_was_sent_again_leaves_nothing_behind():
    async def main():
        engine = Keeping("low")
        async with contested(engine) as running:
            _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(low(stream=True))
            await until(lambda: engine.seen[2:] == ["low"])
            assert (await send(running.port, high())).status == 200
            await until(lambda: engine.seen[2:] == ["low", "high", "low"])
            writer.transport.abort()
            await until(lambda: engine.aborted == ["low", "low"])
            assert outcomes(running) == {"completed": 3, "client-gone": 1}

    run(main)
