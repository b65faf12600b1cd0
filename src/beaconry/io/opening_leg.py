"""A leg whose stream may open without saying anything: that is held until it says something, or turns out to be no answer.

A stream of the Responses API announces itself as soon as its engine has taken the request. Only what follows tells that a first token is
there; until then it can still be sent elsewhere.

A decode leg's prompt may be one whose KV cannot be fetched. vLLM says that with status 500, but not to a stream: by then it has answered
200, and sends an error event, to chats behind a first chunk that is empty; a response just breaks off. Holding the opening costs the first
token no time.

Source: vLLM 0.32, `entrypoints/openai/chat_completion/serving.py` and `entrypoints/openai/responses/serving.py`; how the Responses API
tells of errors: OpenAI's reference of its streaming events.
"""

import re
from collections.abc import Callable
from typing import Final

from beaconry.io.upstream import Leg
from beaconry.router.facts import Fault
from beaconry.wire.headers import is_stream

OPENING_BYTES: Final = 1_048_576
"""Held at most. A first chunk is a few hundred bytes, with the prompt's token ids more; a response's announcements repeat its tools."""
_ANNOUNCED: Final = (b"event: response.created\n", b"event: response.queued\n", b"event: response.in_progress\n")
_EMPTY: Final = b'"delta":{"role":"assistant","content":""}'
_FAILED: Final = re.compile(rb'data: ?\{ ?"error"|event: ?(?:error|response\.failed)\n')


class OpeningLeg:
    """The `Leg` of a call, before the one that it is for."""

    __slots__ = ("_failed", "_leg", "_opening")

    def __init__(self, leg: Leg, failed: Callable[[], None]) -> None:
        """`failed` is called instead of all data if the stream ends before it says anything but errors; it cancels the call."""
        self._leg = leg
        self._failed = failed
        self._opening: bytes | None = None
        """What has come of a stream that has said nothing yet; None if nothing is held."""

    def on_answer(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        """The head is there."""
        if status == 200 and is_stream(headers):
            self._opening = b""
        self._leg.on_answer(status, headers, length)

    def on_data(self, data: bytes, *, ended: bool) -> None:
        """Pass a piece on, once it is known to be an answer."""
        if self._opening is None:
            self._leg.on_data(data, ended=ended)
            return
        opening = self._opening + data
        event, complete = _telling(opening)
        if not (complete or ended) and len(opening) < OPENING_BYTES:
            self._opening = opening
            return
        self._opening = None
        if _FAILED.match(event):
            self._failed()
        else:
            self._leg.on_data(opening, ended=ended)

    def on_failure(self, fault: Fault, detail: str) -> None:
        """The endpoint did not complete its answer."""
        if self._opening is not None and self._opening.startswith(_ANNOUNCED):
            self._failed()
        else:
            self._leg.on_failure(fault, detail)


def _telling(opening: bytes) -> tuple[bytes, bool]:
    """The first event that says something, or what has come of it; and whether it is complete."""
    event, ended, rest = opening.partition(b"\n\n")
    while ended and (event.startswith(_ANNOUNCED) or _EMPTY in event):
        event, ended, rest = rest.partition(b"\n\n")
    return event, bool(ended)
