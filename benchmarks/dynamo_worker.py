"""A worker of Dynamo's that stands for one engine: it hands each request on over HTTP and its tokens back. Run by the Python of Dynamo's
own virtual environment, which has nothing of this repository.

    python dynamo_worker.py ENGINE-PORT MODEL MODEL-FOLDER PLACES BLOCKS BATCHED-TOKENS
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import uvloop
from dynamo.common.utils.runtime import create_runtime
from dynamo.llm import ModelInput, ModelRuntimeConfig, ModelType, WorkerType, register_model

WORD = 7
"""The token that stands for each of the reply's: any word of the tokenizer."""


class Worker:
    """Forwards to one engine."""

    def __init__(self, session: aiohttp.ClientSession, engine: int, model: str) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{engine}/v1/completions"
        self._model = model

    async def generate(self, request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        """One dictionary per token, until the engine ends or nobody wants more."""
        prompt, wanted = request["token_ids"], request["stop_conditions"]["max_tokens"]
        body = {"model": self._model, "prompt": prompt, "max_tokens": wanted, "ignore_eos": True, "stream": True}
        unwanted = asyncio.ensure_future(context.async_killed_or_stopped())
        try:
            lines = self._lines(body)
            for sent in range(1, wanted + 1):
                line = asyncio.ensure_future(anext(lines))
                await asyncio.wait({line, unwanted}, return_when=asyncio.FIRST_COMPLETED)
                if not line.done():
                    line.cancel()
                    return
                await line
                yield _token(sent, wanted, len(prompt))
        finally:
            unwanted.cancel()

    async def _lines(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        async with self._session.post(self._url, json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    yield line


def _token(sent: int, wanted: int, prompt_tokens: int) -> dict[str, Any]:
    if sent < wanted:
        return {"token_ids": [WORD]}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": wanted, "total_tokens": prompt_tokens + wanted}
    return {"token_ids": [WORD], "finish_reason": "length", "completion_usage": usage}


async def main(engine: str, model: str, folder: str, places: str, blocks: str, batched_tokens: str) -> None:
    runtime, _ = create_runtime("file", "tcp", "zmq")
    endpoint = runtime.endpoint("dynamo.backend.generate")
    engine_has = ModelRuntimeConfig()
    engine_has.max_num_seqs = int(places)
    engine_has.total_kv_blocks = int(blocks)
    engine_has.max_num_batched_tokens = int(batched_tokens)
    engine_has.context_length = 32768
    kinds = ModelType.Chat | ModelType.Completions
    aggregated = {"worker_type": WorkerType.Aggregated, "kv_cache_block_size": 16, "runtime_config": engine_has}
    await register_model(ModelInput.Tokens, kinds, endpoint, folder, model, **aggregated)
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connections, timeout=aiohttp.ClientTimeout(total=None)) as session:
        worker = Worker(session, int(engine), model)
        await endpoint.serve_endpoint(worker.generate, graceful_shutdown=False)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
