"""A request's tokens: from the first source that has them in time, or a reason why there are none. Never an error, never a delay.

Sources are tried in order, all within one deadline. What comes out is counted by source and reason. Each answer's usage is held
against our count: a source that is wrong several times running for one kind of request (say, with tools) is set aside for that kind
for a while, because wrong tokens are worse than none: they would make keys that no engine has.
"""

import asyncio
import logging
from array import array
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from beaconry.io.token_source import Later, Source, Told
from beaconry.kvindex.block_keys import BlockKeys
from beaconry.values.block_hash import Extras
from beaconry.values.request import Api
from beaconry.wire.tokens import Ask, Chat, Given, NoTokensError, PromptTokens, Reason, Text, TokenSource, ask_of

WRONG_RUNNING = 3
"""Counts that differ from the engine's, before a source is set aside for that kind of request."""
SET_ASIDE_S = 300.0
"""Then it is tried again: an engine may have been restarted with other flags."""
STRIDES_A_SLICE = 8
"""Hashed between two looks at the event loop: about half a millisecond."""
COMPLAIN_S = 60.0
"""Between two log lines about a source that breaks."""
_LOG = logging.getLogger(__name__)


class TokenizingStatistics(Struct, frozen=True, kw_only=True):
    """Counts since the start."""

    told: dict[tuple[TokenSource, Reason | None], int]
    """Requests by where their tokens came from, and why not from the first source. All keys are from closed sets."""
    agreed: dict[TokenSource, int]
    """Counts that were the engine's."""
    disagreed: dict[TokenSource, int]
    set_aside: tuple[tuple[TokenSource, str], ...]
    """Sources with the kind of request they are not asked for at present."""


class _Trust(Struct):
    wrong: int = 0
    """Disagreements running."""
    until_s: float = 0.0
    """Set aside until then."""


class Tokenizing:
    """One model's tokens. Belongs to the event loop."""

    def __init__(self, sources: Sequence[Source], now_s: Callable[[], float], *, deadline_s: float = 0.05) -> None:
        """`sources` in order of preference; `deadline_s` bounds the wait for all of them together."""
        self._sources = tuple(sources)
        self._now_s = now_s
        self._deadline_s = deadline_s
        self._told: dict[tuple[TokenSource, Reason | None], int] = {}
        self._agreed = dict.fromkeys(TokenSource, 0)
        self._disagreed = dict.fromkeys(TokenSource, 0)
        self._trust: dict[tuple[TokenSource, str], _Trust] = {}
        """By source and kind of request; only those whose last count was wrong. Kinds are few: see `Chat.kind`."""
        self._complained_s = -COMPLAIN_S

    def begin(self, api: Api, body: bytes) -> PromptTokens | Awaitable[PromptTokens]:
        """The tokens at once, where that takes no more than a millisecond; else what to await, for at most the deadline.

        Neither raises anything but CancelledError.
        """
        try:
            ask = ask_of(api, body)
        except NoTokensError as error:
            return self._count(_without("", error))
        if isinstance(ask, Given):
            extras = Extras(salt=ask.salt or None)
            return self._count(PromptTokens(ids=ask.ids, source=TokenSource.GIVEN, kind="given", extras=extras))
        found = self._from(0, ask, body, None)
        return self._count(found) if isinstance(found, PromptTokens) else self._wait(ask, body, *found)

    async def tokens(self, api: Api, body: bytes) -> PromptTokens:
        """The tokens, after at most the deadline."""
        found = self.begin(api, body)
        return found if isinstance(found, PromptTokens) else await found

    def reported(self, tokens: PromptTokens, prompt_tokens: int) -> None:
        """Hold our count against the one that the engine reported for the same request."""
        if tokens.ids is None:
            return
        key = (tokens.source, tokens.kind)
        if len(tokens.ids) == prompt_tokens:
            self._agreed[tokens.source] += 1
            self._trust.pop(key, None)
            return
        self._disagreed[tokens.source] += 1
        if tokens.source is TokenSource.GIVEN:
            return  # they are the prompt: the engine has another idea of its usage
        trust = self._trust.setdefault(key, _Trust())
        trust.wrong += 1
        if trust.wrong >= WRONG_RUNNING:
            trust.until_s = self._now_s() + SET_ASIDE_S
            _LOG.warning(
                "tokens from source %s for requests of kind %r: %d counted, the engine says %d, %d times running; set aside for "
                "%.0f s (are tokenizer and chat template those of the engine? see beaconry doctor)",
                *(tokens.source.value, tokens.kind, len(tokens.ids), prompt_tokens, trust.wrong, SET_ASIDE_S),
            )

    def statistics(self) -> TokenizingStatistics:
        """Counts."""
        now_s = self._now_s()
        return TokenizingStatistics(
            told=dict(self._told),
            agreed=dict(self._agreed),
            disagreed=dict(self._disagreed),
            set_aside=tuple(key for key, trust in self._trust.items() if now_s < trust.until_s),
        )

    def _from(
        self, place: int, ask: Text | Chat, body: bytes, refused: NoTokensError | None
    ) -> PromptTokens | tuple[int, Later, NoTokensError | None]:
        """Try the sources from `place` on: the end of it, or the place of one that takes waiting. `refused` is the first refusal."""
        for here in range(place, len(self._sources)):
            source = self._sources[here]
            try:
                found = self._begin(source, ask, body)
            except NoTokensError as error:
                refused = refused or error
                continue
            return (here, found, refused) if callable(found) else _told(ask, source.kind, found, refused)
        return _without(ask.kind, refused or NoTokensError(Reason.NO_SOURCE, "none is configured"))

    async def _wait(
        self, ask: Text | Chat, body: bytes, place: int, later: Later, refused: NoTokensError | None
    ) -> PromptTokens:
        """Await a source, and if it has nothing try the next ones, until the deadline."""
        deadline_s = self._now_s() + self._deadline_s
        while (left_s := deadline_s - self._now_s()) > 0:
            try:
                told = await self._guard(later, left_s)
            except NoTokensError as error:
                refused = refused or error
            else:
                return self._count(_told(ask, self._sources[place].kind, told, refused))
            found = self._from(place + 1, ask, body, refused)
            if isinstance(found, PromptTokens):
                return self._count(found)
            place, later, refused = found
        late = NoTokensError(Reason.DEADLINE, f"no tokens within {1e3 * self._deadline_s:.0f} ms")
        return self._count(_without(ask.kind, refused or late))

    def _begin(self, source: Source, ask: Text | Chat, body: bytes) -> Told | Later:
        trust = self._trust.get((source.kind, ask.kind))
        if trust is not None and self._now_s() < trust.until_s:
            raise NoTokensError(
                Reason.DISTRUSTED, f"its counts for requests of kind {ask.kind!r} were not the engine's"
            )
        try:
            return source.begin(ask, body)
        except NoTokensError:
            raise
        except Exception as error:
            raise self._broken(error) from error

    async def _guard(self, later: Later, left_s: float) -> Told:
        try:
            return await later(left_s)
        except NoTokensError:
            raise
        except Exception as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> NoTokensError:
        now_s = self._now_s()
        if now_s - self._complained_s >= COMPLAIN_S:
            self._complained_s = now_s
            _LOG.error("a source of tokens broke; requests go on without", exc_info=error)
        return NoTokensError(Reason.FAILED, f"{type(error).__name__} in the source")

    def _count(self, tokens: PromptTokens) -> PromptTokens:
        key = (tokens.source, tokens.reason)
        self._told[key] = self._told.get(key, 0) + 1
        return tokens


async def keys_of(block_keys: BlockKeys, ids: "array[int]", extras: Extras) -> "array[int]":
    """The block keys of a prompt, computed in slices, so that a long fresh one does not hold up the event loop."""
    found = array("Q")
    for count, _ in enumerate(block_keys.walk(found, ids, extras), 1):
        if count % STRIDES_A_SLICE == 0:
            await asyncio.sleep(0)
    return found


def _told(ask: Ask, source: TokenSource, found: Told, refused: NoTokensError | None) -> PromptTokens:
    ids, items = found
    return PromptTokens(
        ids=ids,
        source=source,
        kind="" if isinstance(ask, Given) else ask.kind,
        extras=Extras(salt=ask.salt or None, items=items),
        reason=None if refused is None else refused.reason,
        detail="" if refused is None else refused.detail,
    )


def _without(kind: str, error: NoTokensError) -> PromptTokens:
    return PromptTokens(ids=None, source=TokenSource.NONE, kind=kind, reason=error.reason, detail=error.detail)
