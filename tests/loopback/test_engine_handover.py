"""A prompt computed on one simulated engine and decoded on another, over real sockets, with vLLM's fields."""

import asyncio
import json
import logging
import random
from contextlib import asynccontextmanager

import pytest

from beaconry.engine_model.kv_link import KvWay
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine.kv_params import KvRole, KvTransferOptions
from beaconry.io.engine.options import KvEventsOptions
from beaconry.values.kv_events import BlockStored
from beaconry.wire.kv_events import decode as decode_events
from tests.loopback.engine_client import CHAT, PROMPT, call, metrics, on_loop, process, running, start, until

LONG = "It was a dark and stormy night, and the engines hummed. " * 12
ASKED = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None}
TOKEN_BYTES = 1000.0


def options_of(role, *, bytes_per_s=1e9, latency_s=0.0, **more):
    way = KvWay(bytes_per_token=TOKEN_BYTES, bytes_per_s=bytes_per_s, latency_s=latency_s)
    return KvTransferOptions(role=role, way=way, host="127.0.0.1", **more)


@asynccontextmanager
async def pair(prefill=None, decode=None, **link):
    """A prefill and a decode engine: server and port of each."""
    producer, consumer = options_of(KvRole.PRODUCER, **link), options_of(KvRole.CONSUMER, **link)
    async with (
        running(kv_transfer=producer, **(prefill or {})) as one,
        running(kv_transfer=consumer, **(decode or {})) as two,
    ):
        yield one, two


def prompt_of(text=LONG, **more):
    return PROMPT | {"prompt": text, "max_tokens": 8} | more


async def prefill(port, body, path="/v1/completions"):
    """The first leg; returns the answer."""
    first = {**body, "max_tokens": 1, "stream": False, "kv_transfer_params": ASKED}
    first.pop("stream_options", None)
    reply = await call(port, path, first)
    assert reply.status == 200, reply.body
    return reply.json


async def decode(port, body, handoff, path="/v1/completions"):
    return await call(port, path, {**body, "kv_transfer_params": handoff})


def held(engine):
    return engine.generation.engine.statistics().held


# -- what goes well


@on_loop
async def test_two_legs_give_the_answer_that_one_engine_would_have_given():
    async with running() as (_, whole), pair() as ((p, p_port), (d, d_port)):
        for path, body in (("/v1/completions", prompt_of(seed=5)), ("/v1/chat/completions", CHAT | {"max_tokens": 9})):
            expected = (await call(whole, path, body)).json
            first = await prefill(p_port, body, path)
            assert first["choices"][0]["finish_reason"] == "length"
            second = (await decode(d_port, body, first["kv_transfer_params"], path)).json
            assert second["choices"] == expected["choices"]
            assert second["usage"] == expected["usage"]
            assert "kv_transfer_params" not in second
        assert held(p) == 0
        assert p.generation.engine.idle
        assert d.generation.engine.idle


@on_loop
async def test_the_answer_of_a_prefill_engine_has_the_fields_of_vllm():
    async with pair() as ((p, p_port), _):
        answer = await prefill(p_port, prompt_of())
        tokens = answer["usage"]["prompt_tokens"]
        params = answer["kv_transfer_params"]
        (blocks,) = params.pop("remote_block_ids")
        assert len(blocks) == -(-tokens // 16)
        assert params.pop("remote_request_id").startswith(answer["id"])
        assert params == {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": p.generation.holder.engine_id,
            "remote_host": "127.0.0.1",
            "remote_port": p_port,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": tokens,
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": 0,
        }
        assert held(p) == 1


@on_loop
async def test_a_stream_is_decoded_too_and_a_prefill_in_a_stream_tells_nobody_where_its_kv_is():
    async with running() as (_, whole), pair() as ((p, p_port), (_, d_port)):
        body = prompt_of(stream=True, stream_options={"include_usage": True})
        handoff = (await prefill(p_port, body))["kv_transfer_params"]
        expected = await call(whole, "/v1/completions", body)
        streamed = await decode(d_port, body, handoff)
        assert [event["choices"] for event in streamed.events] == [event["choices"] for event in expected.events]
        assert streamed.events[-1]["usage"] == expected.events[-1]["usage"]
        untold = await call(p_port, "/v1/completions", {**body, "max_tokens": 1, "kv_transfer_params": ASKED})
        assert b"kv_transfer_params" not in untold.body
        assert held(p) == 1


@on_loop
async def test_the_decode_engine_computes_nothing_of_the_prompt_and_says_so():
    async with pair() as ((_, p_port), (_, d_port)):
        answer = await prefill(p_port, prompt_of())
        tokens = answer["usage"]["prompt_tokens"]
        assert (await decode(d_port, prompt_of(), answer["kv_transfer_params"])).status == 200
        seen = await metrics(d_port)
        by_source = {
            source: seen["vllm:prompt_tokens_by_source_total", source]
            for source in ("external_kv_transfer", "local_compute", "local_cache_hit")
        }
        assert by_source == {"external_kv_transfer": tokens, "local_compute": 0, "local_cache_hit": 0}
        assert seen["vllm:nixl_bytes_transferred_sum",] == tokens * TOKEN_BYTES
        assert seen["vllm:nixl_xfer_time_seconds_count",] == 1
        assert seen["vllm:nixl_num_failed_transfers_total",] == 0
        assert (await metrics(p_port))["vllm:nixl_num_kv_expired_reqs_total",] == 0


@on_loop
async def test_what_is_cached_at_the_decode_engine_is_not_fetched_and_usage_tells_what_was_cached_at_the_other_one():
    async with pair() as ((_, p_port), (_, d_port)):
        first = await prefill(p_port, prompt_of())
        await decode(d_port, prompt_of(), first["kv_transfer_params"])
        longer = prompt_of(LONG + "And then?" * 10)
        second = await prefill(p_port, longer)
        cached = second["kv_transfer_params"]["remote_prefill_cached_tokens"]
        assert cached == second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        before = await metrics(d_port)
        reply = (await decode(d_port, longer, second["kv_transfer_params"])).json
        after = await metrics(d_port)
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
        rose = {
            source: after["vllm:prompt_tokens_by_source_total", source]
            - before["vllm:prompt_tokens_by_source_total", source]
            for source in ("external_kv_transfer", "local_compute", "local_cache_hit")
        }
        own = first["usage"]["prompt_tokens"] // 16 * 16
        assert rose == {
            "external_kv_transfer": second["usage"]["prompt_tokens"] - own,
            "local_compute": 0,
            "local_cache_hit": own,
        }


@on_loop
async def test_the_decode_engine_tells_the_blocks_that_came():
    async with pair(decode={"kv_events": KvEventsOptions(port=0, replay_port=0)}) as ((_, p_port), (d, d_port)):
        answer = await prefill(p_port, prompt_of())
        await decode(d_port, prompt_of(max_tokens=1), answer["kv_transfer_params"])
        batches = [decode_events(payload) for _, payload in d.publisher._ring]
        stored = [event for batch in batches for event in batch.events if isinstance(event, BlockStored)]
        assert sum(len(event.block_hashes) for event in stored) == answer["usage"]["prompt_tokens"] // 16


@on_loop
async def test_transfers_share_the_link_and_take_their_time_at_the_engines_speed():
    async with pair({"speed": 10.0}, {"speed": 10.0}, bytes_per_s=2e5, latency_s=1.0) as ((_, p_port), (_, d_port)):
        bodies = [prompt_of(f"{number} {LONG}", max_tokens=1) for number in range(3)]
        handoffs = [(await prefill(p_port, body))["kv_transfer_params"] for body in bodies]
        tokens = handoffs[0]["remote_num_tokens"]
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        ended_s = []

        async def one(body, handoff):
            assert (await decode(d_port, body, handoff)).status == 200
            ended_s.append(loop.time() - begun_s)

        await asyncio.gather(*map(one, bodies, handoffs))
        alone_s = tokens * TOKEN_BYTES / 2e5 / 10.0
        for place, took_s in enumerate(ended_s, start=1):
            assert took_s >= place * alone_s + 0.1 - 0.005


# -- what does not


def broken(handoff, **changes):
    return {name: value for name, value in (handoff | changes).items() if value is not ...}


@on_loop
async def test_kv_that_is_not_there_fails_the_request_as_in_vllm_and_costs_nobody_else_anything():
    async with pair() as ((p, p_port), (d, d_port)):
        handoff = (await prefill(p_port, prompt_of()))["kv_transfer_params"]
        changes = (
            {"remote_engine_id": "another"},
            {"remote_request_id": "cmpl-x"},
            {"remote_port": 9},
            {"remote_host": "no..host"},
        )
        for wrong in changes:
            reply = await decode(d_port, prompt_of(), handoff | wrong)
            assert reply.status == 500
            assert reply.json == {
                "error": {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
            }
        assert d.generation.engine.idle
        assert d.generation.open_answers == 0
        seen = await metrics(d_port)
        assert seen["vllm:nixl_num_failed_transfers_total",] == 4
        assert seen["vllm:request_success_total", "error"] == 4
        assert (await decode(d_port, prompt_of(), handoff)).status == 200
        assert held(p) == 0


@on_loop
async def test_a_stream_whose_kv_is_not_there_has_its_status_already_and_ends_with_an_error_event():
    async with pair() as ((_, p_port), (_, d_port)):
        for path, body, chunks in (
            ("/v1/completions", prompt_of(stream=True), 0),
            ("/v1/chat/completions", CHAT | {"stream": True}, 1),
        ):
            handoff = (await prefill(p_port, body, path))["kv_transfer_params"]
            reply = await decode(d_port, body, handoff | {"remote_engine_id": "another"}, path)
            assert reply.status == 200
            *before, last = reply.events
            assert last["error"]["code"] == 500
            assert len(before) == chunks
            assert all(event["choices"][0]["delta"] == {"role": "assistant", "content": ""} for event in before)


@on_loop
async def test_with_the_policy_recompute_the_decode_engine_computes_what_it_cannot_fetch():
    consumer = options_of(KvRole.CONSUMER, recompute=True)
    async with running() as (_, whole), running(kv_transfer=consumer) as (d, d_port):
        body = prompt_of()
        expected = (await call(whole, "/v1/completions", body)).json
        handoff = {
            **ASKED, "do_remote_decode": False, "do_remote_prefill": True, "remote_engine_id": "gone",
            "remote_request_id": "cmpl-1", "remote_block_ids": [[1]], "remote_host": "127.0.0.1", "remote_port": 9,
        }  # fmt: skip
        reply = (await decode(d_port, body, handoff)).json
        assert reply["choices"] == expected["choices"]
        seen = await metrics(d_port)
        tokens = reply["usage"]["prompt_tokens"]
        assert seen["vllm:prompt_tokens_by_source_total", "local_compute"] == tokens
        assert seen["vllm:prompt_tokens_by_source_total", "external_kv_transfer"] == 0
        assert d.generation.engine.idle


@on_loop
async def test_kv_that_nobody_fetches_is_released_when_its_lease_ends():
    producer = options_of(KvRole.PRODUCER, lease_s=0.2)
    async with (
        running(kv_transfer=producer, speed=3.0) as (p, p_port),
        running(kv_transfer=options_of(KvRole.CONSUMER)) as (_, d_port),
    ):
        begun_s = asyncio.get_running_loop().time()
        handoff = (await prefill(p_port, prompt_of()))["kv_transfer_params"]
        await until(lambda: held(p) == 0)
        assert asyncio.get_running_loop().time() - begun_s >= 0.2
        assert (await metrics(p_port))["vllm:nixl_num_kv_expired_reqs_total",] == 1
        assert (await decode(d_port, prompt_of(), handoff)).status == 500


@on_loop
async def test_the_lease_of_who_waits_for_room_is_kept_alive():
    leases = {"lease_s": 1.0}
    producer, consumer = options_of(KvRole.PRODUCER, **leases), options_of(KvRole.CONSUMER, **leases)
    slow = LinearStepTime(fixed_s=0.02)
    tight = EngineSettings(num_blocks=64, max_num_seqs=1)
    async with (
        running(kv_transfer=producer) as (p, p_port),
        running(kv_transfer=consumer, settings=tight, step_time=slow, max_model_len=1024) as (d, d_port),
    ):
        full = asyncio.create_task(call(d_port, "/v1/completions", PROMPT | {"prompt": "x" * 3200, "max_tokens": 75}))
        await until(lambda: not d.generation.engine.idle)
        handoff = (await prefill(p_port, prompt_of()))["kv_transfer_params"]
        waits = asyncio.create_task(decode(d_port, prompt_of(), handoff))
        await full
        assert held(p) == 1
        assert (await waits).status == 200
        assert (await metrics(p_port))["vllm:nixl_num_kv_expired_reqs_total",] == 0


@on_loop
async def test_a_client_that_leaves_lets_go_of_the_kv_at_both_engines():
    async with pair(bytes_per_s=10.0) as ((p, p_port), (d, d_port)):
        handoff = (await prefill(p_port, prompt_of()))["kv_transfer_params"]
        _, writer = await start(d_port, "/v1/completions", {**prompt_of(), "kv_transfer_params": handoff})
        await until(lambda: d.generation.engine.statistics().kv_usage > 0)
        assert (await metrics(d_port))["vllm:num_requests_waiting_by_reason", "deferred"] == 1
        writer.close()
        await until(lambda: held(p) == 0 and d.generation.engine.idle)
        assert d.generation.open_answers == 0


@on_loop
async def test_a_prefill_engine_that_dies_fails_whom_its_kv_was_for():
    async with running(kv_transfer=options_of(KvRole.CONSUMER)) as (d, d_port):
        async with process("--kv-role", "producer") as (child, p_port):
            handoff = (await prefill(p_port, prompt_of()))["kv_transfer_params"]
            child.kill()
            child.wait()
            assert (await decode(d_port, prompt_of(), handoff)).status == 500
        assert (await call(d_port, "/v1/completions", prompt_of())).status == 200
        assert d.generation.engine.idle


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"remote_request_id": ...}, "do_remote_prefill needs remote_request_id"),
        ({"remote_host": None, "remote_port": ...}, "do_remote_prefill needs remote_host, remote_port"),
        ({"remote_block_ids": [[]]}, "do_remote_prefill needs remote_block_ids"),
        ({"remote_block_ids": "all"}, "remote_block_ids"),
        ({"remote_port": 70000}, "remote_port"),
        ({"remote_num_tokens": 3}, "KV of 3 is kept"),
        ({"do_remote_decode": True}, "exclude each other"),
    ],
)
@on_loop
async def test_fields_that_would_end_a_real_engine_are_refused(changes, says):
    async with pair() as ((_, p_port), (_, d_port)):
        handoff = (await prefill(p_port, prompt_of()))["kv_transfer_params"]
        reply = await decode(d_port, prompt_of(), broken(handoff, **changes))
        assert reply.status == 400
        assert reply.json["error"]["param"] == "kv_transfer_params"
        assert says in reply.json["error"]["message"]


@on_loop
async def test_an_engine_refuses_what_its_role_does_not_do_and_more_than_one_sequence():
    async with pair() as ((_, p_port), (_, d_port)):
        handoff = (await prefill(p_port, prompt_of()))["kv_transfer_params"]
        wrong = [
            (p_port, prompt_of(kv_transfer_params=handoff), "--kv-role producer"),
            (d_port, prompt_of(kv_transfer_params=ASKED), "--kv-role consumer"),
            (p_port, prompt_of(kv_transfer_params=ASKED, n=2), "not of 2"),
            (p_port, prompt_of(kv_transfer_params="now"), "kv_transfer_params"),
        ]
        for port, body, says in wrong:
            reply = await call(port, "/v1/completions", body)
            assert reply.status == 400
            assert says in reply.json["error"]["message"]
        assert (await call(p_port, "/v1/completions", prompt_of(kv_transfer_params=None))).status == 200


@on_loop
async def test_an_engine_without_a_role_ignores_the_field_and_says_so_once(caplog):
    with caplog.at_level(logging.WARNING):
        async with running() as (_, port):
            for value in (None, ASKED, {"do_remote_prefill": True}):
                reply = await call(port, "/v1/completions", prompt_of(kv_transfer_params=value))
                assert reply.status == 200
                assert "kv_transfer_params" not in reply.json
            assert (await call(port, "/kv/read", {})).status == 404
    assert [record.message for record in caplog.records] == [
        "kv_transfer_params are ignored: this engine was started without --kv-role"
    ]


@on_loop
async def test_bad_questions_for_kv_are_refused():
    async with pair() as ((p, p_port), _):
        ours = {"engine_id": p.generation.holder.engine_id, "request_id": "cmpl-0"}
        for body, status in ((b"{", 400), ({"engine_id": "x", "request_id": "y"}, 404), (ours, 404)):
            for path in ("/kv/keep", "/kv/read", "/kv/release"):
                assert (await call(p_port, path, body)).status == status
        assert (await metrics(p_port))["vllm:nixl_num_notifications_after_expiry_total",] == 1


@on_loop
async def test_processes_hand_over_as_their_flags_say():
    flags = ("--kv-link", "tcp", "--kv-gb-per-s", "1", "--kv-latency-s", "0.05", "--speed", "2")
    async with (
        process("--kv-role", "both", *flags) as (_, p_port),
        process("--kv-role", "consumer", *flags) as (_, d_port),
    ):
        handoff = (await prefill(p_port, prompt_of()))["kv_transfer_params"]
        assert json.dumps(handoff)
        assert (await decode(d_port, prompt_of(), handoff)).status == 200
        assert (await metrics(d_port))["vllm:nixl_xfer_time_seconds_sum",] >= 0.025


@pytest.mark.parametrize("seed", range(2))
@on_loop
async def test_whatever_becomes_of_many_handovers_nothing_is_left_at_either_engine(seed):
    rng = random.Random(seed)
    memory = EngineSettings(num_blocks=200, max_num_seqs=4)
    more = {"settings": memory, "step_time": LinearStepTime(fixed_s=0.002), "max_model_len": 1024}
    leases = {"lease_s": 2.0, "bytes_per_s": 5e7, "latency_s": 0.005}
    ends = []

    async def one(number, p_port, d_port):
        body = prompt_of(f"{rng.randrange(6)} {LONG}", max_tokens=rng.randrange(1, 12), stream=rng.random() < 0.5)
        handoff = (await prefill(p_port, body))["kv_transfer_params"]
        fate = rng.choice(("well", "well", "leaves", "lost", "wrong"))
        if fate == "wrong":
            handoff = handoff | {"remote_request_id": "cmpl-x"}
        if fate == "leaves":
            _, writer = await start(d_port, "/v1/completions", {**body, "kv_transfer_params": handoff})
            await asyncio.sleep(rng.uniform(0.0, 0.05))
            writer.close()
        elif fate != "lost":
            reply = await decode(d_port, body, handoff)
            good = reply.status == 200 and b'"error"' not in reply.body
            assert good == (fate == "well"), reply.body
        ends.append(number)

    async with pair(more, more, **leases) as ((p, p_port), (d, d_port)):
        async with asyncio.TaskGroup() as group:
            for number in range(30):
                group.create_task(one(number, p_port, d_port))
                await asyncio.sleep(rng.uniform(0.0, 0.01))
        await until(lambda: d.generation.open_answers == 0 and d.generation.engine.idle and p.generation.engine.idle)
        assert len(ends) == 30
        assert not d.generation.reader._sources
        assert not d.generation.reader._tasks
        assert p.generation.engine.statistics().kv_usage == d.generation.engine.statistics().kv_usage == 0
