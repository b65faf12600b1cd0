"""Token usage out of answers: whole JSON bodies, and SSE streams watched as they pass.

A stream passes byte-exact, except that a usage event which only we asked for is taken out again.
"""

import msgspec
from msgspec import Raw, Struct

from beaconry.values.request import Usage

USAGE_TAIL_BYTES = 65_536
"""An event longer than this is not searched for usage: usage events are some hundred bytes."""


class Details(Struct, frozen=True):
    """`prompt_tokens_details` or `input_tokens_details`."""

    cached_tokens: int | None = None


class UsageBody(Struct, frozen=True):
    """Both spellings: chat and completions say prompt/completion, responses says input/output."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: Details | None = None

    def value(self) -> Usage:
        """As our own value."""
        details = self.prompt_tokens_details or self.input_tokens_details
        return Usage(
            prompt_tokens=self.prompt_tokens or self.input_tokens or 0,
            completion_tokens=self.completion_tokens or self.output_tokens or 0,
            cached_tokens=None if details is None else details.cached_tokens,
        )


class Nested(Struct, frozen=True):
    """The `response` of a Responses API event."""

    usage: UsageBody | None = None


class Answer(Struct, frozen=True):
    """The parts of an answer, or of one stream event, that usage can stand in."""

    choices: list[Raw] | None = None
    usage: UsageBody | None = None
    response: Nested | None = None

    def found(self) -> Usage | None:
        """The usage, wherever it stands."""
        if self.usage is not None:
            return self.usage.value()
        if self.response is not None and self.response.usage is not None:
            return self.response.usage.value()
        return None


_ANSWER = msgspec.json.Decoder(Answer)


def usage_of(body: bytes) -> Usage | None:
    """Usage of a whole JSON answer, None if it has none or is not such JSON."""
    if b'"usage"' not in body:
        return None
    try:
        return _ANSWER.decode(body).found()
    except msgspec.MsgspecError:
        return None


class StreamWatch:
    """Follows one SSE stream: finds its usage, and removes the usage event if told to."""

    __slots__ = ("_strip", "_tail", "usage")

    def __init__(self, *, strip: bool) -> None:
        self._strip = strip
        self._tail = b""
        """Bytes after the last event's end; held back from the client only while stripping."""
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """Take what the engine sent, return what the client gets now."""
        if not self._tail and data.endswith(b"\n\n") and b'"usage"' not in data:
            return data  # whole events without usage: nearly every call
        text = self._tail + data
        end = _last_boundary(text)
        if len(text) - end > USAGE_TAIL_BYTES:
            end = len(text)
        events, self._tail = text[:end], text[end:]
        if b'"usage"' in events:
            events = self._search(events)
        return events if self._strip else data

    def finish(self) -> bytes:
        """What is still held back at the end of the stream."""
        tail, self._tail = self._tail, b""
        return tail if self._strip else b""

    def _search(self, events: bytes) -> bytes:
        kept = []
        start = 0
        while start < len(events):
            end = _next_boundary(events, start)
            event = events[start:end]
            start = end
            answer = _decode_event(event) if b'"usage"' in event else None
            usage = None if answer is None else answer.found()
            if usage is not None:
                self.usage = usage
            if not (self._strip and usage is not None and answer is not None and answer.choices == []):
                kept.append(event)
        return b"".join(kept)


def _decode_event(event: bytes) -> Answer | None:
    payload = b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
    try:
        return _ANSWER.decode(payload)
    except msgspec.MsgspecError:
        return None


def _last_boundary(text: bytes) -> int:
    """Position after the last complete event (blank line), 0 if there is none."""
    return max(
        text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0, text.rfind(b"\r\n\r\n") + 4 if b"\r\n\r\n" in text else 0
    )


def _next_boundary(text: bytes, start: int) -> int:
    ends = [at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := text.find(mark, start)) >= 0]
    return min(ends, default=len(text))
