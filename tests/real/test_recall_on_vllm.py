"""A real vLLM whose long prefill gives way: it drops the request with its connection, and keeps the blocks that it has computed."""

import asyncio
import random
import time
from contextlib import asynccontextmanager

import pytest

from beaconry.apps.assemble import Gateway
from beaconry.config.flow import Flow
from beaconry.config.gateway import EndpointConfig, GatewayConfig, Listen
from beaconry.config.tenants import Objective, TrustedHeader
from tests.loopback.engine_client import Reply, metrics, start
from tests.real.test_prefill_decode_on_vllm import COMPUTED as COMPUTED_THERE
from tests.real.test_prefill_decode_on_vllm import FETCHED, NIXL, POOLS, Apart, skip_without_nixl
from tests.real.tiny_model import write_weights
from tests.real.vllm import BLOCK, engine, serving, spec

pytestmark = pytest.mark.real

WITHIN_S = 120.0
STEP_TOKENS = 64
LONG, SHORT = 32_000, 40
"""Tokens of the prompts. A step of the engine computes 64, so the long one takes five hundred."""
BEGUN = 4_000
"""Computed of the long one when the short one comes."""
BLOCKS = 3000
FLAGS = (
    f"--max-num-batched-tokens={STEP_TOKENS}",
    "--max-model-len=40000",
    f"--num-gpu-blocks-override={BLOCKS}",
    "--load-format=auto",
)
IN_USE = ("vllm:kv_cache_usage_perc",)
LOOKED_UP = ("vllm:prefix_cache_queries_total",)
COMPUTED = ("vllm:prompt_tokens_by_source_total", "local_compute")
COMPLETED = ("vllm:request_success_total", "length")


@asynccontextmanager
async def gateway(process, **flow):
    """A gateway that has seen both bands, before that engine."""
    one = process.endpoint
    front = Gateway(
        GatewayConfig(
            listen=Listen(port=0),
            endpoints=(EndpointConfig(name=one.name, host=one.host, port=one.port, model=one.model),),
            flow=Flow(**flow),
            objectives={"batch": Objective(priority=0), "urgent": Objective(priority=10)},
            trusted_headers=(TrustedHeader.OBJECTIVE,),
        )
    )
    await front.start()
    try:
        for objective in ("batch", "urgent"):
            await asked(front.port, objective, [5, 6, 7])
        yield front
        front._router.check()
        assert front.statistics().in_flight == 0
    finally:
        await front.stop(1.0)


async def asked(port, objective, prompt, *, stream=True):
    """Returns the seconds to the first byte of the answer, its text, and how much of its prompt was cached."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = ("content-type: application/json", f"x-llm-d-inference-objective: {objective}")
    began_s = time.perf_counter()
    reader, writer = await start(port, "/v1/completions", body, headers=headers)
    first = await reader.read(1)
    first_s = time.perf_counter() - began_s
    reply = Reply(first + await reader.read())
    writer.close()
    assert reply.status == 200, reply.body
    *told, last = reply.events if stream else (reply.json, reply.json)
    return first_s, "".join(event["choices"][0]["text"] for event in told), cached(last)


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


async def overtaken(port, engine_port, prompt, *, stream):
    """The prompt in the lower band, and a short one in the higher while it is computed.

    Returns who has asked and what `asked` says of it, in the order of their ends; and how much had been computed when the second came.
    """
    order = []

    async def ask(objective, prompt, stream):
        order.append((objective, *await asked(port, objective, prompt, stream=stream)))

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
        group.create_task(ask("batch", prompt, stream))
        while (computed := (await metrics(engine_port))[IN_USE] * BLOCKS * BLOCK) < BEGUN:
            await asyncio.sleep(0.01)
        group.create_task(ask("urgent", prompt[:SHORT][::-1], True))
    return order, computed


@pytest.mark.parametrize("recall", [True, False], ids=["recall", "without"])
def test_a_long_prefill_gives_way_and_goes_on_where_it_was(tmp_path, recall):
    rng = random.Random(7)

    async def main():
        text = spec(tmp_path / "tiny", pools="[{}]", flags=FLAGS, max_position_embeddings=65536)
        write_weights(tmp_path / "tiny")
        async with engine(text) as process, gateway(process, recall=recall) as front:
            for turn, stream in enumerate((True, False), start=1):
                prompt = [rng.randrange(256) for _ in range(LONG)]
                before = await metrics(process.port)
                order, computed = await overtaken(front.port, process.port, prompt, stream=stream)
                after = await metrics(process.port)
                print(
                    f"recall={recall} stream={stream} computed={computed:.0f}",
                    *((one, f"{s:.3f} s", n) for one, s, _, n in order),
                )
                assert [one for one, *_ in order] == (["urgent", "batch"] if recall else ["batch", "urgent"])
                assert front.statistics().recalls == (turn if recall else 0)
                answers = {one: (answer, known) for one, _, answer, known in order}
                answer, known = answers["batch"]
                if recall:
                    assert known >= computed - STEP_TOKENS - BLOCK
                else:
                    assert known == 0
                assert after[COMPUTED] - before[COMPUTED] == LONG + SHORT - known
                # it was taken in twice, and has ended once
                assert after[LOOKED_UP] - before[LOOKED_UP] == (2 if recall else 1) * LONG + SHORT
                assert after[COMPLETED] - before[COMPLETED] == 2
                _, undisturbed, known = await asked(front.port, "batch", prompt)
                assert (undisturbed, known) == (answer, LONG - BLOCK)

    asyncio.run(main())


def test_a_prefill_leg_gives_way_and_its_kv_is_handed_over_the_second_time(tmp_path):
    skip_without_nixl()
    text = spec(
        tmp_path / "tiny",
        pools=POOLS,
        flags=FLAGS,
        variables=NIXL,
        router=", objectives: {batch: {priority: 0}, urgent: {priority: 10}}, trustedHeaders: [objective],"
        " disaggregation: {mode: always}",
        max_position_embeddings=65536,
    )
    write_weights(tmp_path / "tiny")
    rng = random.Random(9)
    prompt = [rng.randrange(256) for _ in range(LONG)]

    async def main(apart):
        port = int(apart.address.rpartition(":")[2])
        for objective in ("batch", "urgent"):
            await asked(port, objective, [5, 6, 7])
        before = apart.counters()
        order, computed = await overtaken(port, apart.process("kv_producer")[1], prompt, stream=True)
        (first, first_s, _, _), (second, _, answer, known) = order
        print(f"apart: computed={computed:.0f} {first} {first_s:.3f} s, {second} {known}")
        assert (first, second) == ("urgent", "batch")
        assert (await metrics(port))["beaconry_flow_recalled_total",] == 1
        assert known >= computed - STEP_TOKENS - BLOCK  # at the prefill engine
        after = apart.counters()
        assert {name: after[name] - before[name] for name in after} == {FETCHED: LONG + SHORT, COMPUTED_THERE: 0}
        _, undisturbed, _ = await asked(port, "batch", prompt)
        assert undisturbed == answer

    with serving(tmp_path, text) as address:
        asyncio.run(main(Apart(address, tmp_path / "tiny")))
