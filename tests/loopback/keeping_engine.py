"""A scripted engine that keeps some requests waiting for their first byte, and a gateway of two bands before it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from beaconry.apps.assemble import Gateway
from beaconry.config.tenants import Objective, TrustedHeader
from beaconry.values.endpoint import Role
from tests.loopback.fake_engine import (
    DONE,
    SSE_HEAD,
    FakeEngine,
    Got,
    Reply,
    chat,
    chunk,
    event,
    gateway,
    post,
    send,
    whole,
)
from tests.loopback.test_two_legs import answer, prefilled

SECTIONS = {
    "objectives": {"batch": Objective(priority=0), "urgent": Objective(priority=7)},
    "trusted_headers": (TrustedHeader.OBJECTIVE,),
}
STREAM = SSE_HEAD + chunk(event("a")) + chunk(event("b")) + chunk(DONE) + b"0\r\n\r\n"
LONG = "many words " * 40_000
"""What takes seconds to be computed, for all that the gateway knows: before that it expects no whole answer."""


class Keeping(FakeEngine):
    """Answers all requests at once but those of some users, which it keeps until they are let go, or until their connection closes."""

    def __init__(self, *users: str, opening: bytes = b"", aborts: bool = True, **fields: object) -> None:
        """`users`: whose requests are kept, which is the chat's `user`; `opening`: the head of their answer and perhaps more, sent at
        once; `aborts`: with its connection a request ends."""
        super().__init__(self._serve, **fields)
        self._aborts = aborts
        self._opening = opening
        self.let_go = {user: asyncio.Event() for user in users}
        self.broken = False
        """What is let go loses its connection instead of being answered."""
        self.seen: list[str] = []
        """Users of the requests, in order; "" for none."""
        self.aborted: list[str] = []
        """Those whose connections were closed while they waited."""
        self._readers: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._readers[writer] = reader
        await super().serve(reader, writer)

    async def _serve(self, got: Got, writer: asyncio.StreamWriter) -> None:
        asked = json.loads(got.body)
        user, said = asked.get("user", ""), b""
        self.seen.append(user)
        let_go, reader = self.let_go.get(user), self._readers[writer]
        if let_go is not None and not let_go.is_set():
            said = self._opening
            writer.write(said)
            while not let_go.is_set():
                if self._aborts and (reader.at_eof() or reader.exception() is not None):
                    self.aborted.append(user)
                    raise ConnectionResetError
                await asyncio.sleep(0.002)
            if self.broken:
                writer.transport.abort()
                raise ConnectionResetError
        if self.role is Role.PREFILL:
            writer.write(answer(prefilled()))
        else:
            head, blank, body = (STREAM if asked.get("stream") else whole(user)).partition(b"\r\n\r\n")
            writer.write(body if said else head + blank + body)


@asynccontextmanager
async def contested(*engines: FakeEngine, **sections: object) -> AsyncIterator[Gateway]:
    """A gateway before these engines which knows of both bands: each of their requests that have no user is one of the first two."""
    async with gateway(*engines, **(SECTIONS | sections)) as running:
        for name in SECTIONS["objectives"]:
            assert (await send(running.port, post(chat(), headers=objective(name)))).status == 200
        yield running
        assert running.server_statistics().buffered_bytes == 0


def objective(name: str) -> str:
    return f"x-llm-d-inference-objective: {name}\r\n"


def low(beginning: str = "", **fields: object) -> bytes:
    """A long prompt of the lower band."""
    asked = chat(user="low", messages=[{"role": "user", "content": beginning + LONG}])
    return post(asked | fields, headers=objective("batch"))


def high(words: int = 1, **fields: object) -> bytes:
    """A prompt of the higher band."""
    asked = chat(user="high", messages=[{"role": "user", "content": "now " * words}])
    return post(asked | fields, headers=objective("urgent"))


def sending(running: Gateway, payload: bytes) -> "asyncio.Task[Reply]":
    return asyncio.create_task(send(running.port, payload))


def outcomes(running: Gateway) -> dict[str, int]:
    return {outcome.value: count for outcome, count in running.statistics().models["m"].outcomes.items()}


def waiting(running: Gateway) -> int:
    """Requests in the queue."""
    return sum(band.queued_requests for band in running.statistics().flow.bands)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no callback announces; the test's own deadline bounds it."""
    while not condition():
        await asyncio.sleep(0.002)


async def taken_back(running: Gateway, engine: Keeping) -> None:
    """One request was, and its engine has noticed."""
    await until(lambda: running.statistics().recalls == len(engine.aborted) == 1)
