"""Tokens from the engines themselves: `/tokenize` for text, `/v1/chat/completions/render` for images.

Any healthy endpoint of the model will do, they take turns. A question is bounded in time, size and number; an endpoint that fails or is late
several times running is left alone for a while, the longer the more often, so that a slow one does not cost every request its deadline.
"""

import asyncio
from array import array
from collections.abc import Callable, Sequence

from beaconry.io.fetch import Fetched, fetch
from beaconry.io.upstream import UpstreamPool
from beaconry.values.block_hash import MediaItem
from beaconry.values.endpoint import Endpoint, EngineType
from beaconry.values.errors import EngineError
from beaconry.wire.tokens import (
    Chat,
    NoTokensError,
    Reason,
    Text,
    TokenSource,
    parse_rendered,
    parse_tokenized,
    tokenize_body,
)

ASKED_AT_ONCE = 64
"""Questions under way, per model: more would queue in the engines' front ends."""
BODY_BYTES = 1_048_576
"""Larger bodies take an engine longer than any deadline here."""
ANSWER_BYTES = 8_388_608
"""A million tokens as JSON."""
FAILURES = 3
"""Running, before an endpoint is left alone."""
PAUSE_S = 5.0
"""For the first time; doubles up to `PAUSE_MAX_S`."""
PAUSE_MAX_S = 60.0
RENDER_PATH = "/v1/chat/completions/render"
_ENGINES = frozenset({EngineType.VLLM, EngineType.SIM})
"""Those whose `/tokenize` takes conversations."""


class EngineTokens:
    """One model's tokens, asked for. Belongs to the event loop."""

    kind = TokenSource.ENGINE

    def __init__(
        self,
        endpoints: Callable[[], Sequence[Endpoint]],
        pool_of: Callable[[Endpoint], UpstreamPool],
        now_s: Callable[[], float],
    ) -> None:
        """`endpoints` gives the model's healthy ones."""
        self._endpoints = endpoints
        self._pool_of = pool_of
        self._now_s = now_s
        self._turn = 0
        self._asked = 0
        """Questions under way, at most ASKED_AT_ONCE."""
        self._failed: dict[str, int] = {}
        """Failures running, by endpoint; absent for none."""
        self._paused_until_s: dict[str, float] = {}
        """By endpoint that is, or was, left alone."""

    def now(self, ask: Text | Chat, body: bytes) -> None:  # noqa: ARG002
        """Nothing comes from an engine at once."""
        return

    async def later(self, ask: Text | Chat, body: bytes, within_s: float) -> "tuple[array[int], tuple[MediaItem, ...]]":
        """Ask an engine. NoTokensError: none to ask, no answer in time, or not the answer that was asked for."""
        if len(body) > BODY_BYTES:
            raise NoTokensError(Reason.DEADLINE, f"a body of {len(body)} bytes takes an engine too long to tokenize")
        if self._asked >= ASKED_AT_ONCE:
            raise NoTokensError(Reason.BUSY, f"{self._asked} questions for tokens are under way")
        endpoint = self._next()
        render = isinstance(ask, Chat) and ask.media
        path = RENDER_PATH if render else "/tokenize"
        self._asked += 1
        try:
            answer = await fetch(
                self._pool_of(endpoint),
                path,
                endpoint.address,
                within_s,
                ANSWER_BYTES,
                body if render else tokenize_body(ask, body),
            )
        except EngineError as error:
            self._has_failed(endpoint)
            late = "no complete answer" in str(error)
            raise NoTokensError(Reason.DEADLINE if late else Reason.FAILED, str(error)) from None
        except asyncio.CancelledError:
            raise  # the client has gone: says nothing about the endpoint
        finally:
            self._asked -= 1
        return self._read(endpoint, path, answer, render=render)

    def _read(
        self, endpoint: Endpoint, path: str, answer: Fetched, *, render: bool
    ) -> "tuple[array[int], tuple[MediaItem, ...]]":
        self._failed.pop(endpoint.name, None)
        self._paused_until_s.pop(endpoint.name, None)
        if answer.status == 200:
            return parse_rendered(answer.body) if render else (parse_tokenized(answer.body), ())
        if answer.status in (403, 404) and render:
            raise NoTokensError(
                Reason.MEDIA, f"{endpoint.name} answers {answer.status} to {path}: start vLLM with --enable-scale-out"
            )
        if answer.status == 400:
            raise NoTokensError(Reason.INVALID, f"{endpoint.name} answers 400 to {path}")
        self._has_failed(endpoint)
        raise NoTokensError(Reason.FAILED, f"{endpoint.name} answers {answer.status} to {path}")

    def _next(self) -> Endpoint:
        candidates = [endpoint for endpoint in self._endpoints() if endpoint.engine in _ENGINES]
        if not candidates:
            raise NoTokensError(Reason.NO_SOURCE, "no healthy engine of this model can be asked for tokens")
        now_s = self._now_s()
        known = {endpoint.name for endpoint in candidates}
        for name in [name for name in self._paused_until_s if name not in known]:
            del self._paused_until_s[name]  # gone or ill: it begins afresh when it is back
            self._failed.pop(name, None)
        open_ = [e for e in candidates if now_s >= self._paused_until_s.get(e.name, 0.0)]
        if not open_:
            raise NoTokensError(Reason.FAILED, "all engines of this model have failed to tell tokens; asked again soon")
        self._turn += 1
        return open_[self._turn % len(open_)]

    def _has_failed(self, endpoint: Endpoint) -> None:
        failures = self._failed.get(endpoint.name, 0) + 1
        self._failed[endpoint.name] = failures
        if failures >= FAILURES:
            pause_s = min(PAUSE_MAX_S, PAUSE_S * 2.0 ** min(failures - FAILURES, 10))
            self._paused_until_s[endpoint.name] = self._now_s() + pause_s
