"""The gateway before engines that are well, slow, broken or lying."""

import asyncio
import json

import pytest

from beaconry.apps.assemble import Gateway
from beaconry.config.gateway import Access, Deadlines, GatewayConfig, Health, Limits, Retry, Scrape
from beaconry.config.tenants import ModelConfig, Target
from beaconry.router.facts import EndpointGone, EndpointSeen
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import OperatorError
from beaconry.workload.traces import read_trace
from tests.loopback.fake_engine import (
    DONE,
    SSE_HEAD,
    USAGE_EVENT,
    FakeEngine,
    Got,
    answer_stream,
    answer_whole,
    chat,
    chunk,
    event,
    gateway,
    post,
    read_reply,
    run,
    send,
    whole,
)


async def fail_500(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.write(whole(status=500))


async def hang(got: Got, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def reset(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def head_then_reset(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE_HEAD)
    await writer.drain()
    await asyncio.sleep(0.02)
    writer.transport.abort()


async def garbage(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.write(b"this is not HTTP\r\n\r\n")


async def shutting_down(got: Got, writer: asyncio.StreamWriter) -> None:
    body = b'{"choices":[{"message":{"content":""},"finish_reason":"abort"}]}'
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )


async def break_off(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE_HEAD + chunk(event("a")))
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()


def outcomes(running: object) -> dict[str, int]:
    return {k.value: v for k, v in running.statistics().models["m"].outcomes.items()}


def test_a_whole_answer_passes():
    async def main():
        engine = FakeEngine()
        async with gateway(engine) as running:
            reply = await send(running.port, post(chat()))
            assert (reply.status, reply.json()["choices"][0]["message"]["content"]) == (200, "hi")
            assert json.loads(engine.requests[0].body) == chat()
            assert outcomes(running) == {"completed": 1}

    run(main)


@pytest.mark.parametrize("asks", [True, False])
def test_a_stream_passes_byte_exact_and_its_usage_is_known_either_way(asks: bool):
    async def main():
        engine = FakeEngine(answer_stream)
        options = {"stream_options": {"include_usage": True}} if asks else {}
        async with gateway(engine) as running:
            reply = await send(running.port, post(chat(stream=True, **options)))
            assert reply.body == event("a") + event("b") + (USAGE_EVENT if asks else b"") + DONE
            endpoint = running.statistics().endpoints[0]
            assert (endpoint.prompt_tokens, endpoint.output_tokens) == (5, 2)

    run(main)


def test_requests_go_round_and_connections_are_kept():
    async def main():
        engines = [FakeEngine(), FakeEngine()]
        async with gateway(*engines) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            for _ in range(8):
                writer.write(post(chat()))
                assert (await read_reply(reader)).status == 200
            assert [len(e.requests) for e in engines] == [4, 4]
            writer.close()

    run(main)


@pytest.mark.parametrize("broken", [fail_500, reset, head_then_reset, garbage, shutting_down])
@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_byte_is_invisible_to_the_client(broken: object, stream: bool):
    async def main():
        async with gateway(FakeEngine(broken), FakeEngine(answer_stream if stream else answer_whole)) as running:
            replies = await asyncio.gather(*(send(running.port, post(chat(stream=stream))) for _ in range(6)))
            assert [r.status for r in replies] == [200] * 6
            assert all(r.complete for r in replies)
            assert outcomes(running) == {"completed": 6}

    run(main)


def test_a_refused_connection_is_tried_elsewhere():
    async def main():
        gone = FakeEngine()
        async with gateway(gone) as first:
            port = gone.port
            del first
        good = FakeEngine()
        async with gateway(good) as running:
            from beaconry.router.facts import EndpointSeen
            from beaconry.values.endpoint import Endpoint

            running.tell(EndpointSeen(Endpoint(name="gone", host="127.0.0.1", port=port, model="m")))
            for _ in range(4):
                assert (await send(running.port, post(chat()))).status == 200

    run(main)


def test_when_every_engine_fails_the_client_gets_one_502():
    async def main():
        async with gateway(FakeEngine(fail_500), FakeEngine(reset)) as running:
            reply = await send(running.port, post(chat()))
            assert reply.status == 502
            assert reply.json()["error"]["type"] == "server_error"
            assert outcomes(running) == {"engine-failed": 1}

    run(main)


def test_a_failure_after_the_first_byte_ends_the_stream_with_an_error_event():
    async def main():
        engine = FakeEngine(break_off)
        async with gateway(engine) as running:
            reply = await send(running.port, post(chat(stream=True)))
            first, second = reply.body.split(b"\n\n")[:2]
            assert first + b"\n\n" == event("a")
            assert json.loads(second.removeprefix(b"data: "))["error"]["code"] == "stream_broken"
            assert DONE not in reply.body
            assert outcomes(running) == {"stream-broken": 1}

    run(main)


CREATED = b'event: response.created\ndata: {"response":{"id":"resp_1"},"type":"response.created"}\n\n'
SAID = b'event: response.output_text.delta\ndata: {"delta":"a","type":"response.output_text.delta"}\n\n'


def test_a_response_has_begun_when_it_says_something_and_not_when_it_is_announced():
    go_on = asyncio.Event()

    async def announce(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(CREATED))
        await writer.drain()
        await go_on.wait()
        writer.write(chunk(SAID))
        await writer.drain()
        await asyncio.sleep(3600)

    async def main():
        async with gateway(FakeEngine(announce)) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(post({"model": "m", "input": "hello", "stream": True}, "/v1/responses"))
            await asyncio.sleep(0.1)
            (endpoint,) = running.statistics().endpoints
            assert (endpoint.prefilling, endpoint.decoding) == (1, 0)
            go_on.set()
            assert CREATED in await reader.readuntil(SAID)
            (endpoint,) = running.statistics().endpoints
            assert (endpoint.prefilling, endpoint.decoding) == (0, 1)
            writer.transport.abort()

    run(main)


def test_a_response_whose_engine_dies_behind_the_announcement_is_answered_by_another():
    async def die(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(CREATED))
        await writer.drain()
        writer.transport.abort()

    async def serve(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(CREATED) + chunk(SAID) + b"0\r\n\r\n")

    async def main():
        engines = FakeEngine(die), FakeEngine(serve)
        async with gateway(*engines) as running:
            replies = [
                await send(running.port, post({"model": "m", "input": "hello", "stream": True}, "/v1/responses"))
                for _ in range(2)
            ]
            assert [reply.body for reply in replies] == [CREATED + SAID] * 2
            assert len(engines[0].requests) >= 1
            assert outcomes(running) == {"completed": 2}

    run(main)


def test_a_whole_answer_cut_short_does_not_look_complete():
    async def cut(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    async def main():
        async with gateway(FakeEngine(cut)) as running:
            reply = await send(running.port, post(chat()))
            assert not reply.complete

    run(main)


def test_a_second_answer_behind_the_first_reaches_nobody():
    async def twice(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(whole("first") + whole("second"))

    async def main():
        async with gateway(FakeEngine(twice), FakeEngine()) as running:
            replies = [await send(running.port, post(chat())) for _ in range(4)]
            assert [r.json()["choices"][0]["message"]["content"] for r in replies] == ["hi"] * 4

    run(main)


def test_bytes_that_nobody_asked_for_end_their_connection_and_cost_no_request():
    async def talkative(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(whole())
        await writer.drain()
        await asked_again.wait()
        writer.write(whole("unasked"))

    asked_again = asyncio.Event()

    async def main():
        engine = FakeEngine(talkative)
        async with gateway(engine, health=Health(interval_s=100.0), scrape=Scrape(interval_s=100.0)) as running:
            assert (await send(running.port, post(chat()))).status == 200
            asked_again.set()
            while engine.open_connections > 1:
                await asyncio.sleep(0.001)
            engine.script = answer_whole
            reply = await send(running.port, post(chat()))
            assert reply.json()["choices"][0]["message"]["content"] == "hi"

    run(main)


def test_an_interim_answer_is_not_the_answer():
    async def early(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + whole("real"))

    async def main():
        async with gateway(FakeEngine(early)) as running:
            reply = await send(running.port, post(chat()))
            assert (reply.status, reply.json()["choices"][0]["message"]["content"]) == (200, "real")
            assert "link" not in reply.headers

    run(main)


def test_an_engine_that_closes_after_each_answer_is_asked_on_a_new_connection():
    async def last(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(whole().replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))

    async def main():
        engine = FakeEngine(last)
        async with gateway(engine, retry=Retry(attempts=1)) as running:
            for _ in range(3):
                assert (await send(running.port, post(chat()))).status == 200

    run(main)


def test_an_endpoint_that_is_gone_keeps_no_connection_and_one_that_moves_is_reached_where_it_is():
    async def main():
        here, there = FakeEngine(), FakeEngine()
        server = await asyncio.start_server(there.serve, "127.0.0.1", 0)
        async with gateway(here) as running:
            assert (await send(running.port, post(chat()))).status == 200
            moved = Endpoint(name="e0", host="127.0.0.1", port=server.sockets[0].getsockname()[1], model="m")
            running.tell(EndpointSeen(moved))
            assert (await send(running.port, post(chat()))).status == 200
            assert (len(here.requests), len(there.requests)) == (1, 1)
            while here.open_connections:
                await asyncio.sleep(0.001)
            running.tell(EndpointGone("e0"))
            while there.open_connections:
                await asyncio.sleep(0.001)
            assert (await send(running.port, post(chat()))).status == 404
        server.close()

    run(main)


def test_a_long_answer_of_unknown_length_is_not_kept_for_its_usage():
    async def pour(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(100):
            writer.write(chunk(b"x" * 65_536))
            await writer.drain()
        await asyncio.sleep(3600)

    async def main():
        async with gateway(FakeEngine(pour)) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(post(chat(), path="/v1/audio/speech"))
            await reader.readuntil(b"\r\n\r\n")
            got = 0
            while got < 100 * 65_536:
                got += len(await reader.read(1 << 20))
            (relay,) = running._driver._relays.values()
            assert relay._collected is None
            writer.transport.abort()
            while running.statistics().in_flight:
                await asyncio.sleep(0.01)

    run(main)


def test_an_engines_refusal_is_passed_on():
    async def refuse(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(whole("too long", status=400))

    async def main():
        async with gateway(FakeEngine(refuse)) as running:
            assert (await send(running.port, post(chat()))).status == 400
            assert outcomes(running) == {"engine-refused": 1}

    run(main)


def test_an_engine_that_closes_idle_connections_costs_nobody_a_request():
    async def once(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(whole())
        await writer.drain()
        writer.close()

    async def main():
        async with gateway(FakeEngine(once), retry=Retry(attempts=1)) as running:
            for _ in range(20):
                assert (await send(running.port, post(chat()))).status == 200

    run(main)


def test_a_client_that_leaves_ends_the_engines_work_at_once():
    async def main():
        engine = FakeEngine(hang)
        async with gateway(engine) as running:
            _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(post(chat(stream=True)))
            while not engine.requests:
                await asyncio.sleep(0.01)
            writer.transport.abort()
            while outcomes(running) != {"client-gone": 1}:
                await asyncio.sleep(0.01)

    run(main)


def test_an_engine_without_first_byte_ends_with_504():
    async def main():
        async with gateway(FakeEngine(hang), deadlines=Deadlines(first_byte_s=0.1)) as running:
            reply = await send(running.port, post(chat(stream=True)))
            assert reply.status == 504
            assert outcomes(running) == {"engine-timeout": 1}

    run(main)


def test_a_stream_that_stalls_is_ended():
    async def stall(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(event("a")))
        await writer.drain()
        await asyncio.sleep(3600)

    async def main():
        async with gateway(FakeEngine(stall), deadlines=Deadlines(idle_s=0.1)) as running:
            reply = await send(running.port, post(chat(stream=True)))
            assert b"engine_timeout" in reply.body

    run(main)


def test_requests_waiting_on_a_hung_engine_move_when_it_fails_its_health_checks():
    async def main():
        hung = FakeEngine(hang)
        async with gateway(hung, FakeEngine()) as running:
            pending = [asyncio.ensure_future(send(running.port, post(chat()))) for _ in range(6)]
            while len(hung.requests) < 3:
                await asyncio.sleep(0.01)
            hung.healthy = False
            assert [r.status for r in await asyncio.gather(*pending)] == [200] * 6

    run(main)


def test_a_slow_client_slows_the_engine_down_not_the_gateway_s_memory():
    sent = 0

    async def pour(got: Got, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(SSE_HEAD)
        for _ in range(4000):
            writer.write(chunk(b"data: " + b"x" * 16_384 + b"\n\n"))
            sent += 16_384
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async def main():
        async with gateway(FakeEngine(pour)) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=4096)
            writer.write(post(chat(stream=True)))
            await reader.readuntil(b"\r\n\r\n")
            last = -1
            while last != sent:
                last = sent
                await asyncio.sleep(0.2)
            assert sent < 4000 * 16_384 / 2
            total = 0
            while total < 4000 * 16_384:
                total += len(await reader.read(1 << 20))
            writer.close()

    run(main)


@pytest.mark.parametrize(
    ("payload", "status", "code"),
    [
        (post(b"{"), 400, "invalid_json"),
        (post({"messages": []}), 400, "invalid_type"),
        (post(chat(model="nobody")), 404, "model_not_found"),
        (post(chat(), path="/sleep"), 404, "unknown_path"),
        (post(chat(), path="/v1/../sleep"), 404, "unknown_path"),
        (post(chat(), path="/v1/%2e%2e/sleep"), 404, "unknown_path"),
        (post(chat(), path="//v1/chat/completions"), 404, "unknown_path"),
        (post(chat(), path="/v1/load_lora_adapter"), 404, "unknown_path"),
        (post(chat(), headers="content-type: multipart/form-data; boundary=x\r\n"), 415, "unsupported_media_type"),
        (b"GET /sleep HTTP/1.1\r\nhost: x\r\n\r\n", 404, "unknown_path"),
        (b"DELETE /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 405, "method_not_allowed"),
    ],
)
def test_what_no_engine_should_see_is_refused_in_openais_form(payload: bytes, status: int, code: str):
    async def main():
        engine = FakeEngine()
        async with gateway(engine) as running:
            reply = await send(running.port, payload)
            assert (reply.status, reply.json()["error"]["code"]) == (status, code)
            assert engine.requests == []

    run(main)


def test_other_v1_paths_are_passed_on_by_model():
    async def main():
        engine = FakeEngine()
        async with gateway(engine) as running:
            assert (await send(running.port, post({"model": "m", "query": "q"}, path="/v1/rerank?x=1"))).status == 200
            assert engine.requests[0].target == "/v1/rerank?x=1"

    run(main)


def test_internal_headers_do_not_pass_and_authorization_does():
    async def main():
        engine = FakeEngine()
        async with gateway(engine) as running:
            await send(
                running.port,
                post(chat(), headers="x-data-parallel-rank: 1\r\nauthorization: Bearer k\r\n"),
            )
            headers = engine.requests[0].headers
            assert "x-data-parallel-rank" not in headers
            assert headers["authorization"] == "Bearer k"

    run(main)


def test_equal_request_ids_of_two_clients_do_not_meet_in_an_engine_and_answers_bear_them():
    async def main():
        engine = FakeEngine()
        async with gateway(engine) as running:
            replies = [await send(running.port, post(chat(), headers="x-request-id: mine\r\n")) for _ in range(2)]
            ids = {request.headers["x-request-id"] for request in engine.requests}
            assert len(ids) == 2
            assert "mine" not in ids
            assert [reply.headers["x-request-id"] for reply in replies] == ["mine", "mine"]

    run(main)


def test_models_are_listed_once_each():
    async def main():
        async with gateway(FakeEngine(), FakeEngine()) as running:
            reply = await send(running.port, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert [card["id"] for card in reply.json()["data"]] == ["m"]
            one = await send(running.port, b"GET /v1/models/m HTTP/1.1\r\nhost: x\r\n\r\n")
            assert one.json() == reply.json()["data"][0]
            assert (await send(running.port, b"GET /v1/models/n HTTP/1.1\r\nhost: x\r\n\r\n")).status == 404

    run(main)


def test_a_gateway_is_ready_while_an_engine_is():
    async def main():
        engine = FakeEngine()
        async with gateway(engine, health=Health(interval_s=0.01, unhealthy_after=1)) as running:

            async def ready() -> int:
                return (await send(running.port, b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")).status

            assert await ready() == 200
            engine.healthy = False
            while await ready() == 200:
                await asyncio.sleep(0.001)
            assert await ready() == 503
            assert (await send(running.port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")).status == 200

    run(main)


def test_a_session_keeps_the_model_that_its_name_once_meant():
    async def main():
        targets = tuple(Target(model=name, weight=1) for name in ("m", "n"))
        sections = {"models": {"alias": ModelConfig(targets=targets)}, "access": Access(session_header="X-Session")}
        engine = FakeEngine()
        async with gateway(engine, **sections) as running:
            running.tell(EndpointSeen(Endpoint(name="n", host="127.0.0.1", port=engine.port, model="n")))
            for name in "abcdef" * 2:
                asked = post(chat() | {"model": "alias"}, headers=f"x-session: {name}\r\n")
                assert (await send(running.port, asked)).status == 200
            meant = [json.loads(got.body)["model"] for got in engine.requests]
            assert meant[:6] == meant[6:]
            assert set(meant) == {"m", "n"}

    run(main)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_decision_is_shown_only_where_enabled_and_asked_for(enabled: bool):
    async def main():
        access = Access(debug_headers=enabled)
        async with gateway(FakeEngine(), access=access, policy="expected-cost") as running:
            asked = await send(running.port, post(chat(), headers="x-beaconry-debug: 1\r\n"))
            plain = await send(running.port, post(chat()))
            assert ("x-beaconry-endpoint" in asked.headers) == enabled
            assert "x-beaconry-endpoint" not in plain.headers

    run(main)


def test_the_access_log_has_one_line_per_request_and_no_prompt(tmp_path: object):
    path = tmp_path / "access.log"

    async def main():
        async with gateway(FakeEngine(), access=Access(log=str(path))) as running:
            await send(running.port, post(chat()))
            await send(running.port, post(chat(model="nobody")))

    run(main)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["completed", "refused"]
    assert (lines[0]["prompt_tokens"], lines[0]["endpoint"], lines[0]["status"]) == (5, "e0", 200)
    assert "hello" not in path.read_text()


def test_a_recording_replays_what_was_served_and_holds_no_prompt(tmp_path: object):
    path = tmp_path / "recording.jsonl"
    shared = "a document that both ask about, " * 40

    async def main():
        async with gateway(FakeEngine(), access=Access(record=str(path))) as running:
            for question in ("first", "second"):
                await send(running.port, post(chat(messages=[{"role": "user", "content": shared + question}])))
            await send(running.port, post(chat(model="nobody")))
        with pytest.raises(OperatorError, match=r"exists already; move it away or change access\.record"):
            await Gateway(GatewayConfig(access=Access(record=str(path)))).start()

    run(main)
    text = path.read_text()
    rows = list(read_trace(text.splitlines(), "r"))
    assert [row.input_tokens for row in rows] == [5, 5]  # what the engine reported
    assert rows[0].spans[0].id == rows[1].spans[0].id >= 0
    assert '"outcome":"completed"' not in text  # the default is left out
    assert '"endpoint":"e0"' in text
    assert "document" not in text
    assert "nobody" not in text


def test_a_body_over_the_limit_is_refused():
    async def main():
        async with gateway(FakeEngine(), limits=Limits(body_bytes=100)) as running:
            assert (await send(running.port, post(chat(user="x" * 200)))).status == 413

    run(main)


def test_metrics_tell_what_happened():
    async def main():
        async with gateway(FakeEngine()) as running:
            await send(running.port, post(chat()))
            text = (await send(running.port, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")).body.decode()
            assert 'beaconry_requests_total{model="m",outcome="completed"} 1.0' in text
            assert "llm_d_epp_request_total" in text

    run(main)


def test_stopping_finishes_what_runs_and_refuses_what_comes():
    async def slow(got: Got, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(whole())

    async def main():
        engine = FakeEngine(slow)
        async with gateway(engine) as running:
            pending = asyncio.ensure_future(send(running.port, post(chat())))
            while not engine.requests:
                await asyncio.sleep(0.01)
            stopping = asyncio.ensure_future(running.stop(5.0))
            assert (await pending).status == 200
            await stopping
            running.stop = _nothing

    run(main)


async def _nothing(grace_s: float) -> None:
    """The test has stopped the gateway itself."""


def test_a_metrics_page_that_cannot_be_made_costs_one_request_and_no_stream(caplog):
    async def main():
        async with gateway(FakeEngine()) as running:
            known, running._router.statistics = running._router.statistics, None
            reply = await send(running.port, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            running._router.statistics = known
            assert (reply.status, json.loads(reply.body)["error"]["code"]) == (500, "internal")
            assert (await send(running.port, post(chat()))).status == 200
            assert (await send(running.port, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")).status == 200

    run(main)
    assert "could not be handled" in caplog.text
