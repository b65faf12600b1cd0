"""A prefill leg on its way: its answer is read whole, and is nobody's but the router's and the decode leg's."""

from collections.abc import Callable

from msgspec import Raw

from beaconry.disagg.connectors import Connector
from beaconry.router.facts import Fault, LegFailed, LegFinished
from beaconry.wire.usage import usage_of

ANSWER_BYTES = 4_194_304
"""One token, and the ids of the prompt's blocks: a million tokens make half of it."""

Done = Callable[[LegFinished | LegFailed, Raw | None], None]
"""Takes the outcome, and what a decode leg is to be told of the KV. To be called once."""


class PrefillLeg:
    """The `Leg` of a prefill's call."""

    __slots__ = ("_answer", "_bytes", "_connector", "_done", "_leg", "_status")

    def __init__(self, leg: int, connector: Connector, done: Done) -> None:
        self._leg = leg
        self._connector = connector
        self._done = done
        self._status = 0
        self._answer: list[bytes] = []
        self._bytes = 0
        """Of `_answer`."""

    def on_answer(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:  # noqa: ARG002
        """The head is there: what it says beside the status is not passed on."""
        self._status = status

    def on_data(self, data: bytes, *, ended: bool) -> None:
        """Keep a piece; at the end, see what it says."""
        self._answer.append(data)
        self._bytes += len(data)
        if self._bytes > ANSWER_BYTES:
            self._done(LegFailed(self._leg, Fault.PROTOCOL, detail="the answer to a prefill does not end"), None)
        elif ended:
            self._end()

    def on_failure(self, fault: Fault, detail: str) -> None:
        """The endpoint did not complete its answer."""
        self._done(LegFailed(self._leg, fault, 0, detail), None)

    def _end(self) -> None:
        status, answer = self._status, b"".join(self._answer)
        if status >= 500 or status == 429:
            self._done(LegFailed(self._leg, Fault.STATUS, status), None)
            return
        handoff = self._connector.handoff(answer) if status == 200 else None
        usage = usage_of(answer) if status == 200 else None
        self._done(LegFinished(self._leg, status, usage, handoff is not None), handoff)
