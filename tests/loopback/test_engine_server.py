"""The simulated engine over real sockets: vLLM's interface, the official client, errors."""

import asyncio

import openai
import pytest

from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from tests.loopback.engine_client import CHAT, PROMPT, call, metrics, on_loop, running, start, until

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


@pytest.mark.parametrize("by_priority", [False, True])
@on_loop
async def test_priority_counts_only_where_the_policy_is_priority(by_priority):
    settings = EngineSettings(num_blocks=256, max_num_seqs=1, by_priority=by_priority)
    slow = {"settings": settings, "step_time": LinearStepTime(fixed_s=0.005)}
    async with running(**slow) as (engine, port):
        order = []

        async def ask(name, priority):
            await call(port, "/v1/completions", PROMPT | {"max_tokens": 10, "priority": priority})
            order.append(name)

        _, first = await start(
            port, "/v1/completions", PROMPT | {"max_tokens": 2000}
        )  # ten seconds, unless its client leaves
        asks = []
        for name, priority in (("later", 5), ("urgent", -5)):
            await until(lambda: engine.generation.open_answers == 1 + len(asks))
            asks.append(asyncio.create_task(ask(name, priority)))
        await until(lambda: engine.generation.open_answers == 1 + len(asks))
        first.transport.abort()
        await asyncio.gather(*asks)
        assert order == (["urgent", "later"] if by_priority else ["later", "urgent"])


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
async def test_an_adapter_is_a_model_with_a_parent_and_blocks_of_its_own():
    async with running(adapters={"ad": "/adapters/ad"}) as (_, port):
        described = (await call(port, "/v1/models")).json["data"]
        assert [(model["id"], model["root"], model["parent"]) for model in described] == [
            ("tiny", "tiny", None),
            ("alias", "tiny", None),
            ("ad", "/adapters/ad", "tiny"),
        ]
        cached = []
        for model in ("tiny", "ad", "ad"):
            body = PROMPT | {"model": model, "prompt": "x" * 400, "max_tokens": 2}
            cached.append(
                (await call(port, "/v1/completions", body)).json["usage"]["prompt_tokens_details"]["cached_tokens"]
            )
        assert cached == [0, 0, 96]
        names = [sorted(key) for key in await metrics(port) if key[0] == "vllm:lora_requests_info"]
        assert names == [["", "", "1", "vllm:lora_requests_info"]]


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
