"""Keys, limits and model names at the gateway's own door, as OpenAI's client and a raw socket see them."""

import asyncio
import json
import logging
import os
from collections import Counter
from contextlib import asynccontextmanager
from random import Random

import openai
import pytest

from beaconry.config.gateway import Access
from beaconry.config.tenants import ModelConfig, Objective, Target, Tenants, TrustedHeader
from beaconry.io.tenant_file import read_key
from beaconry.tenancy.keys import hash_of
from beaconry.values.errors import OperatorError
from tests.loopback.fake_engine import (
    DONE,
    SSE_HEAD,
    FakeEngine,
    Got,
    answer_stream,
    chat,
    chunk,
    gateway,
    post,
    run,
    send,
)

DEADLINE_S = 20.0
KEY = "bk-the-key-of-acme"
BEARER = f"authorization: Bearer {KEY}\r\n"


def tenants_file(tmp_path, more: str = "", key: str = KEY) -> Tenants:
    """A file with the tenant acme, written atomically."""
    path = tmp_path / "tenants.yaml"
    new = tmp_path / "new"
    new.write_text(f'tenants:\n  acme:\n    keys: ["{hash_of(key)}"]\n{more}')
    os.replace(new, path)
    return Tenants(file=str(path))


@asynccontextmanager
async def client_of(running, **options):
    given = {"api_key": KEY, "max_retries": 0, **options}
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", **given) as client:
        yield client


def hello(**fields):
    return {"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}


def named(got: Got) -> bytes:
    """An answer that bears the model's name as the engine knows it."""
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": json.loads(got.body)["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": '"model":"m"'}}],
    }
    return json.dumps(body).encode()


async def answer_named(got: Got, writer: asyncio.StreamWriter) -> None:
    body = named(got)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
    for start in range(0, len(body), 7):
        writer.write(body[start : start + 7])
        await writer.drain()
        await asyncio.sleep(0)


async def stream_named(got: Got, writer: asyncio.StreamWriter) -> None:
    model = json.loads(got.body)["model"]
    document = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model}
    writer.write(SSE_HEAD)
    for text in ("one", "two"):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        data = b"data: " + json.dumps({**document, "choices": [choice]}).encode() + b"\n\n"
        for start in range(0, len(data), 11):
            writer.write(chunk(data[start : start + 11]))
            await writer.drain()
            await asyncio.sleep(0)
    writer.write(chunk(DONE) + b"0\r\n\r\n")


def test_without_or_with_a_wrong_key_the_client_is_told_so_and_no_engine_hears_of_it(tmp_path):
    async def main():
        engine = FakeEngine()
        async with gateway(engine, tenants=tenants_file(tmp_path)) as running:
            for key in ("wrong", KEY[:-1], KEY + "x"):
                async with client_of(running, api_key=key) as client:
                    with pytest.raises(openai.AuthenticationError) as error:
                        await client.chat.completions.create(**hello())
                    assert error.value.code == "invalid_api_key"
                    with pytest.raises(openai.AuthenticationError):
                        await client.models.list()
            reply = await send(running.port, post(chat()))
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert reply.json()["error"]["code"] == "missing_api_key"
            assert engine.requests == []
            page = (await send(running.port, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")).body
            assert b'beaconry_keys_refused_total{reason="missing"} 1.0' in page
            assert b'beaconry_keys_refused_total{reason="unknown"} 6.0' in page

    run(main)


def test_with_its_key_a_tenant_is_served_and_the_key_stays_at_the_gateway(tmp_path, caplog):
    async def main():
        engine = FakeEngine()
        log = tmp_path / "access.log"
        async with gateway(engine, tenants=tenants_file(tmp_path), access=Access(log=str(log))) as running:
            async with client_of(running) as client:
                answer = await client.chat.completions.create(**hello())
                assert answer.choices[0].message.content == "hi"
            await send(running.port, post(chat(), headers="authorization: Bearer bk-wrong-key\r\n"))
        (got,) = engine.requests
        assert "authorization" not in got.headers
        (line,) = [json.loads(line) for line in log.read_text().splitlines()]
        assert (line["tenant"], line["outcome"]) == ("acme", "completed")
        for secret in (KEY, hash_of(KEY), "bk-wrong-key"):
            assert secret not in log.read_text()
            assert secret not in caplog.text
            assert secret not in repr(got)

    with caplog.at_level(logging.DEBUG):
        run(main)


@pytest.mark.parametrize("with_tenants", [True, False])
def test_engines_get_their_own_key_in_the_clients_stead(tmp_path, with_tenants):
    async def main():
        (tmp_path / "engine.key").write_text("the-engines-key\n")
        file = tenants_file(tmp_path).file if with_tenants else None
        tenants = Tenants(file=file, engine_key_file=str(tmp_path / "engine.key"))
        engine = FakeEngine()
        async with gateway(engine, tenants=tenants) as running:
            assert (await send(running.port, post(chat(), headers=BEARER))).status == 200
        assert engine.requests[0].headers["authorization"] == "Bearer the-engines-key"
        assert KEY not in repr(engine.requests)

    run(main)


@pytest.mark.parametrize("content", ["", "two words", "two\nlines", "k\u00e9y", "x" * 5000])
def test_a_file_that_holds_no_key_is_refused_without_showing_it(tmp_path, content):
    path = tmp_path / "engine.key"
    path.write_text(content)
    with pytest.raises(OperatorError, match=r"engine\.key: must hold one key") as error:
        read_key(path)
    assert not content or content not in str(error.value)
    with pytest.raises(OperatorError, match="cannot be read"):
        read_key(tmp_path / "absent")


@pytest.mark.parametrize("length", ["content-length: 60000000", "transfer-encoding: chunked"])
def test_a_large_body_of_somebody_unknown_is_refused_before_it_is_read(tmp_path, length):
    async def main():
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{}" + length + "\r\nexpect: 100-continue\r\n\r\n"
        async with gateway(FakeEngine(), tenants=tenants_file(tmp_path)) as running:
            for bad in ("", "authorization: Bearer wrong\r\n"):
                reply = await send(running.port, head.format(bad).encode())
                assert (reply.status, reply.headers["connection"]) == (401, "close")
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(head.format(BEARER).encode())
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.transport.abort()
            assert running.server_statistics().buffered_bytes == 0

    run(main)


def test_without_tenants_a_clients_own_authorization_passes_as_before():
    async def main():
        engine = FakeEngine()
        async with gateway(engine) as running:
            await send(running.port, post(chat(), headers=BEARER))
            assert engine.requests[0].headers["authorization"] == f"Bearer {KEY}"

    run(main)


def flipped(rng: Random) -> bytes:
    place = rng.randrange(len(KEY))
    other = rng.choice([character for character in "abcdefXYZ0189-_." if character != KEY[place]])
    return f"authorization: Bearer {KEY[:place]}{other}{KEY[place + 1 :]}\r\n".encode()


def shortened(rng: Random) -> bytes:
    place = rng.randrange(len(KEY))
    return f"authorization: Bearer {KEY[:place]}{KEY[place + 1 :]}\r\n".encode()


def lengthened(rng: Random) -> bytes:
    place = rng.randrange(len(KEY) + 1)
    return f"authorization: Bearer {KEY[:place]}{chr(rng.randrange(0x21, 0x7F))}{KEY[place:]}\r\n".encode()


def chance(rng: Random) -> bytes:
    return b"authorization: " + bytes(rng.randrange(0x20, 0x100) for _ in range(rng.randrange(60))) + b"\r\n"


def elsewhere(rng: Random) -> bytes:
    form = ["", "x-api-key: %", "cookie: authorization=%", "authorization: %", "authorization: Basic %", "x: Bearer %"]
    return (rng.choice(form).replace("%", KEY) + "\r\n").lstrip().encode()


def twice(rng: Random) -> bytes:
    lines = [BEARER.encode(), b"authorization: Bearer x\r\n"]
    rng.shuffle(lines)
    return b"".join(lines)


def hashed(rng: Random) -> bytes:
    return f"authorization: Bearer {hash_of(KEY)[rng.choice([0, 7]) :]}\r\n".encode()


def test_thousands_of_wrong_authorizations_never_reach_an_engine(tmp_path):
    async def main():
        rng, statuses, engine = Random(4), Counter(), FakeEngine()
        ways = (flipped, shortened, lengthened, chance, elsewhere, twice, hashed)
        async with gateway(engine, tenants=tenants_file(tmp_path)) as running:
            for _ in range(75):
                requests = [post(chat(), headers=rng.choice(ways)(rng).decode("latin-1")) for _ in range(40)]
                replies = await asyncio.gather(*(send(running.port, one) for one in requests))
                statuses.update(reply.status for reply in replies)
        assert engine.requests == []
        assert set(statuses) <= {400, 401}
        assert statuses[401] > 2400

    run(main)


def test_a_model_that_is_not_the_tenants_does_not_exist_for_it(tmp_path):
    async def main():
        engine = FakeEngine()
        models = {"nice": ModelConfig(targets=(Target(model="m"),))}
        tenants = tenants_file(tmp_path, "    models: [nice]\n")
        async with gateway(engine, tenants=tenants, models=models) as running, client_of(running) as client:
            assert [model.id async for model in client.models.list()] == ["nice"]
            with pytest.raises(openai.NotFoundError, match="The model `m` does not exist"):
                await client.chat.completions.create(**hello())
            with pytest.raises(openai.NotFoundError, match="The model `absent` does not exist"):
                await client.chat.completions.create(**hello(model="absent"))
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("m")
            assert (await client.chat.completions.create(**hello(model="nice"))).choices
            assert len(engine.requests) == 1

    run(main)


@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_to_a_limited_tenant_tells_what_is_left(tmp_path, stream):
    async def main():
        engine = FakeEngine(answer_stream if stream else FakeEngine().script)
        limits = "    limits: {requestsPerS: 0.001, burstRequests: 2, inputTokensPerMinute: 1000}\n"
        async with gateway(engine, tenants=tenants_file(tmp_path, limits)) as running, client_of(running) as client:
            for remaining in ("1", "0"):
                raw = await client.chat.completions.with_raw_response.create(**hello(stream=stream))
                assert raw.headers["x-ratelimit-limit-requests"] == "2"
                assert raw.headers["x-ratelimit-remaining-requests"] == remaining
                assert int(raw.headers["x-ratelimit-remaining-tokens"]) > 900
                assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
                await raw.http_response.aread()
            with pytest.raises(openai.RateLimitError, match=r"0\.001 requests per second") as error:
                await client.chat.completions.create(**hello(stream=stream))
            headers = error.value.response.headers
            assert error.value.code == "rate_limit_exceeded"
            assert 990 <= int(headers["retry-after"]) <= 1000
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert headers["x-llm-d-request-dropped-reason"] == "rate_limit_exceeded"
            assert len(engine.requests) == 2
            assert running.statistics().tenants["acme"].outcomes == {"completed": 2, "rate-limited": 1}

    run(main)


def test_clients_that_leave_give_their_places_back(tmp_path):
    async def main():
        async def hang(got: Got, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(3600)

        tenants = tenants_file(tmp_path, "    limits: {concurrency: 3}\n")
        async with gateway(FakeEngine(hang), tenants=tenants) as running:
            for _ in range(3):
                writers = []
                for _ in range(3):
                    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
                    writer.write(post(chat(), headers=BEARER))
                    writers.append(writer)
                await until(lambda: running.statistics().tenants["acme"].running == 3)
                assert (await send(running.port, post(chat(), headers=BEARER))).status == 429
                for writer in writers:
                    writer.transport.abort()
                await until(lambda: running.statistics().tenants["acme"].running == 0)

    run(main)


async def until(holds):
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.005)


def test_a_changed_file_takes_effect_while_a_stream_goes_on_and_a_broken_one_does_not(tmp_path, caplog):
    async def main():
        going_on = asyncio.Event()

        async def slow(got: Got, writer: asyncio.StreamWriter) -> None:
            writer.write(SSE_HEAD + chunk(b"data: 1\n\n"))
            await going_on.wait()
            writer.write(chunk(DONE) + b"0\r\n\r\n")

        async with gateway(FakeEngine(slow), tenants=tenants_file(tmp_path)) as running:
            under_way = asyncio.create_task(send(running.port, post(chat(stream=True), headers=BEARER)))
            await until(lambda: running.statistics().in_flight == 1)
            (tmp_path / "tenants.yaml").write_text("tenants: {acme: {kes: []}}")
            await until(lambda: "not taken over" in caplog.text)
            assert "acme.kes: unknown key" in caplog.text
            assert (await models(running, KEY)).status == 200
            tenants_file(tmp_path, key="bk-next")
            async with asyncio.timeout(DEADLINE_S):
                while (await models(running, "bk-next")).status != 200:
                    await asyncio.sleep(0.005)
            assert (await models(running, KEY)).status == 401
            going_on.set()
            reply = await under_way
            assert (reply.status, reply.complete) == (200, True)

    run(main)


async def models(running, key: str):
    return await send(
        running.port, f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    )


@pytest.mark.parametrize("stream", [False, True])
def test_an_alias_reaches_the_engine_as_its_target_and_comes_back_as_itself(stream):
    async def main():
        engine = FakeEngine(stream_named if stream else answer_named)
        models = {"gpt-nice": ModelConfig(targets=(Target(model="m"),))}
        async with gateway(engine, models=models) as running, client_of(running) as client:
            answer = await client.chat.completions.create(**hello(model="gpt-nice", stream=stream))
            if stream:
                chunks = [chunk async for chunk in answer]
                assert [(one.model, one.choices[0].delta.content) for one in chunks] == [
                    ("gpt-nice", "one"),
                    ("gpt-nice", "two"),
                ]
            else:
                assert (answer.model, answer.choices[0].message.content) == ("gpt-nice", '"model":"m"')
            (got,) = engine.requests
            assert json.loads(got.body)["model"] == "m"
            assert "accept-encoding" not in got.headers
            assert [model.id async for model in client.models.list()] == ["m", "gpt-nice"]

    run(main)


def test_a_canary_is_chosen_by_the_request_id_again_and_again():
    async def main():
        engine = FakeEngine(answer_named)
        models = {"m": ModelConfig(targets=(Target(model="m", weight=1), Target(model="absent", weight=1)))}
        async with gateway(engine, models=models) as running:
            for number in range(12):
                head = f"x-request-id: id-{number}\r\n"
                replies = [await send(running.port, post(chat(), headers=head)) for _ in range(3)]
                assert len({reply.status for reply in replies}) == 1
                if replies[0].status == 404:
                    assert "The model `m` does not exist" in replies[0].json()["error"]["message"]
            assert 0 < len(engine.requests) < 36

    run(main)


def test_headers_that_steer_are_heard_from_the_trusted_only(tmp_path):
    async def main():
        seen = []
        head = BEARER + "x-llm-d-inference-objective: urgent\r\nx-llm-d-slo-ttft-ms: 250\r\n"
        engine = FakeEngine()
        sections = {"objectives": {"urgent": Objective(priority=7)}, "tenants": tenants_file(tmp_path)}
        for trusted in ((), (TrustedHeader.OBJECTIVE, TrustedHeader.SLO)):
            async with gateway(engine, trusted_headers=trusted, **sections) as running:
                handle = running._router.handle
                running._router.handle = lambda fact, now_s, handle=handle: (seen.append(fact), handle(fact, now_s))[1]
                assert (await send(running.port, post(chat(), headers=head))).status == 200
        requests = [fact.request for fact in seen if hasattr(fact, "request")]
        assert [(one.priority, one.slo_ttft_s, one.tenant) for one in requests] == [
            (0, None, "acme"),
            (7, 0.25, "acme"),
        ]
        assert not any(name.startswith("x-llm-d") for got in engine.requests for name in got.headers)

    run(main)


def test_a_tenants_figures_are_on_the_metrics_page(tmp_path):
    async def main():
        async with gateway(FakeEngine(), tenants=tenants_file(tmp_path)) as running:
            await send(running.port, post(chat(), headers=BEARER))
            page = await send(running.port, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b'beaconry_tenant_requests_total{outcome="completed",tenant="acme"} 1.0' in page.body
            assert b'beaconry_tenant_tokens_total{direction="output",tenant="acme"} 2.0' in page.body

    run(main)
