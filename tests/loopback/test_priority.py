"""Engines that serve by priority are told it by the gateway, and by nobody else; and serve by it."""

import asyncio
import json

import pytest

from beaconry.apps.assemble import Gateway
from beaconry.config.disaggregation import Disaggregation
from beaconry.config.flow import Flow
from beaconry.config.gateway import EndpointConfig, GatewayConfig, Listen
from beaconry.config.tenants import ModelConfig, Objective, Target, TrustedHeader
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.values.endpoint import EngineType, Role, SchedulingPolicy
from tests.loopback import engine_client
from tests.loopback.engine_client import PROMPT, call, on_loop, start, until
from tests.loopback.fake_engine import FakeEngine, answer_stream, answer_whole, chat, gateway, post, run, send, whole
from tests.loopback.test_two_legs import answer, prefilled, says

OBJECTIVES = {"urgent": Objective(priority=7), "batch": Objective(priority=-7)}
TRUSTED = (TrustedHeader.OBJECTIVE,)
PRIORITY = SchedulingPolicy.PRIORITY


def objective(name: str) -> str:
    return f"x-llm-d-inference-objective: {name}\r\n"


def bodies(engine: FakeEngine) -> list[dict[str, object]]:
    return [json.loads(got.body) for got in engine.requests]


@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_is_told_the_requests_priority_and_not_the_clients(stream: bool):
    async def main():
        engine = FakeEngine(answer_stream if stream else answer_whole, scheduling_policy=PRIORITY)
        models = {"alias": ModelConfig(targets=(Target(model="m"),))}
        async with gateway(engine, objectives=OBJECTIVES, trusted_headers=TRUSTED, models=models) as running:
            for head in (objective("urgent"), objective("batch"), "", "x-vllm-priority: -100\r\n"):
                asked = chat(stream=stream, priority=-100) | {"model": "alias"}
                assert (await send(running.port, post(asked, headers=head))).status == 200
            assert [(body["priority"], body["model"]) for body in bodies(engine)] == [(n, "m") for n in (-7, 7, 0, 0)]
            assert not any("x-vllm-priority" in got.headers for got in engine.requests)

    run(main)


def test_an_engine_that_serves_as_requests_come_gets_the_body_as_it_is_also_after_one_that_does_not():
    async def fails(got, writer):
        writer.write(whole(status=500))

    async def main():
        by_priority, plain = FakeEngine(fails, scheduling_policy=PRIORITY), FakeEngine()
        async with gateway(by_priority, plain, objectives=OBJECTIVES, trusted_headers=TRUSTED) as running:
            assert (await send(running.port, post(chat(), headers=objective("urgent")))).status == 200
            assert bodies(by_priority) == [chat(priority=-7)]
            assert bodies(plain) == [chat()]

    run(main)


def test_both_legs_are_told_it():
    async def main():
        prefill = FakeEngine(says(answer(prefilled())), role=Role.PREFILL, scheduling_policy=PRIORITY)
        decode = FakeEngine(role=Role.DECODE, scheduling_policy=PRIORITY)
        split = Disaggregation(mode="always")
        sections = {"objectives": OBJECTIVES, "trusted_headers": TRUSTED, "disaggregation": split}
        async with gateway(prefill, decode, **sections) as running:
            assert (await send(running.port, post(chat(), headers=objective("urgent")))).status == 200
            assert [body["priority"] for body in bodies(prefill) + bodies(decode)] == [-7, -7]
            assert decode.requests[0].body.count(b'"priority"') == 1
            assert "kv_transfer_params" in bodies(decode)[0]

    run(main)


@pytest.mark.parametrize("policy", [SchedulingPolicy.FCFS, PRIORITY])
@on_loop
async def test_of_two_that_wait_in_an_engine_the_higher_band_is_served_first_though_it_came_later(policy):
    settings = EngineSettings(num_blocks=256, max_num_seqs=1, by_priority=policy is PRIORITY)
    slow = {"settings": settings, "step_time": LinearStepTime(fixed_s=0.005)}
    async with engine_client.running(**slow) as (engine, engine_port):
        endpoint = EndpointConfig(
            name="e", host="127.0.0.1", port=engine_port, model="tiny", engine=EngineType.SIM, scheduling_policy=policy
        )
        config = GatewayConfig(
            listen=Listen(port=0),
            endpoints=(endpoint,),
            flow=Flow(enabled=False),
            objectives=OBJECTIVES,
            trusted_headers=TRUSTED,
        )
        front = Gateway(config)
        await front.start()
        order = []

        def asked(name: str, tokens: int) -> tuple[int, str, dict[str, object], None, list[str]]:
            body = PROMPT | {"model": "tiny", "max_tokens": tokens}
            headers = ["content-type: application/json", objective(name).strip()]
            return front.port, "/v1/completions", body, None, headers

        async def ask(name: str) -> None:
            reply = await call(*asked(name, 20))
            order.append((name, reply.status))

        try:
            _, first = await start(*asked("batch", 2000))  # takes ten seconds, unless its client leaves
            asks = []
            for name in ("batch", "urgent"):
                await until(lambda: engine.generation.open_answers == 1 + len(asks))
                asks.append(asyncio.create_task(ask(name)))
            await until(lambda: engine.generation.open_answers == 1 + len(asks))
            first.transport.abort()
            await asyncio.gather(*asks)
        finally:
            await front.stop(1.0)
    served = [("urgent", 200), ("batch", 200)]
    assert order == (served if policy is PRIORITY else served[::-1])
