"""Token usage out of answers: whole JSON bodies, and SSE streams watched as they pass.

A stream passes byte-exact, except that a usage event which only we asked for is taken out again.
"""

import re

import msgspec
from msgspec import Raw, Struct

from beaconry.values.request import Usage

USAGE_TAIL_BYTES = 65_536
"""An event longer than this is not searched for usage: usage events are some hundred bytes."""


class Details(Struct, frozen=True, gc=False):
    """`prompt_tokens_details` or `input_tokens_details`."""

    cached_tokens: int | None = None


class UsageBody(Struct, frozen=True, gc=False):
    """Both spellings: chat and completions say prompt/completion, responses says input/output."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: Details | None = None

    def value(self) -> Usage:
        """As our own value. What cannot be (fewer than none, more cached than there is) is taken as the nearest that can."""
        details = self.prompt_tokens_details or self.input_tokens_details
        prompt = self.prompt_tokens or self.input_tokens or 0
        completion = self.completion_tokens or self.output_tokens or 0
        cached = None if details is None else details.cached_tokens
        if prompt < 0 or completion < 0 or (cached is not None and not 0 <= cached <= prompt):
            prompt, completion = max(prompt, 0), max(completion, 0)
            cached = None if cached is None else min(max(cached, 0), prompt)
        return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


class Nested(Struct, frozen=True, gc=False):
    """The `response` of a Responses API event."""

    usage: UsageBody | None = None


class Answer(Struct, frozen=True, gc=False):
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
_KEY = b'"usage"'
_USAGE = re.compile(rb'"usage"\s*:\s*\{')


def usage_of(body: bytes) -> Usage | None:
    """Usage of a whole JSON answer, None if it has none or is not such JSON."""
    at = body.rfind(_KEY)
    if at < 0:
        return None
    try:
        # engines name it among the last fields: if what follows ends the object in which it stands, that is the answer itself
        return _ANSWER.decode(b"{" + body[at:]).found()
    except msgspec.MsgspecError:
        pass
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
        if not self._tail and data.endswith(b"\n\n") and not _holds_usage(data):
            return data  # whole events without usage: nearly every call
        text = self._tail + data
        end = _last_boundary(text)
        if len(text) - end > USAGE_TAIL_BYTES:
            end = len(text)
        events, self._tail = text[:end], text[end:]
        if _holds_usage(events):
            events = self._search(events)
        return events if self._strip else data

    def finish(self) -> bytes:
        """What is still held back at the end of the stream."""
        tail, self._tail = self._tail, b""
        return tail if self._strip else b""

    def _search(self, events: bytes) -> bytes:
        """Look into the events that hold usage, and only there: a busy stream hands over hundreds of events at once."""
        kept = []
        done = seen = 0
        for match in _USAGE.finditer(events):
            if match.start() < seen:
                continue
            start = seen + _last_boundary(events[seen : match.start()])
            seen = _next_boundary(events, match.start())
            answer = _decode_event(events[start:seen])
            usage = None if answer is None else answer.found()
            if usage is not None:
                self.usage = usage
            if self._strip and usage is not None and answer is not None and answer.choices == []:
                kept.append(events[done:start])
                done = seen
        return b"".join([*kept, events[done:]])


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
    """Position after the event that holds `start`."""
    end = text.find(b"\n\n", start)
    limit = len(text) if end < 0 else end
    other = text.find(b"\r\n\r\n", start, limit)
    if other >= 0:
        return other + 4
    return len(text) if end < 0 else end + 2


def _holds_usage(data: bytes) -> bool:
    """Whether there is a usage object; some engines put a null into each event."""
    return _KEY in data and _USAGE.search(data) is not None
