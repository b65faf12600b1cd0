"""A source of tokens that is still being made: loading a tokenizer takes seconds, in which the event loop has requests to serve.

It is loaded by a thread. Until it is there this source has nothing and says why, so the next one is asked; likewise if it cannot be
loaded, which is logged. If loading takes longer than it should, that is logged too, and what comes of it late is used all the same.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from beaconry.io.token_source import Later, Source, Told
from beaconry.values.errors import OperatorError
from beaconry.wire.tokens import Chat, NoTokensError, Reason, Text, TokenSource

WITHIN_S: Final = 60.0
"""The largest tokenizers take three seconds on an idle core."""
_LOG = logging.getLogger(__name__)


class LoadingTokens:
    """One model's source, told here from when it is loaded. Belongs to the event loop, which must run when it is made."""

    kind = TokenSource.LOCAL

    def __init__(self, what: str, load: Callable[[], Source], within_s: float = WITHIN_S) -> None:
        """`load` runs in a thread and may raise OperatorError; `what` is loaded, for messages."""
        self._what = what
        self._source: Source | None = None
        self._reason = Reason.LOADING
        self._detail = f"{what} is being loaded"
        loop = asyncio.get_running_loop()
        self._late = loop.call_later(within_s, self._takes_long, within_s)
        self._loading = loop.run_in_executor(None, load)
        self._loading.add_done_callback(self._loaded)

    def begin(self, ask: Text | Chat, body: bytes) -> Told | Later:
        """What the loaded source says; NoTokensError before."""
        if self._source is None:
            raise NoTokensError(self._reason, self._detail)
        return self._source.begin(ask, body)

    def _loaded(self, loading: "asyncio.Future[Source]") -> None:
        self._late.cancel()
        if loading.cancelled():
            return
        fault = loading.exception()
        if fault is None:
            self._source = loading.result()
            return
        self._reason, self._detail = Reason.FAILED, f"{self._what} cannot be loaded: {fault}"
        _LOG.error("%s", self._detail, exc_info=None if isinstance(fault, OperatorError) else fault)

    def _takes_long(self, within_s: float) -> None:
        self._detail = f"{self._what} has not been loaded within {within_s:g} s"
        _LOG.error("%s; until it is, tokens come from elsewhere", self._detail)
