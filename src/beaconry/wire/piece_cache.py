"""Tokens of texts, piece by piece, so that a conversation costs only what is new in it.

A tokenizer may merge characters across any place of a text except around a special token: those are split off first, and what lies
between two of them is tokenized for itself. So a text is cut in front of each occurrence of one special token, the `marker`, each piece
is tokenized once, and the pieces' tokens in a row are exactly the text's tokens. Which token is a sound marker, `vocabulary.py` knows.

Bounded by bytes, least recently used pieces go first. Pieces are known by 128 bits of XXH3, not kept as text.
"""

from array import array

import xxhash
from msgspec import Struct

from beaconry.values.errors import InternalError

ENTRY_BYTES = 240
"""A piece's key, array and table slot, without its tokens; measured with CPython 3.11."""


class PieceCacheStatistics(Struct, frozen=True, kw_only=True):
    """What the cache holds and has saved."""

    bytes: int
    pieces: int
    found: int
    """Look-ups that gave tokens."""
    missed: int


class PieceCache:
    """Token ids (type code "I") by piece of text."""

    def __init__(self, marker: str | None, limit_bytes: int) -> None:
        self.marker = marker
        """Texts are cut in front of it; None leaves them whole."""
        self._limit = limit_bytes
        self._tokens: dict[int, array[int]] = {}
        """By key, least recently used first."""
        self._bytes = 0
        """Of all entries, at most `_limit`."""
        self._found = 0
        self._missed = 0

    def cut(self, text: str) -> list[str]:
        """The pieces of a text, in order; joined they are the text."""
        marker = self.marker
        if marker is None:
            return [text]
        first, *others = text.split(marker)
        pieces = [marker + other for other in others]
        return [first, *pieces] if first else pieces or [""]

    def get(self, piece: str) -> "tuple[int, array[int] | None]":
        """The key of a piece, and its tokens if they are known."""
        key = xxhash.xxh3_128_intdigest(piece.encode("utf-8", "surrogatepass"))
        tokens = self._tokens.pop(key, None)
        if tokens is None:
            self._missed += 1
        else:
            self._found += 1
            self._tokens[key] = tokens
        return key, tokens

    def put(self, key: int, tokens: "array[int]") -> None:
        """Keep a piece's tokens. Pieces above a quarter of the room are not kept."""
        size = _size(tokens)
        if key in self._tokens or size > self._limit // 4:
            return
        self._tokens[key] = tokens
        self._bytes += size
        while self._bytes > self._limit:
            self._bytes -= _size(self._tokens.pop(next(iter(self._tokens))))

    def statistics(self) -> PieceCacheStatistics:
        """Sizes and counts."""
        return PieceCacheStatistics(bytes=self._bytes, pieces=len(self._tokens), found=self._found, missed=self._missed)

    def check(self) -> None:
        """Raise InternalError on a broken invariant."""
        if self._bytes != sum(map(_size, self._tokens.values())):
            raise InternalError("the piece cache has lost count of its bytes")
        if self._bytes > self._limit:
            raise InternalError(f"the piece cache holds {self._bytes} bytes of at most {self._limit}")


def _size(tokens: "array[int]") -> int:
    return ENTRY_BYTES + 4 * len(tokens)
