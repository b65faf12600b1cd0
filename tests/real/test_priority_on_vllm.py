"""A real vLLM that serves by priority is told it by the gateway: what came last overtakes what waits in the engine."""

import asyncio

import pytest

from beaconry.apps.assemble import Gateway
from beaconry.config.flow import Flow
from beaconry.config.gateway import EndpointConfig, GatewayConfig, Listen
from beaconry.config.tenants import Objective, TrustedHeader
from tests.loopback.engine_client import call, metrics
from tests.real.vllm import engine, spec

pytestmark = pytest.mark.real

WITHIN_S = 60.0
ASKED = (("batch", 1000), ("batch", 50), ("batch", 51), ("urgent", 7))
"""Objective and output tokens, in the order in which the engine gets them: the first one runs, the others wait."""


async def until(holds):
    async with asyncio.timeout(WITHIN_S):
        while not await holds():
            await asyncio.sleep(0.01)


async def served(process):
    """Send what is asked through a gateway that keeps nothing back; returns the output tokens of each in the order of their ends."""
    one = process.endpoint
    endpoint = EndpointConfig(
        name=one.name, host=one.host, port=one.port, model=one.model, scheduling_policy=one.scheduling_policy
    )
    gateway = Gateway(
        GatewayConfig(
            listen=Listen(port=0),
            endpoints=(endpoint,),
            flow=Flow(enabled=False),
            objectives={"urgent": Objective(priority=10), "batch": Objective(priority=-10)},
            trusted_headers=(TrustedHeader.OBJECTIVE,),
        )
    )
    await gateway.start()
    done, asks = [], []

    async def ask(objective, tokens):
        body = {"model": "tiny", "prompt": [tokens % 256] * 40, "max_tokens": tokens, "ignore_eos": True}
        headers = ("content-type: application/json", f"x-llm-d-inference-objective: {objective}")
        reply = await call(gateway.port, "/v1/completions", body, headers=headers)
        assert reply.status == 200, reply.body
        done.append(reply.json["usage"]["completion_tokens"])

    async def there():
        told = await metrics(one.port)
        return told["vllm:num_requests_running",] + told["vllm:num_requests_waiting",] == len(asks)

    try:
        await ask("batch", 5)  # the engine is warm
        done.clear()
        for objective, tokens in ASKED:
            asks.append(asyncio.create_task(ask(objective, tokens)))
            await until(there)
        await asyncio.gather(*asks)
    finally:
        await gateway.stop(1.0)
    return done


@pytest.mark.parametrize(
    ("policy", "order"), [("priority", [1000, 7, 50, 51]), ("fcfs", [1000, 50, 51, 7])], ids=["priority", "fcfs"]
)
def test_the_higher_band_overtakes_in_an_engine_that_serves_by_priority(tmp_path, policy, order):
    flags = ("--max-num-seqs=1", f"--scheduling-policy={policy}")
    text = spec(tmp_path / "tiny", pools="[{}]", flags=flags)

    async def main():
        async with engine(text) as process:
            assert await served(process) == order
            given = {"model": "tiny", "prompt": "a", "max_tokens": 1, "priority": 5}
            told = await call(process.port, "/v1/completions", given, headers=["content-type: application/json"])
            assert told.status == 200  # an engine without the policy does not mind either

    asyncio.run(main())
