"""The prefill engine's side of a handover: whose KV is kept, until when, and what those who fetch it are told.

The side channel is the engine's own HTTP server: three questions, with one kind of body.

    POST /kv/keep     {"engine_id": ..., "request_id": ...}                  the reader lives: two thirds of a lease are left from here on
    POST /kv/read     {"engine_id": ..., "request_id": ..., "tokens": 4800}  send so many: {"seconds": 0.02} until the last has left
    POST /kv/release  {"engine_id": ..., "request_id": ...}                  they are read, or not wanted

404 where nothing is kept, or another engine is asked than meant. In vLLM the first and the last are NIXL notices, and there is no
question before the bytes are read but one handshake per pair of engines.
"""

import asyncio
import logging
import uuid
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from beaconry.engine_model.handover import NEVER
from beaconry.engine_model.kv_link import KvLink
from beaconry.engine_model.sequence import Sequence
from beaconry.io.engine.kv_params import KvTransferOptions, render_kept
from beaconry.io.engine.loop import EngineLoop
from beaconry.io.engine.observations import Handovers
from beaconry.io.http_exchange import Exchange
from beaconry.values.errors import CallerError

KEEP: Final = "/kv/keep"
READ: Final = "/kv/read"
RELEASE: Final = "/kv/release"
RENEWED_SHARE: Final = 2 / 3
"""Of a lease, is left when the reader has just been heard."""

_LOG = logging.getLogger(__name__)


class Question(Struct, frozen=True, kw_only=True):
    """What a reader sends."""

    engine_id: str
    request_id: str
    tokens: Annotated[int, Meta(ge=0)] = 0


class Sending(Struct, frozen=True, kw_only=True):
    """The answer to a read."""

    seconds: Annotated[float, Meta(ge=0)]
    """Real ones, until the last byte has left."""


_QUESTION: Final = msgspec.json.Decoder(Question)


class KvHolder:
    """Keeps KV for others, under leases.

    Attributes:
        engine_id: another one at each start, so that nobody takes this engine for the one before.
        port: where the server listens; set once it does.

    `_outwards` is the link that its readers share, in model time; `_timer` rings at `_watched_s` (model), when a lease may end.

    """

    def __init__(
        self,
        options: KvTransferOptions,
        steps: EngineLoop,
        counts: Handovers,
        loop: asyncio.AbstractEventLoop,
        speed: float,
    ) -> None:
        self.engine_id = str(uuid.uuid4())
        self.port = 0
        self._options = options
        self._steps = steps
        self._counts = counts
        self._loop = loop
        self._speed = speed
        self._outwards = KvLink()
        self._timer: asyncio.TimerHandle | None = None
        self._watched_s = NEVER

    def kept(self, sequence: Sequence) -> bytes:
        """Watch over the lease of a sequence that has ended here; return what its reader is to be given."""
        self._watch()
        options = self._options
        return render_kept(sequence, engine_id=self.engine_id, host=options.host, port=self.port, tensor=options.tensor)

    def close(self) -> None:
        """Watch over nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    # -- questions

    def keep(self, exchange: Exchange) -> None:
        """Answer `/kv/keep`."""
        question = self._question(exchange)
        lease_s = self._options.lease_s * self._speed
        if not self._steps.engine.holdings.extend(question.request_id, self._steps.now_s() + RENEWED_SHARE * lease_s):
            raise _gone(question)
        exchange.respond(200, b"{}")

    def read(self, exchange: Exchange) -> None:
        """Answer `/kv/read`."""
        question = self._question(exchange)
        if question.request_id not in self._steps.engine.holdings:
            raise _gone(question)
        now_s = self._steps.now_s()
        through_s = self._outwards.send(now_s, self._options.way.seconds(question.tokens))
        exchange.respond(200, msgspec.json.encode(Sending(seconds=(through_s - now_s) / self._speed)))

    def release(self, exchange: Exchange) -> None:
        """Answer `/kv/release`."""
        question = self._question(exchange)
        if not self._steps.engine.holdings.release(question.request_id):
            self._counts.late_releases += 1
            raise _gone(question)
        self._steps.wake()
        exchange.respond(200, b"{}")

    def _question(self, exchange: Exchange) -> Question:
        try:
            question = _QUESTION.decode(exchange.body)
        except msgspec.MsgspecError as error:
            raise CallerError(f"not a question for KV: {error}") from None
        if question.engine_id != self.engine_id:
            raise CallerError(f"this is engine {self.engine_id}, not {question.engine_id}", status=404)
        return question

    # -- leases

    def _watch(self) -> None:
        end_s = self._steps.engine.holdings.first_end_s
        if end_s < self._watched_s:
            self.close()
            self._watched_s = end_s
            self._timer = self._loop.call_at(self._steps.loop_s(end_s), self._expire)

    def _expire(self) -> None:
        self._watched_s, self._timer = NEVER, None
        ended = self._steps.engine.holdings.expire(self._steps.now_s())
        if ended:
            self._counts.expired += ended
            _LOG.warning("released KV of %d requests that nobody fetched within their lease", ended)
            self._steps.wake()
        self._watch()


def _gone(question: Question) -> CallerError:
    return CallerError(f"no KV of {question.request_id} is kept here (any more)", status=404)
