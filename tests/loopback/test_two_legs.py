"""Requests in two legs over HTTP: a scripted prefill engine and a scripted decode engine behind the real gateway."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from random import Random

import pytest

from beaconry.config.disaggregation import Disaggregation
from beaconry.config.gateway import Access, Deadlines, Health, Retry
from beaconry.config.tenants import ModelConfig, Target
from beaconry.values.endpoint import Role
from beaconry.values.stage import Stage
from tests.loopback.fake_engine import (
    DONE,
    SSE_HEAD,
    USAGE_EVENT,
    FakeEngine,
    Got,
    Script,
    answer_stream,
    answer_whole,
    chat,
    chunk,
    event,
    gateway,
    post,
    run,
    send,
    whole,
)

PARAMS = (
    b'{"do_remote_prefill": true, "do_remote_decode":false,"remote_block_ids":[[1,2,3]], "remote_engine_id":"e\\u00e9",'
    b'"remote_request_id":"chatcmpl-1","remote_host":"127.0.0.1","remote_port":5600,"tp_size":1,"new_in_1.0":1e400}'
)
"""Spelt as no encoder of ours would spell it: the decode leg is to carry these bytes."""
PREFILL_USAGE = b'{"prompt_tokens":5000,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":16}}'
ASKED = {"do_remote_decode": True, "do_remote_prefill": False}


def answer(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def prefilled(params: bytes = PARAMS) -> bytes:
    return b'{"choices":[{"finish_reason":"length"}],"usage":%b,"kv_transfer_params":%b}' % (PREFILL_USAGE, params)


def says(payload: bytes) -> Script:
    async def script(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(payload)

    return script


async def hang(got: Got, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def reset(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def pour(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(chunk(b"x" * 65_536))
        await writer.drain()


async def in_pieces(got: Got, writer: asyncio.StreamWriter) -> None:
    body = prefilled()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    for at in range(0, len(body), 50):
        writer.write(chunk(body[at : at + 50]))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")


async def break_off(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE_HEAD + chunk(event("a")))
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()


@contextlib.asynccontextmanager
async def pair(prefill: Script | None = None, decode: Script = answer_whole, **sections: object):
    """A gateway that splits whatever can be split, before one engine of each role."""
    p = FakeEngine(prefill or says(answer(prefilled())), role=Role.PREFILL)
    d = FakeEngine(decode, role=Role.DECODE)
    given = {
        "disaggregation": Disaggregation(mode="always"),
        "access": Access(debug_headers=True),
        "retry": Retry(attempts=2),
        "health": Health(interval_s=0.1, timeout_s=2.0, eject_after=100),
        **sections,
    }
    async with gateway(p, d, **given) as running:
        yield running, p, d


def outcomes(running: object) -> dict[str, int]:
    return {k.value: v for k, v in running.statistics().models["m"].outcomes.items()}


def plans(running: object) -> dict[tuple[Stage, str], int]:
    return running.statistics().models["m"].plans


def no_params(engine: FakeEngine) -> bool:
    return all("kv_transfer_params" not in json.loads(got.body) for got in engine.requests)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("script", [says(answer(prefilled())), in_pieces])
def test_a_stream_comes_from_the_decode_engine_and_names_the_kv_that_the_prefill_engine_kept(script: Script):
    async def main():
        async with pair(script, answer_stream) as (running, p, d):
            asked = chat(stream=True, max_completion_tokens=20, min_tokens=3, logprobs=True, temperature=0)
            reply = await send(running.port, post(asked, headers="x-beaconry-debug: 1\r\nx-request-id: mine\r\n"))
            assert reply.body == event("a") + event("b") + DONE
            assert reply.headers["x-request-id"] == "mine"
            assert (reply.headers["x-beaconry-prefill-endpoint"], reply.headers["x-beaconry-endpoint"]) == ("e0", "e1")
            first, second = json.loads(p.requests[0].body), json.loads(d.requests[0].body)
            assert first.pop("kv_transfer_params").items() >= ASKED.items()
            assert first == chat(max_completion_tokens=1, max_tokens=1, stream=False, temperature=0)
            assert d.requests[0].body.endswith(b',"kv_transfer_params":' + PARAMS + b"}")
            second.pop("kv_transfer_params")
            assert second == asked | {"stream_options": {"include_usage": True}}
            assert p.requests[0].target == d.requests[0].target == "/v1/chat/completions"
            ids = {got.headers["x-request-id"] for got in (*p.requests, *d.requests)}
            assert len(ids) == 1
            assert "mine" not in ids
            assert outcomes(running) == {"completed": 1}
            assert plans(running) == {(Stage.PREFILL, "always"): 1}

    run(main)


def test_usage_is_the_decode_engines_and_nobody_else_s():
    async def main():
        async with pair(decode=answer_stream) as (running, _, _):
            options = {"stream_options": {"include_usage": True}}
            reply = await send(running.port, post(chat(stream=True, **options)))
            assert reply.body == event("a") + event("b") + USAGE_EVENT + DONE
            model = running.statistics().models["m"]
            assert (model.input_tokens.total, model.output_tokens.total) == (5, 2)

    run(main)


def test_a_renamed_model_has_its_engines_name_in_both_legs_and_the_clients_in_the_answer():
    async def decode(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b'{"model":"m","choices":[]}'))

    async def main():
        models = {"alias": ModelConfig(targets=(Target(model="m"),))}
        async with pair(decode=decode, models=models) as (running, p, d):
            asked = chat() | {"model": "alias"}
            reply = await send(running.port, post(asked, headers="accept-encoding: gzip\r\n"))
            assert reply.json()["model"] == "alias"
            assert [json.loads(got.body)["model"] for got in (*p.requests, *d.requests)] == ["m", "m"]

    run(main)


def test_a_prefill_engine_is_not_asked_to_compress():
    async def main():
        async with pair() as (running, p, d):
            await send(running.port, post(chat(), headers="accept-encoding: gzip\r\nx-own: 1\r\n"))
            assert "accept-encoding" not in p.requests[0].headers
            assert d.requests[0].headers["accept-encoding"] == "gzip"
            assert p.requests[0].headers["x-own"] == d.requests[0].headers["x-own"] == "1"

    run(main)


def test_what_a_client_says_of_kv_reaches_neither_engine():
    async def main():
        async with pair() as (running, p, d):
            forged = {
                "kv_transfer_params": {"do_remote_prefill": True},
                "vllm_xargs": {"kv_transfer_params": 1, "a": 2},
            }
            assert (await send(running.port, post(chat(**forged)))).status == 200
            assert json.loads(p.requests[0].body)["kv_transfer_params"].items() >= ASKED.items()
            assert d.requests[0].body.count(b"kv_transfer_params") == 1
            assert d.requests[0].body.endswith(PARAMS + b"}")
            assert json.loads(d.requests[0].body)["vllm_xargs"] == {"a": 2}

    run(main)


@pytest.mark.parametrize(
    "broken",
    [
        says(answer(b"{}", status=500)),
        says(answer(b"{}", status=503)),
        says(answer(prefilled(b"null"))),
        says(answer(prefilled(b'{"do_remote_prefill":true}'))),
        says(answer(prefilled(PARAMS.replace(b"5600", b'"5600"')))),
        says(answer(b"\xff not JSON")),
        says(b"not HTTP\r\n\r\n"),
        pour,
        reset,
    ],
    ids=["500", "503", "no-params", "half-params", "wrong-type", "not-json", "not-http", "endless", "reset"],
)
def test_what_cannot_be_prefilled_is_answered_whole_and_names_no_kv(broken: Script):
    async def main():
        async with pair(broken) as (running, p, d):
            assert (await send(running.port, post(chat()))).status == 200
            assert plans(running)[Stage.WHOLE, "prefill-failed"] == 1
            assert outcomes(running) == {"completed": 1}
            assert len(p.requests) == 1
            assert no_params(d)

    run(main)


def test_a_prefill_engine_that_keeps_nothing_is_told_of_once(caplog: pytest.LogCaptureFixture):
    async def main():
        async with pair(says(answer(prefilled(b"null")))) as (running, p, _):
            for _ in range(3):
                assert (await send(running.port, post(chat()))).status == 200
            assert len(p.requests) == 3
        (said,) = caplog.records
        assert "endpoint e0 has role prefill, but its answers name no KV" in said.getMessage()

    run(main)


def test_what_cannot_be_prefilled_ends_with_502_where_that_is_wanted():
    async def main():
        knobs = Disaggregation(mode="always", on_prefill_failure="error")
        async with pair(says(answer(prefilled(b"null"))), disaggregation=knobs) as (running, _, d):
            reply = await send(running.port, post(chat()))
            assert (reply.status, d.requests) == (502, [])
            assert "named no KV" in reply.json()["error"]["message"]

    run(main)


def test_a_refusal_is_the_answering_engines_to_tell():
    async def main():
        refusal = says(answer(b'{"error":{"message":"too long"}}', status=400))
        async with pair(refusal, refusal) as (running, p, d):
            reply = await send(running.port, post(chat()))
            assert (reply.status, reply.json()["error"]["message"]) == (400, "too long")
            assert len(p.requests) == 1
            assert no_params(d)
            assert plans(running)[Stage.WHOLE, "prefill-refused"] == 1
            assert outcomes(running) == {"engine-refused": 1}

    run(main)


def test_kv_that_cannot_be_fetched_has_the_request_run_whole():
    async def fetching_fails(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(status=500) if b"kv_transfer_params" in got.body else whole("whole"))

    async def main():
        async with pair(decode=fetching_fails) as (running, p, d):
            reply = await send(running.port, post(chat()))
            assert reply.json()["choices"][0]["message"]["content"] == "whole"
            assert plans(running)[Stage.WHOLE, "handover-failed"] == 1
            assert (len(p.requests), len(d.requests)) == (1, 2)

    run(main)


def test_a_response_whose_kv_cannot_be_fetched_runs_whole_and_the_client_sees_nothing_of_the_first_try():
    announced = b'event: response.created\ndata: {"response":{"id":"%b"}}\n\n'
    said = b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n'

    async def fetching_fails(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        if b"kv_transfer_params" in got.body:
            writer.write(chunk(announced % b"first"))
            await writer.drain()
            writer.close()  # as vLLM does, without an end
        else:
            writer.write(chunk(announced % b"second") + chunk(said) + b"0\r\n\r\n")

    async def main():
        async with pair(decode=fetching_fails) as (running, p, d):
            asked = {"model": "m", "input": "hello", "stream": True}
            reply = await send(running.port, post(asked, "/v1/responses"))
            assert reply.body == announced % b"second" + said
            assert plans(running)[Stage.WHOLE, "handover-failed"] == 1
            assert (len(p.requests), len(d.requests)) == (1, 2)

    run(main)


def test_a_decode_leg_that_is_reset_is_prefilled_anew_with_kv_of_its_own():
    answers = iter([prefilled(), prefilled(PARAMS.replace(b"chatcmpl-1", b"chatcmpl-2"))])

    async def prefill(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(next(answers)))

    async def decode(got: Got, writer: asyncio.StreamWriter) -> None:
        if b"chatcmpl-1" in got.body:
            writer.transport.abort()
        else:
            writer.write(whole())

    async def main():
        engines = [FakeEngine(prefill, role=Role.PREFILL), *(FakeEngine(decode, role=Role.DECODE) for _ in range(2))]
        async with gateway(*engines, disaggregation=Disaggregation(mode="always")) as running:
            assert (await send(running.port, post(chat()))).status == 200
            assert [len(engine.requests) for engine in engines] == [2, 1, 1]

    run(main)


def test_a_decode_engine_that_breaks_off_ends_the_stream_with_an_error_event():
    async def main():
        async with pair(decode=break_off) as (running, p, _):
            reply = await send(running.port, post(chat(stream=True)))
            assert b"stream_broken" in reply.body
            assert len(p.requests) == 1
            assert outcomes(running) == {"stream-broken": 1}

    run(main)


@pytest.mark.parametrize("hung", ["prefill", "decode"])
def test_either_leg_has_to_begin_in_time(hung: str):
    async def main():
        async with pair(**{hung: hang}, deadlines=Deadlines(first_byte_s=0.2)) as (running, p, d):
            reply = await send(running.port, post(chat(stream=True)))
            assert reply.status == 504
            assert outcomes(running) == {"engine-timeout": 1}
            assert len(d.requests) == (hung == "decode")
            assert len(p.requests) == 1
            assert running._driver._relays == {}

    run(main)


@pytest.mark.parametrize("hung", ["prefill", "decode"])
def test_a_client_that_leaves_ends_the_leg_that_runs(hung: str):
    async def main():
        async with pair(**{hung: hang}) as (running, p, d):
            _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(post(chat(stream=True)))
            engine = p if hung == "prefill" else d
            await until(lambda: bool(engine.requests))
            writer.transport.abort()
            await until(lambda: outcomes(running) == {"client-gone": 1})
            assert running._driver._relays == {}

    run(main)


@pytest.mark.parametrize("hung", ["prefill", "decode"])
def test_a_stop_cuts_off_either_leg_at_its_deadline(hung: str):
    async def main():
        async with pair(**{hung: hang}) as (running, p, d):
            asked = asyncio.ensure_future(send(running.port, post(chat())))
            engine = p if hung == "prefill" else d
            await until(lambda: bool(engine.requests))
            await running.stop(0.1)
            assert (await asked).status == 503
            assert outcomes(running) == {"shutting-down": 1}

    run(main)


def test_a_stop_lets_both_legs_finish():
    async def slowly(got: Got, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(answer(prefilled()))

    async def main():
        async with pair(slowly) as (running, p, _):
            asked = asyncio.ensure_future(send(running.port, post(chat())))
            await until(lambda: bool(p.requests))
            await running.stop(5.0)
            assert (await asked).status == 200

    run(main)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_engines_and_clients_do_every_request_has_one_outcome(seed: int):
    rng = Random(seed)

    async def prefill(got: Got, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(rng.random() * 0.02)
        await rng.choice(
            [in_pieces, in_pieces, in_pieces, reset, says(answer(b"{}", 500)), says(answer(prefilled(b"[]")))]
        )(got, writer)

    async def decode(got: Got, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(rng.random() * 0.02)
        await rng.choice([answer_stream, answer_stream, answer_stream, reset, says(answer(b"{}", 500)), break_off])(
            got, writer
        )

    async def ask(port: int) -> bool:
        """Returns whether it stayed for the answer."""
        asked = asyncio.ensure_future(send(port, post(chat(stream=True))))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() * 0.05)
            asked.cancel()
        await asyncio.wait([asked])
        return not asked.cancelled()

    async def main():
        engines = [FakeEngine(prefill, role=Role.PREFILL) for _ in range(2)]
        engines += [FakeEngine(decode, role=Role.DECODE) for _ in range(2)]
        knobs = {"disaggregation": Disaggregation(mode="always"), "health": Health(interval_s=0.1, eject_after=1000)}
        async with gateway(*engines, **knobs) as running:
            stayed = await asyncio.gather(*(ask(running.port) for _ in range(60)))
            await until(lambda: running.statistics().in_flight == 0)
            counts = outcomes(running)
            gone = counts.get("client-gone", 0)
            assert stayed.count(True) <= sum(counts.values()) - gone <= 60 - gone  # who left early may not have come
            assert gone <= stayed.count(False)
            assert counts["completed"] > 10
            assert running._driver._relays == {}

    run(main)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": ["one", "two"]}),
        ("/v1/completions", {"prompt": "one", "echo": True, "logprobs": 1}),
        ("/v1/chat/completions", {"messages": [], "n": 2}),
        ("/v1/chat/completions", {"messages": [], "truncate_prompt_tokens": -1}),
        ("/v1/responses", {"input": "one", "tools": [{"type": "code_interpreter"}]}),
        ("/v1/embeddings", {"input": "one"}),
    ],
)
def test_what_only_one_engine_can_give_is_not_split(path: str, fields: dict[str, object]):
    async def main():
        async with pair() as (running, p, d):
            assert (await send(running.port, post({"model": "m"} | fields, path))).status == 200
            assert (len(p.requests), len(d.requests)) == (0, 1)
            assert no_params(d)

    run(main)
