"""The simulated engine when things go wrong: clients that leave, shutting down, faults on request, the process itself."""

import asyncio
import signal
import subprocess
import sys

import pytest

from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine.faults import EngineFault, Fault, Kind
from beaconry.io.engine.server import serve_engine
from beaconry.values.errors import OperatorError
from tests.loopback.engine_client import (
    CHAT,
    PATIENCE_S,
    PROMPT,
    Reply,
    call,
    fault,
    metrics,
    on_loop,
    options,
    process,
    read_to_the_end,
    running,
    start,
    until,
    until_loaded,
)

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
        await until(lambda: engine.generation.engine.statistics().steps)
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
        data = await read_to_the_end(reader)
        writer.close()
        assert b"[DONE]" not in data
        assert data.count(b"data: ") <= 3
        await until(lambda: engine.generation.engine.idle)
        assert engine.generation.open_answers == 0


@on_loop
async def test_a_slow_first_token_comes_after_the_delay():
    async with running() as (_, port):
        began_s = asyncio.get_running_loop().time()
        reply = await call(port, "/v1/completions", PROMPT, headers=fault(kind="slow", delay_s=0.2))
        assert reply.status == 200
        assert asyncio.get_running_loop().time() - began_s >= 0.2


@on_loop
async def test_a_request_is_queued_after_the_preset_s_time_per_request_by_the_engine_s_clock():
    async with running(request_s=0.4, speed=4.0) as (engine, port):
        began_s = engine.generation.steps.now_s()
        reply = await call(port, "/v1/completions", PROMPT | {"max_tokens": 1})
        assert reply.status == 200
        assert engine.generation.steps.now_s() - began_s >= 0.4 - 1e-6


@on_loop
async def test_a_client_that_leaves_before_its_request_is_queued_costs_nothing():
    async with running(request_s=0.2) as (engine, port):
        _, writer = await start(port, "/v1/completions", PROMPT | {"max_tokens": 2000})
        writer.transport.abort()
        assert (await call(port, "/v1/completions", PROMPT | {"max_tokens": 1})).status == 200
        assert engine.generation.engine.statistics().generation_tokens == 1
        assert engine.generation.open_answers == 0


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
        _, writer = await start(port, "/v1/completions", PROMPT | {"max_tokens": 2000})
        await until(lambda: not engine.generation.engine.idle)
        await call(port, "/fault", {"kind": "hang"})
        during = asyncio.create_task(call(port, "/health"))
        steps = engine.generation.engine.statistics().steps
        await asyncio.sleep(0.05)
        assert engine.generation.engine.statistics().steps == steps
        assert not during.done()
        assert (await call(port, "/fault", method="DELETE")).status == 200
        assert (await during).status == 200
        await until(lambda: engine.generation.engine.statistics().steps > steps)
        writer.transport.abort()


@on_loop
async def test_an_engine_that_hangs_for_a_time_wakes_by_itself():
    async with running() as (_, port):
        await call(port, "/fault", {"kind": "hang", "for_s": 0.1})
        assert (await call(port, "/health")).status == 200


@on_loop
async def test_an_engine_can_be_made_to_fail_while_it_stays_healthy():
    async with running() as (_, port):
        await call(port, "/fault", {"kind": "error", "status": 503})
        assert (await call(port, "/v1/completions", PROMPT)).status == 503
        assert (await call(port, "/health")).status == 200
        await call(port, "/fault", method="DELETE")
        assert (await call(port, "/v1/completions", PROMPT)).status == 200


def test_a_fault_of_the_engine_ends_when_its_time_is_up():
    engine_fault, error = EngineFault(), Fault(kind=Kind.ERROR, for_s=10.0)
    engine_fault.set(error, 100.0)
    assert engine_fault.at(109.9) is error
    assert engine_fault.at(110.0) is None
    assert engine_fault.at(105.0) is None


# -- options and the process


@pytest.mark.parametrize(
    "changes", [{"max_model_len": 4097}, {"max_model_len": 1}, {"speed": 0.0}, {"hash_algorithm": "md5"}]
)
@on_loop
async def test_options_that_cannot_work_are_refused(changes):
    with pytest.raises(OperatorError):
        await serve_engine(options(**changes), "127.0.0.1", 0)


@on_loop
async def test_the_process_says_ready_and_leaves_with_status_0_on_sigterm_when_its_requests_are_done():
    async with process("--step-time", "fixed_s=0.01", "--max-num-seqs", "8") as (child, port):
        request = asyncio.create_task(call(port, "/v1/completions", PROMPT | {"max_tokens": 30}))
        await until_loaded(port, request)
        child.send_signal(signal.SIGTERM)
        assert (await request).json["usage"]["completion_tokens"] == 30
        assert await asyncio.to_thread(child.wait) == 0
        assert child.stdout.read() == ""
        assert child.stderr.read() == ""


@on_loop
async def test_a_second_signal_cuts_the_drain_short():
    async with process("--step-time", "fixed_s=100") as (child, port):
        _, writer = await start(port, "/v1/completions", PROMPT)
        await until_loaded(port)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(child.wait) == 0
        writer.close()


@on_loop
async def test_the_process_crashes_on_request_after_some_tokens():
    async with process() as (child, port):
        reader, writer = await start(
            port, "/v1/completions", PROMPT | {"stream": True}, headers=fault(kind="crash", after_tokens=2)
        )
        data = await read_to_the_end(reader)
        writer.close()
        assert b"[DONE]" not in data
        assert await asyncio.to_thread(child.wait) == 70
    async with process() as (child, port):
        await call(port, "/fault", {"kind": "crash", "after_tokens": 5})
        _, writer = await start(port, "/v1/completions", PROMPT)
        assert await asyncio.to_thread(child.wait) == 70
        writer.close()


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
