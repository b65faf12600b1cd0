"""A prefill engine and one that answers from its KV: a prompt that no cache has seen goes through both, as the gateway would send it.

What is broken between two engines is easily missed, since the gateway serves every request all the same, whole. And a pair's first transfer
takes seconds, while the engines make each other's acquaintance: that is done then.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable

from beaconry.disagg.connectors import Connector
from beaconry.io.fetch import Fetched, fetch
from beaconry.io.upstream import UpstreamPool
from beaconry.values.check import Check, failed, ok, warning
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import EngineError
from beaconry.values.request import Api
from beaconry.wire.engine_pages import parse_fetched_tokens

_PATH = "/v1/completions"
_PAGE_BYTES = 16_777_216
_WORDS = 200
"""Several blocks of any size, and quick to compute."""
_METRICS_S = 0.2
"""From an answer to the metrics about it."""


class PairExamination:
    """The KV of `source`'s prompts, to be fetched by `reader`."""

    def __init__(
        self,
        source: Endpoint,
        reader: Endpoint,
        pool_of: Callable[[Endpoint], UpstreamPool],
        connector: Connector,
        timeout_s: float,
    ) -> None:
        self._source = source
        self._reader = reader
        self._pool_of = pool_of
        self._connector = connector
        self._timeout_s = timeout_s
        self._name = f"KV of {source.name}"

    async def run(self) -> Check:
        """Send both legs. Never raises but for cancellation."""
        text = " ".join(secrets.token_hex(2) for _ in range(_WORDS))
        body = json.dumps({"model": self._reader.model, "prompt": text, "max_tokens": 2, "temperature": 0}).encode()
        try:
            return await self._both_legs(body)
        except EngineError as error:
            return failed(self._name, str(error), "see the logs of both engines")

    async def _both_legs(self, body: bytes) -> Check:
        source, reader = self._source.name, self._reader.name
        first = await self._send(self._source, _PATH, self._connector.prefill_body(body, Api.COMPLETIONS))
        handoff = self._connector.handoff(first.body) if first.status == 200 else None
        if handoff is None:
            told = f"{source} answers {first.status}, and names no KV that could be fetched"
            return failed(
                self._name, told, "start it to hand KV over (vLLM: --kv-transfer-config with kv_role kv_producer)"
            )
        before = await self._fetched_tokens()
        begun_s = time.monotonic()
        second = await self._send(self._reader, _PATH, self._connector.decode_body(body, handoff))
        took_s = time.monotonic() - begun_s
        if second.status != 200:
            said = second.body[:200].decode("utf-8", "replace")
            remedy = (
                f"it has to reach the side channel of {source} (VLLM_NIXL_SIDE_CHANNEL_HOST is localhost by default), and both are to be "
                "of one version, with the same model, cache type and block layout"
            )
            return failed(self._name, f"{reader} cannot fetch: it answers {second.status}: {said}", remedy)
        await asyncio.sleep(_METRICS_S)
        tokens = await self._fetched_tokens() - before
        if tokens <= 0:
            told = f"{reader} answers, but its metrics tell of nothing fetched: it has computed the prompt itself"
            return warning(
                self._name, told, "start it to fetch KV (vLLM: --kv-transfer-config with kv_role kv_consumer)"
            )
        return ok(self._name, f"{tokens:.0f} tokens fetched, the answer took {1e3 * took_s:.0f} ms")

    async def _fetched_tokens(self) -> float:
        page = await self._send(self._reader, "/metrics")
        return parse_fetched_tokens(page.body)

    async def _send(self, endpoint: Endpoint, path: str, body: bytes | None = None) -> Fetched:
        return await fetch(self._pool_of(endpoint), path, endpoint.address, self._timeout_s, _PAGE_BYTES, body)
