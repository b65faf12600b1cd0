"""One engine, looked at from all sides that routing depends on; see `beaconry doctor`.

Checks go from the plain to the subtle: does it answer, what is it, does it serve the model, does it tell its load, does it tell its
cached tokens, do our tokens equal its tokens, do its KV events arrive and its block hashes equal ours. What depends on a check that
failed is skipped, so that the first failure is the one to repair.
"""

import asyncio
import json
import secrets
import time
from array import array

import msgspec
from msgspec import Struct

from beaconry.config.gateway import Health
from beaconry.io.engine_tokens import EngineTokens
from beaconry.io.fetch import Fetched, fetch
from beaconry.io.kv_examination import KvExamination
from beaconry.io.monitor import is_healthy, metrics_path
from beaconry.io.token_source import Source
from beaconry.io.tokenizing import Tokenizing
from beaconry.io.upstream import UpstreamPool
from beaconry.values.check import Check, Examined, failed, ok, skipped, warning
from beaconry.values.endpoint import Endpoint, EngineType, KvEventsAddress
from beaconry.values.errors import EngineError
from beaconry.values.request import Api
from beaconry.wire.engine_metrics import parse_load
from beaconry.wire.engine_pages import (
    Models,
    parse_cache_config,
    parse_completion,
    parse_event_sources,
    parse_models,
    parse_version,
)
from beaconry.wire.tokens import PromptTokens

PAGE_BYTES = 16_777_216
SLOW_S = 0.1
"""A round trip inside one data centre takes a hundredth of it."""
CLOCK_S = 5.0
"""Tolerated difference of clocks: they stand beside each other in logs and traces, nothing is decided by them."""
_HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is  6 x 7?\nThink: é ü 日本"},
    {"role": "assistant", "content": "42."},
    {"role": "user", "content": "<b>Why?</b>"},
]
_TOOL = {
    "type": "function",
    "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}},
}
SAMPLES: tuple[tuple[str, Api, dict[str, object]], ...] = (
    ("plain prompt", Api.COMPLETIONS, {"prompt": "Hello  there\n\n你好 — 3.14 e\u0301"}),
    ("one message", Api.CHAT, {"messages": _HISTORY[1:2]}),
    ("conversation", Api.CHAT, {"messages": _HISTORY}),
    (
        "parts",
        Api.CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    ),
    ("tools", Api.CHAT, {"messages": _HISTORY, "tools": [_TOOL]}),
)
"""What our tokens and the engine's are compared on."""


class Probe(Struct, frozen=True):
    """A prompt that no cache has seen, sent to the engine."""

    text: str
    tokens: "array[int] | None"
    """As the engine tokenizes it; None if it does not tell."""


class Examination:
    """One endpoint's. `checks` grows while `run` goes on."""

    def __init__(
        self,
        endpoint: Endpoint,
        pool: UpstreamPool,
        local: Source | None,
        *,
        health: Health,
        timeout_s: float,
        may_send: bool,
    ) -> None:
        """`local` tells our tokens, None if there is no local tokenizer. `may_send`: requests of some hundred tokens are allowed."""
        self.endpoint = endpoint
        self.checks: list[Check] = []
        self._pool = pool
        self._local = local
        self._health = health
        self._timeout_s = timeout_s
        self._may_send = may_send
        self._cache: dict[str, str] = {}
        """Labels of the engine's cache settings."""
        self._models = Models((), {})

    async def run(self) -> Examined:
        """Examine. Never raises but for cancellation."""
        if await self._reachable():
            await self._version()
            served = await self._serves()
            await self._tells_load()
            events = await self._where_events_are()
            if served:
                await self._tokens_agree()
                await self._requests(events)
        return Examined(endpoint=self.endpoint.name, address=self.endpoint.address, checks=tuple(self.checks))

    def _add(self, check: Check) -> None:
        self.checks.append(check)

    async def _fetch(self, path: str, body: dict[str, object] | None = None) -> Fetched:
        content = None if body is None else json.dumps(body).encode()
        return await fetch(self._pool, path, self.endpoint.address, self._timeout_s, PAGE_BYTES, content)

    async def _page(self, path: str) -> bytes:
        """A page's body; empty if there is no such page, or it does not come."""
        try:
            answer = await self._fetch(path)
        except EngineError:
            return b""
        return answer.body if answer.status == 200 else b""

    async def _reachable(self) -> bool:
        path = self._health.path
        begun_s = time.monotonic()
        try:
            answer = await self._fetch(path)
            begun_s = time.monotonic()
            answer = await self._fetch(path)  # on a connection that is there already
        except EngineError as error:
            remedy = (
                f"is the engine running, and does it listen at {self.endpoint.address} for others than itself (--host)?"
            )
            self._add(failed("reachable", str(error), remedy))
            return False
        took_s = time.monotonic() - begun_s
        told = f"GET {path} answers {answer.status} in {1e3 * took_s:.1f} ms"
        if not is_healthy(answer.status, self.endpoint.engine):
            self._add(failed("reachable", told, "the engine's own log says why it is not healthy"))
            return False
        slow = took_s > SLOW_S
        remedy = (
            "requests pay this twice before anything is computed: is the network or the engine's front end overloaded?"
        )
        self._add(warning("reachable", told, remedy) if slow else ok("reachable", told))
        return True

    async def _version(self) -> None:
        version = parse_version(await self._page("/version"))
        engine = self.endpoint.engine
        if version is None:
            if engine in (EngineType.VLLM, EngineType.SIM):
                remedy = f"it does not seem to be {engine.value}: set `engine` of this endpoint to what it is"
                self._add(warning("version", "GET /version tells none", remedy))
            else:
                self._add(skipped("version", f"{engine.value} does not tell it"))
        elif ("beaconry" in version) != (engine is EngineType.SIM):
            actual = EngineType.SIM if "beaconry" in version else EngineType.VLLM
            remedy = f"set `engine: {actual.value}` for this endpoint"
            self._add(failed("version", f"{version}, but configured as {engine.value}", remedy))
        else:
            self._add(ok("version", f"{engine.value} {version}"))

    async def _serves(self) -> bool:
        model = self.endpoint.model
        models = parse_models(await self._page("/v1/models"))
        if models is None:
            self._add(
                failed("model", "GET /v1/models is no list of models", "is there another service at this address?")
            )
            return False
        self._models = models
        names = ", ".join(models.names) or "none"
        if model not in models.names:
            remedy = (
                f"set `model` of this endpoint to one of those, or start the engine with --served-model-name {model}"
            )
            self._add(failed("model", f"{model!r} is not served, but: {names}", remedy))
            return False
        self._add(ok("model", f"{model} (of {names})" if len(models.names) > 1 else model))
        return True

    async def _tells_load(self) -> None:
        engine = self.endpoint.engine
        path = metrics_path(engine, "/metrics")
        page = await self._page(path)
        self._cache = parse_cache_config(page)
        sample = parse_load(page, engine, 0.0)
        missing = [name for name in ("running", "waiting", "kv_usage") if getattr(sample, name) is None]
        if len(missing) == 3:
            remedy = "start the engine with its metrics (SGLang: --enable-metrics, llama.cpp: --metrics); until then its load is guessed"
            self._add(warning("metrics", f"GET {path} tells no load", remedy))
        elif missing:
            told = f"GET {path} tells no {', '.join(missing)}"
            self._add(
                warning(
                    "metrics", told, "an engine of another version? What is missing is guessed from our own traffic"
                )
            )
        else:
            self._add(
                ok(
                    "metrics",
                    f"{sample.running} running, {sample.waiting} waiting, {100 * (sample.kv_usage or 0):.0f} % of KV in use",
                )
            )
        self._knows_blocks(sample.block_tokens)

    def _knows_blocks(self, told: int | None) -> None:
        """Block size, algorithm and prefix caching, against the configuration."""
        if self._cache.get("enable_prefix_caching") == "False":
            remedy = "start the engine with --enable-prefix-caching: without it nothing is ever found again"
            self._add(failed("prefix cache", "prefix caching is off", remedy))
        wanted = self.endpoint.kv_blocks
        algorithm = self._cache.get("prefix_caching_hash_algo")
        if wanted is None:
            known = f"{told} tokens" if told else "not told"
            self._add(ok("block size", known) if told else skipped("block size", known))
            return
        if told and wanted.block_tokens and told != wanted.block_tokens:
            remedy = f"set kvBlocks.blockTokens: {told}, or start the engine with --block-size {wanted.block_tokens}"
            self._add(failed("block size", f"{told} tokens, configured are {wanted.block_tokens}", remedy))
        elif algorithm and algorithm != wanted.algorithm:
            remedy = f"set kvBlocks.algorithm: {algorithm}, or start the engine with --prefix-caching-hash-algo {wanted.algorithm}"
            self._add(
                failed("block size", f"blocks are hashed by {algorithm}, configured is {wanted.algorithm}", remedy)
            )
        else:
            hashed = f", hashed by {algorithm}" if algorithm else ""
            self._add(ok("block size", f"{told or wanted.block_tokens} tokens{hashed}"))

    async def _where_events_are(self) -> KvEventsAddress | None:
        if self.endpoint.kv_events is not None:
            return self.endpoint.kv_events
        told = parse_event_sources(await self._page("/kv_event_sources"), self.endpoint.host)
        if told is None:
            remedy = 'exact routing needs them: vLLM --kv-events-config \'{"enable_kv_cache_events":true,"publisher":"zmq",...}\''
            self._add(skipped("KV events", "none configured", remedy))
        return told

    async def _tokens_agree(self) -> None:
        """Our tokens against the engine's, on samples of all kinds."""
        loop = asyncio.get_running_loop()
        asked = Tokenizing([self._engine_tokens()], loop.time, deadline_s=self._timeout_s)
        ours = None if self._local is None else Tokenizing([self._local], loop.time, deadline_s=self._timeout_s)
        agreed = 0
        for name, api, fields in SAMPLES:
            body = json.dumps({"model": self.endpoint.model, **fields}).encode()
            begun_s = time.monotonic()
            theirs = await asked.tokens(api, body)
            took_s = time.monotonic() - begun_s
            if ours is None:
                self._asked_for_tokens(theirs, took_s)
                return
            check = _compared(name, await ours.tokens(api, body), theirs)
            if check is None:
                agreed += 1
            else:
                self._add(check)
        if agreed:
            self._add(ok("tokens", f"ours are the engine's on {agreed} of {len(SAMPLES)} samples"))

    def _engine_tokens(self) -> EngineTokens:
        loop = asyncio.get_running_loop()
        return EngineTokens(lambda: (self.endpoint,), lambda _: self._pool, loop.time)

    def _asked_for_tokens(self, theirs: PromptTokens, took_s: float) -> None:
        remedy = "give the model's directory in tokens.modelDirs: local tokens take no round trip"
        if theirs.ids is None:
            self._add(warning("tokens", f"no local tokenizer, and the engine tells no tokens: {theirs.detail}", remedy))
        else:
            self._add(ok("tokens", f"asked of the engine, {1e3 * took_s:.1f} ms; {remedy}"))

    async def _requests(self, events: KvEventsAddress | None) -> None:
        """What shows only when the engine works: usage, clock, KV events."""
        if not self._may_send:
            self._add(skipped("usage", "no requests were allowed"))
            if events is not None:
                self._add(skipped("KV events", "no requests were allowed"))
            return
        block_tokens = (
            int(self._cache.get("block_size") or 0)
            or (self.endpoint.kv_blocks.block_tokens if self.endpoint.kv_blocks else 0)
            or 16
        )
        probe = await self._new_probe(2 * block_tokens + 8)
        if events is None:
            await self._send_twice(probe)
            return
        endpoint = msgspec.structs.replace(self.endpoint, kv_events=events)
        kv = KvExamination(endpoint, self._models.adapters, probe.tokens, self._cache)
        async with kv.listening():
            if await self._send_twice(probe):
                await kv.wait(self._timeout_s)
        self.checks += kv.checks()

    async def _new_probe(self, words: int) -> Probe:
        text = " ".join(secrets.token_hex(2) for _ in range(words))
        body = json.dumps({"model": self.endpoint.model, "prompt": text}).encode()
        loop = asyncio.get_running_loop()
        found = await Tokenizing([self._engine_tokens()], loop.time, deadline_s=self._timeout_s).tokens(
            Api.COMPLETIONS, body
        )
        return Probe(text, found.ids)

    async def _send_twice(self, probe: Probe) -> bool:
        """Send a fresh prompt twice: the second time most of it is cached, and the engine should say so. False: it does not answer."""
        question: dict[str, object] = {
            "model": self.endpoint.model,
            "prompt": probe.text,
            "max_tokens": 1,
            "temperature": 0,
        }
        found = None
        for _ in range(2):
            sent_s = time.time()
            try:
                answer = await self._fetch("/v1/completions", question)
            except EngineError as error:
                self._add(failed("usage", str(error), "the engine is healthy and does not generate: see its log"))
                return False
            found = parse_completion(answer.body)
            if answer.status != 200 or found is None:
                said = answer.body[:200].decode("utf-8", "replace")
                self._add(
                    failed("usage", f"POST /v1/completions answers {answer.status}: {said}", "see the engine's log")
                )
                return False
        assert found is not None
        self._clock(found.created - sent_s)
        if found.cached_tokens is None:
            remedy = "start vLLM with --enable-prompt-tokens-details: predictions are held against it"
            self._add(warning("usage", "the engine does not report cached tokens", remedy))
        elif found.cached_tokens == 0:
            remedy = "is prefix caching on (--enable-prefix-caching), and is the cache large enough to keep anything?"
            self._add(warning("usage", "a prompt sent twice was not cached the second time", remedy))
        else:
            told = f"{found.cached_tokens} of {found.usage.prompt_tokens} tokens cached when sent again"
            self._add(ok("usage", told))
        return True

    def _clock(self, offset_s: float) -> None:
        # the engine's time stamp is in whole seconds
        if abs(offset_s) > CLOCK_S + 1.0:
            remedy = "synchronise the clocks (NTP): logs and traces of this engine cannot be read beside ours"
            self._add(warning("clock", f"the engine's clock is {offset_s:+.0f} s from ours", remedy))
        else:
            self._add(ok("clock", "within a few seconds of ours"))


def _compared(name: str, ours: PromptTokens, theirs: PromptTokens) -> Check | None:
    """What is wrong with one sample; None if nothing is."""
    if theirs.ids is None:
        return skipped("tokens", f"{name}: the engine tells none: {theirs.detail}")
    if ours.ids is None:
        return warning(
            "tokens", f"{name}: we have none: {ours.detail}", "such requests are routed by the approximate view"
        )
    if ours.ids == theirs.ids:
        return None
    differing = (index for index, pair in enumerate(zip(ours.ids, theirs.ids, strict=False)) if pair[0] != pair[1])
    at = next(differing, min(len(ours.ids), len(theirs.ids)))
    return failed(
        "tokens",
        f"{name}: {len(ours.ids)} tokens here, {len(theirs.ids)} there; they differ from token {at} on",
        "is the directory in tokens.modelDirs the engine's model, of the same revision, and has the engine a --chat-template of its own?",
    )
