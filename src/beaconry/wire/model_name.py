"""Gives an answer's model back the name that the client asked for, in whole JSON answers and in streams, however they are cut.

Every pair `"model": "<target>"` is one; nothing else is touched. Such a pair cannot stand inside a JSON string, where quotes are
escaped, so the bytes need not be parsed. Of a piece that ends within what may become a pair, that end is kept until the rest has come.
"""

import re

import msgspec

_KEY = b'"model"'
_TEXT = rb'"[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+'
"""A JSON string up to its closing quote."""
_PAIR = re.compile(rb'("model"\s*+:\s*+)(' + _TEXT + rb'")')
_OPEN_PAIR = re.compile(rb'"model"\s*+(?::\s*+(?:' + _TEXT + rb"\\?)?)?")
_OPEN_KEYS = tuple(_KEY[:length] for length in range(1, len(_KEY)))
_CLOSED = b"}\n\n"
"""The end of an event, where no pair can be open: nearly every piece of a stream."""
LIMIT_BYTES = 1024
"""A pair longer than this is none of ours; model names are short."""


class NameRestorer:
    """One answer. Feed it all of its bytes in order, then `finish`."""

    __slots__ = ("_asked", "_given", "_kept", "_seen", "_target", "_target_bytes")

    def __init__(self, target: str, asked: str) -> None:
        self._target = target
        self._target_bytes = msgspec.json.encode(target)
        self._asked = msgspec.json.encode(asked)
        self._seen = _KEY + b":" + self._target_bytes
        """The pair as the engine spelled it last."""
        self._given = _KEY + b":" + self._asked
        """What the client got for it."""
        self._kept = b""
        """The end of what has come, if it may be the beginning of a pair."""

    def feed(self, data: bytes) -> bytes:
        """Take what the engine sent, return what the client gets now."""
        if self._kept:
            data, self._kept = self._kept + data, b""
        if not data.endswith(_CLOSED):
            start = _open_at(data)
            data, self._kept = data[:start], data[start:]
        pairs = data.count(_KEY)
        if pairs and pairs == data.count(self._seen):
            return data.replace(self._seen, self._given)
        return _PAIR.sub(self._restored, data) if pairs else data

    def finish(self) -> bytes:
        """What is still kept at the end of the answer."""
        kept, self._kept = self._kept, b""
        return kept

    def _restored(self, pair: re.Match[bytes]) -> bytes:
        name = pair[2]
        if name == self._target_bytes or (b"\\" in name and _text(name) == self._target):
            self._seen, self._given = pair[0], pair[1] + self._asked
            return self._given
        return pair[0]


def _open_at(data: bytes) -> int:
    """Where what may become a pair begins; the length if there is none."""
    key = data.rfind(_KEY, max(0, len(data) - LIMIT_BYTES))
    if key >= 0:
        if _OPEN_PAIR.fullmatch(data, key):
            return key
        pair = _PAIR.match(data, key)
        if pair is not None and pair.end() == len(data):
            return len(data)
    return data.rfind(b'"') if data.endswith(_OPEN_KEYS) else len(data)


def _text(name: bytes) -> str | None:
    try:
        return msgspec.json.decode(name, type=str)
    except msgspec.DecodeError:
        return None
