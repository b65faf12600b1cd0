"""Tokens from the engines themselves: `/tokenize` for text, `/v1/chat/completions/render` for images.

Any healthy endpoint of the model will do, they take turns. A question is bounded in time, size and number; an endpoint that fails or
is late several times running is left alone for a while, the longer the more often, so that a slow one does not cost every request its
deadline.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from beaconry.io.fetch import fetch
from beaconry.io.token_source import Later, Told
from beaconry.io.upstream import UpstreamPool
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
        self._troubles: dict[str, _Trouble] = {}
        """By endpoint, while its last answer was a failure; of endpoints that are there only."""

    def begin(self, ask: Text | Chat, body: bytes) -> Later:
        """Nothing comes from an engine at once."""
        return lambda within_s: self._ask(ask, body, within_s)

    async def _ask(self, ask: Text | Chat, body: bytes, within_s: float) -> Told:
        if len(body) > BODY_BYTES:
            raise NoTokensError(Reason.DEADLINE, f"a body of {len(body)} bytes takes an engine too long to tokenize")
        if self._asked >= ASKED_AT_ONCE:
            raise NoTokensError(Reason.BUSY, f"{self._asked} questions for tokens are under way")
        endpoint = self._next()
        render = isinstance(ask, Chat) and ask.media
        path, question = (RENDER_PATH, body) if render else ("/tokenize", tokenize_body(ask, body))
        begun_s = self._now_s()
        self._asked += 1
        try:
            pool = self._pool_of(endpoint)
            answer = await fetch(pool, path, endpoint.address, within_s, ANSWER_BYTES, question)
        except EngineError as error:
            self._has_failed(endpoint)
            late = self._now_s() - begun_s >= within_s
            raise NoTokensError(Reason.DEADLINE if late else Reason.FAILED, str(error)) from None
        finally:
            self._asked -= 1
        what = f"{endpoint.name} answers {answer.status} to {path}"
        if answer.status >= 500 or answer.status == 429:
            self._has_failed(endpoint)
            raise NoTokensError(Reason.FAILED, what)
        self._troubles.pop(endpoint.name, None)
        if answer.status == 400:
            raise NoTokensError(Reason.INVALID, what)
        if answer.status != 200:
            missing = render and answer.status in (403, 404)
            reason = Reason.MEDIA if missing else Reason.FAILED
            raise NoTokensError(reason, what + ": start vLLM with --enable-scale-out" * missing)
        return parse_rendered(answer.body) if render else (parse_tokenized(answer.body), ())

    def _next(self) -> Endpoint:
        candidates = [endpoint for endpoint in self._endpoints() if endpoint.engine in _ENGINES]
        if not candidates:
            raise NoTokensError(Reason.NO_SOURCE, "no healthy engine of this model can be asked for tokens")
        if self._troubles:
            there = {endpoint.name for endpoint in candidates}
            self._troubles = {name: trouble for name, trouble in self._troubles.items() if name in there}
            now_s = self._now_s()
            candidates = [
                e for e in candidates if e.name not in self._troubles or now_s >= self._troubles[e.name].until_s
            ]
            if not candidates:
                raise NoTokensError(
                    Reason.FAILED, "all engines of this model have failed to tell tokens; asked again soon"
                )
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    def _has_failed(self, endpoint: Endpoint) -> None:
        trouble = self._troubles.get(endpoint.name)
        failures = 1 if trouble is None else trouble.failures + 1
        pause_s = 0.0
        if failures >= FAILURES:
            pause_s = min(PAUSE_MAX_S, PAUSE_S * 2.0 ** min(failures - FAILURES, 10))
        self._troubles[endpoint.name] = _Trouble(failures, self._now_s() + pause_s)


class _Trouble(Struct, frozen=True):
    failures: int
    """Running."""
    until_s: float
    """When it may be asked again."""
