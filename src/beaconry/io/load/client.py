"""Open-loop load: sends a plan's requests at their planned times to any OpenAI-compatible address and measures the streamed answers.

Honest by construction: a request's clock starts at its planned time, so a slow server, a busy client or a lack of connections can hide
nothing (no coordinated omission). The next request's body is built while the client waits for its time to come.
"""

import asyncio
import ssl
import time

import msgspec
from msgspec import Struct

from beaconry.io.load.connection import Address, LoadPool
from beaconry.io.load.exchange import LoadExchange
from beaconry.io.load.target import Target
from beaconry.workload.plan import Plan
from beaconry.workload.prompts import PromptText
from beaconry.workload.request import PlannedRequest
from beaconry.workload.sample import INTERRUPTED, Sample

LONGEST_SLEEP_S = 1.0
PREPARED = 32
"""Openings whose payload is built ahead: some megabytes of long prompts."""
SPARE_TIME_S = 0.003
"""Payloads are built ahead only if the next request is further away: the longest take about a millisecond."""


class LoadOptions(Struct, frozen=True, kw_only=True):
    """How requests are sent."""

    chat: bool = True
    """Chat completions; False: completions."""
    timeout_s: float = 600.0
    """From a request's planned time to the end of its answer."""
    max_connections: int = 1024
    """Requests beyond it wait, with their clock running."""
    ignore_eos: bool = True
    """Ask for exactly the planned number of tokens. vLLM, SGLang and llama.cpp understand it; other servers may refuse or ignore it."""


class LoadStatistics(Struct, frozen=True, kw_only=True):
    """How far a run has come."""

    elapsed_s: float
    sent: int
    in_flight: int
    succeeded: int
    failed: int


class LoadClient:
    """Runs one plan against one target, once."""

    def __init__(self, plan: Plan, text: PromptText, target: Target, options: LoadOptions) -> None:
        self._plan = plan
        self._text = text
        self._target = target
        self._options = options
        self._start_s = 0.0
        """Monotonic time of the run's start."""
        self._in_flight: set[LoadExchange] = set()
        """Launched and not ended."""
        self._samples: list[Sample] = []
        """One per exchange that has ended, in order of ending."""
        self._failed = 0
        self._interrupted = 0
        """Of the samples; the others are successes."""
        self._payloads: dict[int, bytes] = {}
        """Built ahead of time for the next requests, by the identity of the plan's own object, which lives until it is taken."""
        self._pool: LoadPool | None = None
        """Set while the run lasts."""
        self._wake = asyncio.Event()
        """Set when the plan or the stop event may have changed."""

    async def run(self, stop: asyncio.Event | None = None) -> list[Sample]:
        """Send the plan and return one sample per request sent.

        When `stop` is set, nothing more is sent, and what is in flight is cut off and marked interrupted.
        """
        tls = ssl.create_default_context() if self._target.secure else None
        address = Address(host=self._target.host, port=self._target.port, tls=tls)
        async with asyncio.TaskGroup() as tasks:
            pool = self._pool = LoadPool(address, self._options.max_connections, tasks)
            watch = tasks.create_task(self._wake_on(stop)) if stop is not None else None
            try:
                await self._send_all(pool, stop)
            finally:
                for exchange in list(self._in_flight):
                    exchange.on_failure(INTERRUPTED, "")
                pool.close()
                self._pool = None
                if watch is not None:
                    watch.cancel()
        return self._samples

    def statistics(self) -> LoadStatistics:
        """How far the run has come."""
        return LoadStatistics(
            elapsed_s=time.perf_counter() - self._start_s if self._start_s else 0.0,
            sent=len(self._samples) + len(self._in_flight),
            in_flight=len(self._in_flight),
            succeeded=len(self._samples) - self._failed - self._interrupted,
            failed=self._failed,
        )

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        assert all(exchange.sample is None for exchange in self._in_flight), "what is in flight has no sample"
        assert self._plan.statistics().taken == len(self._samples) + len(self._in_flight), "nothing is lost"
        if self._pool is not None:
            self._pool.check()

    async def _send_all(self, pool: LoadPool, stop: asyncio.Event | None) -> None:
        while self._prepare_one():
            pass
        self._start_s = time.perf_counter()
        while stop is None or not stop.is_set():
            request = self._plan.peek()
            if request is None and not self._in_flight:
                return
            early_s = LONGEST_SLEEP_S
            if request is not None:
                early_s = request.at_s - (time.perf_counter() - self._start_s)
            if request is not None and early_s <= 0:
                self._launch(pool, self._payload(request))
            elif early_s < SPARE_TIME_S or not self._prepare_one():
                await self._sleep(min(early_s, LONGEST_SLEEP_S))
            await asyncio.sleep(0)  # where there is much to send or to prepare, answers are read in between

    def _prepare_one(self) -> bool:
        """Build the payload of the first opening ahead that lacks one. Bursts are then sent as fast as they come."""
        for request in self._plan.openings_ahead(PREPARED):
            if id(request) not in self._payloads:
                self._payloads[id(request)] = self._bytes(request)
                return True
        return False

    def _payload(self, request: PlannedRequest) -> bytes:
        return self._payloads.pop(id(request), None) or self._bytes(request)

    def _bytes(self, request: PlannedRequest) -> bytes:
        return request_bytes(request, self._text, self._target, self._options)

    def _launch(self, pool: LoadPool, payload: bytes) -> None:
        request = self._plan.take()
        exchange = LoadExchange(request, payload, self._start_s, self._on_ended)
        self._in_flight.add(exchange)
        left_s = self._start_s + request.at_s + self._options.timeout_s - time.perf_counter()
        exchange.deadline = asyncio.get_running_loop().call_later(max(0.0, left_s), self._expire, pool, exchange)
        pool.submit(exchange)

    def _expire(self, pool: LoadPool, exchange: LoadExchange) -> None:
        pool.withdraw(exchange)
        exchange.on_failure("timeout", f"no complete answer within {self._options.timeout_s:g} s")

    def _on_ended(self, exchange: LoadExchange) -> None:
        sample = exchange.sample
        assert sample is not None
        self._in_flight.discard(exchange)
        self._samples.append(sample)
        if sample.error is None:
            reply = exchange.reply
            self._plan.answered(exchange.request, sample.end_s, text=reply.text, tokens=sample.output_tokens)
        elif sample.error == INTERRUPTED:
            self._interrupted += 1
        else:
            self._failed += 1
        if exchange.request.later or not self._in_flight:
            self._wake.set()

    async def _sleep(self, seconds: float) -> None:
        """Until `seconds` have passed or something woke us. A timer handle is cheaper than `wait_for`, and this runs per request."""
        timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
            self._wake.clear()

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()


def request_bytes(request: PlannedRequest, text: PromptText, target: Target, options: LoadOptions) -> bytes:
    """The HTTP request for a planned one."""
    prompt: dict[str, object] = {"messages": text.chat(request)} if options.chat else {"prompt": text.prompt(request)}
    limits: dict[str, object] = {
        "max_tokens": request.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        limits["ignore_eos"] = True
    body = msgspec.json.encode({"model": target.model, **prompt, **limits})
    head = [
        f"POST {target.path}/v1/{'chat/completions' if options.chat else 'completions'} HTTP/1.1",
        f"host: {target.authority}",
        "content-type: application/json",
        "accept: text/event-stream",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in target.headers),
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body
