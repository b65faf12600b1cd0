"""Tokens from our own tokenizer and chat template, at the speed of what is new in a prompt.

A prompt's text is cut into pieces, those tokenized before are known. The rest, if short, is tokenized at once; if long, by a thread,
since tokenizers work without Python's lock. Whether the work can be done in time is foretold from the speed seen so far and the work that
others have handed in: a request never waits for what will be late. The work is done all the same, up to a bound, so that the next turn of
that conversation finds its pieces.
"""

import asyncio
import time
from array import array
from collections.abc import Callable
from concurrent.futures import Executor

from msgspec import Struct

from beaconry.io.token_source import Later, Told
from beaconry.wire.piece_cache import PieceCache, PieceCacheStatistics
from beaconry.wire.tokens import Chat, NoTokensError, Reason, Text, TokenSource

INLINE_CHARS = 2048
"""Tokenized on the event loop: 1 ms at the usual 2 characters a microsecond; a thread's hand-over costs a tenth of that."""
RENDER_INLINE_BYTES = 1_048_576
"""Bodies whose text is made on the event loop. Larger ones take some milliseconds of template and are refused."""
PENDING_CHARS = 4_000_000
"""Handed in and not done, per model: two seconds of work."""
FIRST_SPEED = 1e6
"""Characters a second, until some have been seen; vocabularies of 128k tokens reach 1 to 3 million on one core."""
Known = dict[int, "array[int]"]
"""Tokens of pieces by key."""
Keyed = list[tuple[int, str]]
"""A text's pieces with their keys, in order."""


class LocalTokensStatistics(Struct, frozen=True, kw_only=True):
    """What it costs."""

    cache: PieceCacheStatistics
    chars: int
    """Tokenized so far."""
    busy_s: float
    """Spent on them."""
    pending_chars: int


class LocalTokens:
    """One model's tokens, told here. Belongs to the event loop."""

    kind = TokenSource.LOCAL

    def __init__(
        self,
        prompt: Callable[[Text | Chat, bytes], str],
        encode: Callable[[str], "array[int]"],
        executor: Executor,
        cache: PieceCache,
        affixes: "tuple[array[int], array[int]]",
    ) -> None:
        """`prompt` renders a body's text (NoTokensError if it cannot), `encode` gives a text's ids; `affixes` go around a text that wants
        its special tokens. `executor` belongs to the caller."""
        self._prompt = prompt
        self._encode = encode
        self._executor = executor
        self._cache = cache
        self._before, self._after = affixes
        self._jobs: dict[int, asyncio.Future[Known]] = {}
        """By key of each piece that a thread has or will have."""
        self._pending_chars = 0
        """Of all jobs."""
        self._chars = 0
        self._busy_s = 0.0
        self._speed = FIRST_SPEED
        """Characters a second, smoothed."""

    def begin(self, ask: Text | Chat, body: bytes) -> Told | Later:
        """The tokens, if that takes no more than a millisecond, else how to get them. NoTokensError: there are none."""
        if isinstance(ask, Chat) and ask.media:
            raise NoTokensError(Reason.MEDIA, "content that is not text: its placeholders and hashes are the engine's")
        if len(body) > RENDER_INLINE_BYTES:
            raise NoTokensError(Reason.DEADLINE, f"a body of {len(body)} bytes takes too long to render")
        pieces = self._cache.cut(self._prompt(ask, body))
        keyed, known = self._look_up(pieces)
        missing = {key: piece for key, piece in keyed if key not in known}
        if sum(map(len, missing.values())) > INLINE_CHARS:
            return lambda within_s: self._later(ask, keyed, known, missing, within_s)
        for key, piece in missing.items():
            known[key] = self._encode(piece)
            self._cache.put(key, known[key])
        return self._joined(ask, keyed, known), ()

    async def _later(
        self, ask: Text | Chat, keyed: Keyed, known: Known, missing: dict[int, str], within_s: float
    ) -> Told:
        jobs = {self._jobs[key] for key in missing if key in self._jobs}
        fresh = {key: piece for key, piece in missing.items() if key not in self._jobs}
        chars = sum(map(len, fresh.values()))
        if self._pending_chars + chars > PENDING_CHARS:
            raise NoTokensError(Reason.BUSY, f"{self._pending_chars} characters wait to be tokenized")
        needed_s = (self._pending_chars + chars) / self._speed
        if fresh:
            jobs.add(self._hand_in(fresh, chars))
        if needed_s > within_s:
            raise NoTokensError(Reason.DEADLINE, f"{chars} new characters would take about {1e3 * needed_s:.0f} ms")
        done, late = await asyncio.wait(jobs, timeout=within_s)
        if late:
            raise NoTokensError(Reason.DEADLINE, f"{chars} new characters took longer than {1e3 * within_s:.0f} ms")
        for job in done:
            known.update(job.result())
        return self._joined(ask, keyed, known), ()

    def statistics(self) -> LocalTokensStatistics:
        """Sizes, counts, seconds."""
        return LocalTokensStatistics(
            cache=self._cache.statistics(), chars=self._chars, busy_s=self._busy_s, pending_chars=self._pending_chars
        )

    def _look_up(self, pieces: list[str]) -> tuple[Keyed, Known]:
        keyed, known = [], {}
        for piece in pieces:
            key, tokens = self._cache.get(piece)
            keyed.append((key, piece))
            if tokens is not None:
                known[key] = tokens
        return keyed, known

    def _joined(self, ask: Text | Chat, keyed: Keyed, known: Known) -> "array[int]":
        tokens = array("I")
        if ask.special_tokens:
            tokens.extend(self._before)
        for key, _ in keyed:
            tokens.extend(known[key])
        if ask.special_tokens:
            tokens.extend(self._after)
        return tokens

    def _hand_in(self, fresh: dict[int, str], chars: int) -> asyncio.Future[Known]:
        encode = self._encode

        def work() -> tuple[Known, float]:
            begun_s = time.perf_counter()
            ids = {key: encode(piece) for key, piece in fresh.items()}
            return ids, time.perf_counter() - begun_s

        loop = asyncio.get_running_loop()
        done: asyncio.Future[Known] = loop.create_future()
        running = loop.run_in_executor(self._executor, work)
        for key in fresh:
            self._jobs[key] = done
        self._pending_chars += chars

        def ended(job: asyncio.Future[tuple[Known, float]]) -> None:
            self._pending_chars -= chars
            for key in fresh:
                del self._jobs[key]
            if job.cancelled():
                done.cancel()
                return
            fault = job.exception()
            if fault is not None:
                done.set_exception(fault)
                done.exception()  # seen here, whether or not anybody still waits
                return
            ids, spent_s = job.result()
            for key, tokens in ids.items():
                self._cache.put(key, tokens)
            self._chars += chars
            self._busy_s += spent_s
            self._speed += 0.2 * (chars / max(spent_s, 1e-6) - self._speed)
            done.set_result(ids)

        running.add_done_callback(ended)
        return done
