"""The simulated engine over real sockets: vLLM's interface, the official client, disconnects, faults, the process itself."""

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import wraps

import openai
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine_server import EngineOptions, serve_engine
from beaconry.values.errors import OperatorError

FAST = LinearStepTime(fixed_s=0.0005)
PATIENCE_S = 20.0
"""Bound on every wait; reached only when something is broken."""


def on_loop(test):
    """Make an async test one that pytest can run, on the event loop of production."""

    @wraps(test)
    def run(*args, **kwargs):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(test(*args, **kwargs), 2 * PATIENCE_S))

    return run


def options(**changes):
    knobs = {
        "models": ("tiny", "alias"),
        "settings": EngineSettings(num_blocks=256),
        "step_time": FAST,
        "max_model_len": 2048,
    }
    return EngineOptions(**(knobs | changes))


@asynccontextmanager
async def running(**changes):
    engine, server = await serve_engine(options(**changes), "127.0.0.1", 0)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield engine, server.port
    finally:
        await server.abort_all()
        engine.generation.engine.check()


class Reply:
    def __init__(self, raw):
        head, _, body = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        self.body = _dechunk(body) if self.headers.get("transfer-encoding") == "chunked" else body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def events(self):
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]


def _dechunk(data):
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        out, data = out + data[:count], data[count + 2 :]
    return out


async def start(port, path, body=None, method=None, headers=()):
    """Send a request; returns the connection's two ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close", f"content-length: {len(data)}", *headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    return reader, writer


async def call(port, path, body=None, method=None, headers=()):
    reader, writer = await start(port, path, body, method, headers)
    raw = await reader.read()
    writer.close()
    return Reply(raw)


async def metrics(port):
    text = (await call(port, "/metrics")).body.decode()
    return {
        (sample.name, *sorted(v for k, v in sample.labels.items() if k not in ("engine", "model_name"))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me a story, please."}]}
PROMPT = {"model": "tiny", "prompt": "once upon a time", "ignore_eos": True}


# -- the official client


@on_loop
async def test_the_openai_client_chats_whole_and_streamed():
    async with (
        running() as (_, port),
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-") as client,
    ):
        assert [model.id for model in (await client.models.list()).data] == ["tiny", "alias"]
        whole = await client.chat.completions.create(**CHAT)
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                **CHAT, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content for c in chunks[:-1]) == whole.choices[0].message.content
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@on_loop
async def test_the_openai_client_completes_whole_and_streamed():
    async with (
        running() as (_, port),
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-") as client,
    ):
        request = {"model": "tiny", "prompt": "once upon", "max_tokens": 5, "extra_body": {"ignore_eos": True}}
        whole = await client.completions.create(**request)
        assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 5)
        text = ""
        async for chunk in await client.completions.create(**request, stream=True):
            text += chunk.choices[0].text
        assert text == whole.choices[0].text


@on_loop
async def test_the_openai_client_raises_its_own_errors():
    async with (
        running() as (_, port),
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0) as client,
    ):
        with pytest.raises(openai.NotFoundError, match="The model `nope` does not exist"):
            await client.chat.completions.create(**(CHAT | {"model": "nope"}))
        with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1"):
            await client.chat.completions.create(**CHAT, max_tokens=0)


# -- generation


@on_loop
async def test_the_same_prompt_and_seed_give_the_same_reply_and_another_seed_another():
    async with running() as (_, port):
        texts = []
        for seed in (1, 1, 2):
            reply = await call(port, "/v1/chat/completions", CHAT | {"seed": seed})
            texts.append(reply.json["choices"][0]["message"]["content"])
        assert texts[0] == texts[1] != texts[2]


@on_loop
async def test_a_stream_ends_with_finish_reason_then_usage_then_done():
    async with running() as (_, port):
        body = PROMPT | {"max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
        reply = await call(port, "/v1/completions", body)
        assert reply.headers["content-type"].startswith("text/event-stream")
        *tokens, usage = reply.events
        assert [event["choices"][0]["finish_reason"] for event in tokens] == [None, None, "length"]
        assert usage["choices"] == []
        assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert usage["usage"] | {"prompt_tokens_details": 0, "completion_tokens_details": 0} == {
            "prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7,
            "prompt_tokens_details": 0, "completion_tokens_details": 0,
        }  # fmt: skip


@on_loop
async def test_every_prompt_gets_n_choices_of_its_own():
    async with running() as (_, port):
        body = PROMPT | {"prompt": ["one", "two"], "n": 2, "max_tokens": 4}
        whole = (await call(port, "/v1/completions", body)).json
        texts = [choice["text"] for choice in whole["choices"]]
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
        assert len(set(texts)) == 4
        assert whole["usage"]["completion_tokens"] == 16
        streamed = ["", "", "", ""]
        for event in (await call(port, "/v1/completions", body | {"stream": True})).events:
            streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert streamed == texts


@on_loop
async def test_a_prompt_may_be_text_or_token_ids_and_both_share_their_blocks():
    async with running() as (_, port):
        text = "a shared beginning of some length, " * 8
        tokens = (await call(port, "/tokenize", {"prompt": text})).json["tokens"]
        first = (await call(port, "/v1/completions", PROMPT | {"prompt": text})).json
        second = (await call(port, "/v1/completions", PROMPT | {"prompt": tokens})).json
        third = (await call(port, "/v1/completions", PROMPT | {"prompt": [tokens]})).json
        assert first["choices"] == second["choices"] == third["choices"]
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 64


@on_loop
async def test_the_next_turn_of_a_conversation_finds_its_past_in_the_cache():
    async with running() as (_, port):
        messages = [{"role": "user", "content": "x" * 400}]
        first = (await call(port, "/v1/chat/completions", {"messages": messages, "max_tokens": 64})).json
        messages += [first["choices"][0]["message"], {"role": "user", "content": "and then?"}]
        messages[1] = {"role": "assistant", "content": messages[1]["content"]}
        second = (await call(port, "/v1/chat/completions", {"messages": messages, "max_tokens": 1})).json
        past = first["usage"]["total_tokens"] - 1  # the last token is never computed
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == past // 16 * 16 > 96


@on_loop
async def test_a_cache_salt_keeps_equal_prompts_apart():
    async with running() as (_, port):
        cached = []
        for salt in ("a", "b", "a"):
            body = PROMPT | {"prompt": "x" * 400, "cache_salt": salt, "max_tokens": 1}
            reply = (await call(port, "/v1/completions", body)).json
            cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached == [0, 0, 96]


@on_loop
async def test_a_stop_string_ends_the_reply_and_is_cut_off():
    async with running() as (_, port):
        whole = (await call(port, "/v1/completions", PROMPT | {"max_tokens": 40})).json["choices"][0]["text"]
        stop = whole[21:26]
        end = whole.find(stop)
        for stream in (False, True):
            reply = await call(port, "/v1/completions", PROMPT | {"max_tokens": 40, "stop": [stop], "stream": stream})
            choices = [event["choices"][0] for event in reply.events] if stream else reply.json["choices"]
            assert "".join(choice["text"] for choice in choices) == whole[:end]
            assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", stop)


@on_loop
async def test_kv_transfer_params_and_unknown_fields_are_ignored():
    async with running() as (_, port):
        body = PROMPT | {
            "max_tokens": 1,
            "kv_transfer_params": {"do_remote_prefill": True},
            "top_k": 3,
            "best_of": None,
        }
        assert (await call(port, "/v1/completions", body)).status == 200


@on_loop
async def test_the_request_id_of_the_client_is_in_the_answer_s_id():
    async with running() as (_, port):
        reply = await call(port, "/v1/chat/completions", CHAT, headers=["X-Request-Id: r-1"])
        assert reply.json["id"] == "chatcmpl-r-1"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/completions", b"{", 400, None),
        ("/v1/completions", b"[]", 400, None),
        ("/v1/completions", {"model": "tiny"}, 400, None),
        ("/v1/completions", PROMPT | {"prompt": []}, 400, "prompt"),
        ("/v1/completions", PROMPT | {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", PROMPT | {"prompt": [-1]}, 400, "prompt"),
        ("/v1/completions", PROMPT | {"prompt": [1, "a"]}, 400, "prompt"),
        ("/v1/completions", PROMPT | {"prompt": "x" * 8192}, 400, "input_tokens"),
        ("/v1/completions", PROMPT | {"max_tokens": 2048}, 400, "input_tokens"),
        ("/v1/completions", PROMPT | {"max_tokens": "many"}, 400, None),
        ("/v1/completions", PROMPT | {"n": 0}, 400, "n"),
        ("/v1/completions", PROMPT | {"n": 10**9}, 400, "n"),
        ("/v1/completions", PROMPT | {"min_tokens": 5, "max_tokens": 4}, 400, "min_tokens"),
        ("/v1/completions", PROMPT | {"stop": ["a", ""]}, 400, "stop"),
        ("/v1/completions", PROMPT | {"cache_salt": ""}, 400, "cache_salt"),
        ("/v1/completions", PROMPT | {"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ("/v1/completions", PROMPT | {"model": "nope"}, 404, "model"),
        ("/v1/chat/completions", CHAT | {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages"),
        (
            "/v1/chat/completions",
            CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages",
        ),
        ("/tokenize", {"model": "tiny"}, 400, "prompt"),
        ("/detokenize", {"tokens": [255]}, 400, "tokens"),
        ("/fault", {"kind": "fire"}, 400, "fault"),
        ("/v1/nothing", {}, 404, None),
        ("/v1/models", {}, 405, None),
    ],
)
@on_loop
async def test_bad_requests_get_an_error_object_that_names_the_place(path, body, status, param):
    async with running() as (engine, port):
        reply = await call(port, path, body)
        assert reply.status == status
        error = reply.json["error"]
        assert (error["code"], error["param"]) == (status, param)
        assert error["message"]
        assert error["type"]
        assert engine.generation.open_answers == 0


@on_loop
async def test_a_prompt_that_is_too_long_is_refused_in_vllm_s_words():
    async with running() as (_, port):
        reply = await call(port, "/v1/completions", PROMPT | {"prompt": "x" * 4000, "max_tokens": 1500})
        assert reply.json["error"] == {
            "message": "This model's maximum context length is 2048 tokens. However, you requested 1500 output tokens and your "
            "prompt contains 1000 input tokens, for a total of 2500 tokens. Please reduce the length of the input prompt or the "
            "number of requested output tokens.",
            "type": "BadRequestError",
            "param": "input_tokens",
            "code": 400,
        }


@on_loop
async def test_too_many_waiting_sequences_are_refused_with_503():
    async with running(max_queued=3) as (_, port):
        reply = await call(port, "/v1/completions", PROMPT | {"n": 4})
        assert reply.status == 503
        assert (await metrics(port))["vllm:admission_rejections_total", "max_num_queued_reqs"] == 1


# -- the rest of the interface


@on_loop
async def test_tokens_go_to_text_and_back():
    async with running() as (_, port):
        tokens = (await call(port, "/tokenize", {"prompt": "héllo wörld", "return_token_strs": True})).json
        assert tokens["count"] == len(tokens["tokens"])
        assert tokens["max_model_len"] == 2048
        assert "".join(tokens["token_strs"]) == "héllo wörld"
        assert (await call(port, "/detokenize", {"tokens": tokens["tokens"]})).json == {"prompt": "héllo wörld"}
        chat = (await call(port, "/tokenize", {"messages": CHAT["messages"]})).json
        usage = (await call(port, "/v1/chat/completions", CHAT)).json["usage"]
        assert chat["count"] == usage["prompt_tokens"]


@on_loop
async def test_health_version_load_and_models_answer():
    async with running() as (_, port):
        assert ((await call(port, "/health")).status, (await call(port, "/ping", b"")).body) == (200, b"")
        assert (await call(port, "/health", method="HEAD")).status == 200
        assert (await call(port, "/version")).json["version"].startswith("0.32.0+beaconry")
        assert (await call(port, "/load")).json == {"server_load": 0}
        described = (await call(port, "/v1/models")).json["data"]
        assert [(model["id"], model["max_model_len"]) for model in described] == [("tiny", 2048), ("alias", 2048)]


@on_loop
async def test_metrics_have_vllm_s_names_and_add_up():
    async with running() as (_, port):
        for _ in range(2):
            await call(port, "/v1/completions", PROMPT | {"prompt": "x" * 400, "max_tokens": 20})
        seen = await metrics(port)
        assert seen["vllm:num_requests_running",] == seen["vllm:num_requests_waiting",] == 0
        assert seen["vllm:kv_cache_usage_perc",] == 0
        assert seen["vllm:prefix_cache_queries_total",] == seen["vllm:prompt_tokens_total",] == 200
        assert seen["vllm:prefix_cache_hits_total",] == 96
        assert seen["vllm:prompt_tokens_by_source_total", "local_compute"] == 104
        assert seen["vllm:generation_tokens_total",] == 40
        assert seen["vllm:request_success_total", "length"] == 2
        assert seen["vllm:time_to_first_token_seconds_count",] == 2
        assert seen["vllm:inter_token_latency_seconds_count",] == 38
        assert seen["vllm:e2e_request_latency_seconds_count",] == 2
        assert seen["vllm:request_prompt_tokens_sum",] == 200
        assert ("vllm:num_preemptions_total",) in seen
        config = [key for key in seen if key[0] == "vllm:cache_config_info"]
        assert len(config) == 1
        assert {"16", "256", "4096"} <= set(config[0])


@on_loop
async def test_resetting_the_prefix_cache_forgets_everything():
    async with running() as (_, port):
        body = PROMPT | {"prompt": "x" * 400}
        await call(port, "/v1/completions", body)
        assert (await call(port, "/reset_prefix_cache", b"")).status == 200
        reply = await call(port, "/v1/completions", body)
        assert reply.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


# -- clients that leave or read slowly


@pytest.mark.parametrize("stream", [False, True])
@on_loop
async def test_a_client_that_leaves_frees_its_blocks(stream):
    async with running(step_time=LinearStepTime(fixed_s=0.005)) as (engine, port):
        body = PROMPT | {"max_tokens": 2000, "stream": stream, "n": 2}
        _, writer = await start(port, "/v1/completions", body)
        await until(lambda: engine.generation.engine.statistics().running == 2)
        writer.transport.abort()
        await until(lambda: engine.generation.engine.idle)
        assert engine.generation.engine.statistics().kv_usage == 0.0
        assert engine.generation.open_answers == 0
        assert (await metrics(port))["vllm:request_success_total", "abort"] == 2


@on_loop
async def test_a_client_that_reads_slowly_gets_all_of_it():
    async with running(settings=EngineSettings(num_blocks=9000), max_model_len=120_000, speed=1000.0) as (engine, port):
        body = PROMPT | {"max_tokens": 6000, "stream": True, "n": 4}
        reader, writer = await start(port, "/v1/completions", body)
        writer.transport.pause_reading()
        await until(lambda: engine.generation.engine.statistics().generation_tokens == 24_000)
        assert engine.generation.engine.idle
        writer.transport.resume_reading()
        reply = Reply(await reader.read())
        writer.close()
        texts = ["", "", "", ""]
        for event in reply.events:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert [len(text) for text in texts] == [24_000] * 4


# -- shutting down


@on_loop
async def test_while_it_drains_running_requests_finish_and_new_ones_are_aborted():
    async with running(step_time=LinearStepTime(fixed_s=0.005)) as (engine, port):
        running_request = asyncio.create_task(call(port, "/v1/completions", PROMPT | {"max_tokens": 60}))
        await until(lambda: engine.generation.open_answers)
        drained = asyncio.create_task(engine.generation.drain(PATIENCE_S))
        await asyncio.sleep(0)
        assert (await call(port, "/health")).status == 200
        whole = (await call(port, "/v1/chat/completions", CHAT)).json
        assert whole["choices"][0]["finish_reason"] == "abort"
        assert whole["choices"][0]["message"]["content"] == ""
        streamed = await call(port, "/v1/completions", PROMPT | {"stream": True})
        assert [event["choices"][0]["finish_reason"] for event in streamed.events] == ["abort"]
        assert (await running_request).json["usage"]["completion_tokens"] == 60
        assert await drained


@on_loop
async def test_a_drain_gives_up_at_its_deadline():
    async with running(step_time=LinearStepTime(fixed_s=100.0)) as (engine, port):
        _, writer = await start(port, "/v1/completions", PROMPT)
        await until(lambda: engine.generation.open_answers)
        assert not await engine.generation.drain(0.01)
        writer.transport.abort()


# -- faults


def fault(**fields):
    return [f"x-beaconry-fault: {json.dumps(fields)}"]


@on_loop
async def test_a_request_can_be_made_to_fail():
    async with running() as (_, port):
        reply = await call(port, "/v1/completions", PROMPT, headers=fault(kind="error"))
        assert (reply.status, reply.json["error"]["type"]) == (500, "InternalServerError")
        assert (await call(port, "/v1/completions", PROMPT)).status == 200
        assert (await call(port, "/v1/completions", PROMPT, headers=["x-beaconry-fault: nonsense"])).status == 400


@pytest.mark.parametrize("stream", [False, True])
@on_loop
async def test_a_connection_can_be_reset_after_some_tokens(stream):
    async with running() as (engine, port):
        body = PROMPT | {"stream": stream, "max_tokens": 50}
        reader, writer = await start(port, "/v1/completions", body, headers=fault(kind="reset", after_tokens=3))
        data = b""
        with pytest.raises(ConnectionResetError):
            while chunk := await reader.read(1 << 16):
                data += chunk
            raise ConnectionResetError  # a reset that arrives as an end of stream
        writer.close()
        assert b"[DONE]" not in data
        assert data.count(b"data: ") <= 3
        await until(lambda: engine.generation.engine.idle)
        assert engine.generation.open_answers == 0


@on_loop
async def test_a_slow_first_token_delays_that_request_only():
    async with running() as (_, port):
        slow = asyncio.create_task(call(port, "/v1/completions", PROMPT, headers=fault(kind="slow", delay_s=0.3)))
        assert (await call(port, "/v1/completions", PROMPT)).status == 200
        assert not slow.done()
        assert (await slow).status == 200


@on_loop
async def test_a_hanging_request_is_never_answered_and_holds_nothing():
    async with running() as (engine, port):
        reader, writer = await start(port, "/v1/completions", PROMPT, headers=fault(kind="hang"))
        assert (await call(port, "/v1/completions", PROMPT)).status == 200
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.05)
        assert engine.generation.engine.idle
        writer.transport.abort()


@on_loop
async def test_an_engine_that_hangs_answers_nothing_until_it_wakes():
    async with running(step_time=LinearStepTime(fixed_s=0.002)) as (engine, port):
        before = asyncio.create_task(call(port, "/v1/completions", PROMPT | {"max_tokens": 20}))
        await until(lambda: not engine.generation.engine.idle)
        await call(port, "/fault", {"kind": "hang"})
        during = asyncio.create_task(call(port, "/health"))
        steps = engine.generation.engine.statistics().steps
        await asyncio.sleep(0.05)
        assert engine.generation.engine.statistics().steps == steps
        assert not before.done()
        assert not during.done()
        assert (await call(port, "/fault", method="DELETE")).status == 200
        assert (await before).json["usage"]["completion_tokens"] == 20
        assert (await during).status == 200


@on_loop
async def test_a_fault_of_the_engine_ends_by_itself():
    async with running() as (_, port):
        await call(port, "/fault", {"kind": "error", "status": 503, "for_s": 0.2})
        assert (await call(port, "/v1/completions", PROMPT)).status == 503
        assert (await call(port, "/health")).status == 200
        await asyncio.sleep(0.25)
        assert (await call(port, "/v1/completions", PROMPT)).status == 200
        await call(port, "/fault", {"kind": "hang", "for_s": 0.1})
        assert (await call(port, "/health")).status == 200


# -- options and the process


@pytest.mark.parametrize(
    "changes", [{"max_model_len": 4097}, {"max_model_len": 1}, {"speed": 0.0}, {"hash_algorithm": "md5"}]
)
@on_loop
async def test_options_that_cannot_work_are_refused(changes):
    with pytest.raises(OperatorError):
        await serve_engine(options(**changes), "127.0.0.1", 0)


@asynccontextmanager
async def process(*flags):
    """`beaconry engine` as a process; yields it and its port."""
    argv = [sys.executable, "-m", "beaconry", "engine", "--port", "0", "--model", "tiny", *flags]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        async with asyncio.timeout(PATIENCE_S):
            line = await asyncio.to_thread(child.stdout.readline)
            assert line.startswith("ready http://127.0.0.1:"), child.stderr.read()
            yield child, int(line.rpartition(":")[2])
    finally:
        child.kill()
        child.communicate()


@on_loop
async def test_the_process_says_ready_and_leaves_with_status_0_on_sigterm_when_its_requests_are_done():
    async with process("--step-time", "fixed_s=0.01", "--max-num-seqs", "8") as (child, port):
        request = asyncio.create_task(call(port, "/v1/completions", PROMPT | {"max_tokens": 30}))
        while (await call(port, "/load")).json["server_load"] == 0:
            await asyncio.sleep(0.002)
        child.send_signal(signal.SIGTERM)
        assert (await request).json["usage"]["completion_tokens"] == 30
        assert await asyncio.to_thread(child.wait) == 0
        assert child.stdout.read() == ""
        assert child.stderr.read() == ""


@on_loop
async def test_a_second_signal_cuts_the_drain_short():
    async with process("--step-time", "fixed_s=100") as (child, port):
        reader, writer = await start(port, "/v1/completions", PROMPT)
        while (await call(port, "/load")).json["server_load"] == 0:
            await asyncio.sleep(0.002)
        child.send_signal(signal.SIGTERM)
        while (await call(port, "/v1/completions", PROMPT | {"max_tokens": 1})).status != 200:
            await asyncio.sleep(0.002)
        child.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(child.wait) == 0
        writer.close()


@on_loop
async def test_the_process_crashes_on_request_after_some_tokens():
    async with process() as (child, port):
        reader, writer = await start(
            port, "/v1/completions", PROMPT | {"stream": True}, headers=fault(kind="crash", after_tokens=2)
        )
        data = b""
        with pytest.raises(ConnectionError):
            while chunk := await reader.read(1 << 16):
                data += chunk
            raise ConnectionResetError
        writer.close()
        assert b"[DONE]" not in data
        assert await asyncio.to_thread(child.wait) == 70
    async with process() as (child, port):
        await call(port, "/fault", {"kind": "crash", "after_tokens": 5})
        await start(port, "/v1/completions", PROMPT)
        assert await asyncio.to_thread(child.wait) == 70


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "x/y"], "no variant"),
        (["--step-time", "speed=1"], "no 'speed'"),
        (["--step-time", "fixed_s=much"], "fixed_s"),
        (["--blocks", "4", "--max-model-len", "100"], "--max-model-len"),
        (["--max-num-seqs", "9", "--max-num-batched-tokens", "8"], "max_num_batched_tokens"),
    ],
)
def test_flags_that_cannot_work_end_the_process_with_status_2_and_a_reason(flags, words):
    argv = [sys.executable, "-m", "beaconry", "engine", "--port", "0", *flags]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
