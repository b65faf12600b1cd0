"""A small request over an endpoint's own connections: bounded in time and size, for health checks, metrics and questions."""

import asyncio

from msgspec import Struct

from beaconry.io.upstream import Call, UpstreamPool
from beaconry.router.facts import Fault
from beaconry.values.errors import EngineError


class Fetched(Struct, frozen=True):
    """A complete answer."""

    status: int
    body: bytes


async def fetch(
    pool: UpstreamPool, path: str, host: str, timeout_s: float, limit_bytes: int, body: bytes | None = None
) -> Fetched:
    """GET `path`, or POST it with a JSON `body`; `host` is the Host header. The connection is dropped if the caller is cancelled
    or time is up.

    Raises EngineError: no connection, no complete answer within `timeout_s`, or a body larger than `limit_bytes`.
    """
    answer = _Answer(limit_bytes)
    method, content = ("GET", "") if body is None else ("POST", _content_headers(body))
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\naccept: */*\r\n{content}\r\n"
    call = Call(answer, head.encode() + (body or b""))
    try:
        async with asyncio.timeout(timeout_s):
            pool.send(call)
            return await answer.complete
    except TimeoutError:
        raise EngineError(f"{method} {path} from {host}: no complete answer within {timeout_s:g} s") from None
    except EngineError as error:
        raise EngineError(f"{method} {path} from {host}: {error}") from None
    finally:
        call.cancel()  # of no effect on a call that has ended


def _content_headers(body: bytes) -> str:
    return f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"


class _Answer:
    """Collects one answer. `complete` is set exactly once."""

    def __init__(self, limit_bytes: int) -> None:
        self.complete: asyncio.Future[Fetched] = asyncio.get_running_loop().create_future()
        self._limit_bytes = limit_bytes
        self._status = 0
        self._parts: list[bytes] = []
        self._received = 0

    def on_answer(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:  # noqa: ARG002
        """Note the status."""
        self._status = status

    def on_data(self, data: bytes, *, ended: bool) -> None:
        """Keep a piece, unless it is too much."""
        self._received += len(data)
        if self.complete.done():
            return
        if self._received > self._limit_bytes:
            self._parts.clear()
            self.complete.set_exception(EngineError(f"the answer is larger than {self._limit_bytes} bytes"))
            return
        self._parts.append(data)
        if ended:
            self.complete.set_result(Fetched(self._status, b"".join(self._parts)))

    def on_failure(self, fault: Fault, detail: str) -> None:
        """Pass the reason on."""
        if not self.complete.done():
            self.complete.set_exception(EngineError(f"{fault.value}: {detail}"))
