"""Reads one streamed OpenAI answer as it comes: when each piece of content arrived, what it said, and the usage at its end.

All events of one read share its time: a client cannot know more. Events without content (role, finish reason, usage) are no chunks.
"""

from array import array

import msgspec
from msgspec import Struct

from beaconry.values.request import Usage
from beaconry.wire.usage import UsageBody

EVENT_LIMIT_BYTES = 4 * 1024 * 1024
ERROR_BODY_BYTES = 4096
DETAIL_CHARS = 200


class _Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(Struct, frozen=True):
    delta: _Delta | None = None
    text: str | None = None

    def content(self) -> str:
        """What this choice adds, thoughts included, of a chat (`delta`) or a completion (`text`)."""
        if self.delta is None:
            return self.text or ""
        return self.delta.content or self.delta.reasoning_content or self.delta.reasoning or ""


class _Chunk(Struct, frozen=True):
    choices: list[_Choice] = []
    usage: UsageBody | None = None
    error: object = None


_CHUNK = msgspec.json.Decoder(_Chunk)


class ReplyReader:
    """One answer in the making. Feed the body piece by piece, then ask `fault`."""

    __slots__ = ("_broken", "_done", "_last_s", "_tail", "_text", "first_s", "gaps_s", "status", "usage")

    def __init__(self) -> None:
        self.status = 0
        self.first_s: float | None = None
        """When the first content came; None until then."""
        self.gaps_s = array("d")
        """Times between content chunks: one less than there are chunks."""
        self.usage: Usage | None = None
        self._last_s = 0.0
        self._text: list[str] = []
        self._tail = b""
        """An unfinished line; of an answer that is not 200, the whole body up to a limit."""
        self._done = False
        self._broken: tuple[str, str] | None = None
        """Kind and detail of the first fault seen inside the stream."""

    @property
    def text(self) -> str:
        """All content so far."""
        return "".join(self._text)

    @property
    def chunks(self) -> int:
        """Content chunks so far."""
        return len(self._text)

    def feed(self, data: bytes, now_s: float) -> None:
        """Take a piece of the body that came at `now_s`."""
        if self.status != 200:
            self._tail = (self._tail + data)[:ERROR_BODY_BYTES]
            return
        lines = (self._tail + data if self._tail else data).split(b"\n")
        self._tail = lines.pop()
        if len(self._tail) > EVENT_LIMIT_BYTES:
            self._break("bad answer", f"an event of more than {EVENT_LIMIT_BYTES} bytes")
            self._tail = b""
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_s)

    def fault(self) -> tuple[str, str] | None:
        """Kind and detail of what is wrong with the complete answer; None if it is a success."""
        if self.status != 200:
            return f"status {self.status}", _one_line(self._tail)
        if self._broken is not None:
            return self._broken
        if not self._done:
            return "truncated", "the stream ended without [DONE]"
        if self.first_s is None:
            return "no content", "the stream held no content"
        return None

    def _event(self, payload: bytes, now_s: float) -> None:
        if payload == b"[DONE]":
            self._done = True
            return
        try:
            chunk = _CHUNK.decode(payload)
        except msgspec.MsgspecError as error:
            self._break("bad answer", f"{error}: {_one_line(payload)}")
            return
        if chunk.error is not None:
            self._break("error in stream", _one_line(payload))
        if chunk.usage is not None:
            self.usage = chunk.usage.value()
        for choice in chunk.choices:
            content = choice.content()
            if content:
                self._content(content, now_s)

    def _content(self, content: str, now_s: float) -> None:
        if self.first_s is None:
            self.first_s = now_s
        else:
            self.gaps_s.append(now_s - self._last_s)
        self._last_s = now_s
        self._text.append(content)

    def _break(self, kind: str, detail: str) -> None:
        if self._broken is None:
            self._broken = (kind, detail)


def _one_line(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:DETAIL_CHARS]
