"""The keys under which the engines' events announce a prompt's blocks, computed once per prefix.

A conversation comes back with every turn, a little longer. Hashing as the engine does costs 1 to 3 us a block; recognising a prefix
that was hashed before costs 1 us per `STRIDE` blocks: the tokens of each stride are digested with XXH3-64, seeded by the digest of the
stride before, and a table leads from that digest to the stride's keys and its last whole hash, from which hashing goes on. Two prefixes
that collide in 64 bits get each other's keys: a request is then routed by a wrong belief, and nothing else happens.

The table is bounded by bytes; the strides used longest ago go first, and of one prompt the last ones before the first ones.
"""

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Final

import xxhash
from msgspec import Struct

from beaconry.values.block_hash import MASK64, PLAIN, BlockHasher, Extras, media_tags
from beaconry.values.errors import InternalError

STRIDE: Final = 32
"""Blocks per entry. Fewer: more entries to look up; more: a longer rest to hash anew with every turn."""
ENTRY_BYTES: Final = 8 * STRIDE + 290
"""Keys, whole hash, objects and table slot, as measured with CPython 3.11."""


class BlockKeysStatistics(Struct, frozen=True, kw_only=True):
    """What the memo holds and has saved."""

    bytes: int
    blocks_hashed: int
    blocks_known: int
    """Taken from the memo instead of hashed."""


class _Stride(Struct, frozen=True):
    keys: "array[int]"
    """Type code "Q", STRIDE of them."""
    last: int
    """The whole hash of the last block."""


class BlockKeys:
    """Block keys of one model's prompts, for one way of hashing."""

    def __init__(self, hasher: BlockHasher, limit_bytes: int = 67_108_864) -> None:
        self.hasher = hasher
        self._limit = max(1, limit_bytes // ENTRY_BYTES)
        self._strides: dict[int, _Stride] = {}
        """By chained digest, least recently used first; at most `_limit`."""
        self._hashed = 0
        self._known = 0

    def keys(self, tokens: "array[int]", extras: Extras = PLAIN) -> "array[int]":
        """Return the keys of the full blocks of `tokens` (type code "I"): 64-bit, unsigned, type code "Q"."""
        found = array("Q")
        for _ in self.walk(found, tokens, extras):
            pass
        return found

    def walk(self, found: "array[int]", tokens: "array[int]", extras: Extras = PLAIN) -> Iterator[None]:
        """Append the keys to `found`, pausing after each stride that had to be hashed (about 0.1 ms)."""
        size = self.hasher.block_tokens
        full = len(tokens) // size
        view = memoryview(tokens)
        digest = xxhash.xxh3_64_intdigest
        link = digest(repr((extras.lora, extras.salt)).encode())
        parent: int | None = None
        used = []
        for start in range(0, full - STRIDE + 1, STRIDE):
            link = digest(view[start * size : (start + STRIDE) * size], link)
            if extras.items:
                link = digest(repr(media_tags(extras.items, start * size, STRIDE * size)).encode(), link)
            stride = self._strides.get(link)
            if stride is None:
                stride = self._hashed_stride(parent, tokens, start, extras)
                self._strides[link] = stride
                found.extend(stride.keys)
                yield
            else:
                self._known += STRIDE
                found.extend(stride.keys)
            parent = stride.last
            used.append((link, stride))
        rest = self.hasher.run(parent, tokens, range(full - full % STRIDE, full), extras)
        self._hashed += len(rest)
        found.extend(hash_ & MASK64 for hash_ in rest)
        self._use(used)

    def statistics(self) -> BlockKeysStatistics:
        """Sizes and counts."""
        return BlockKeysStatistics(
            bytes=len(self._strides) * ENTRY_BYTES, blocks_hashed=self._hashed, blocks_known=self._known
        )

    def check(self) -> None:
        """Raise InternalError on a broken invariant."""
        if len(self._strides) > self._limit:
            raise InternalError(f"{len(self._strides)} strides of at most {self._limit}")
        if any(len(stride.keys) != STRIDE for stride in self._strides.values()):
            raise InternalError("a stride without its full number of keys")

    def _hashed_stride(self, parent: int | None, tokens: "array[int]", start: int, extras: Extras) -> _Stride:
        hashes = self.hasher.run(parent, tokens, range(start, start + STRIDE), extras)
        self._hashed += STRIDE
        return _Stride(array("Q", [hash_ & MASK64 for hash_ in hashes]), hashes[-1])

    def _use(self, used: list[tuple[int, _Stride]]) -> None:
        """Note the use of a prompt's strides, the first ones as the latest, and make room."""
        for link, stride in reversed(used):
            self._strides.pop(link, None)
            self._strides[link] = stride
        excess = len(self._strides) - self._limit
        if excess > 0:
            for link in list(islice(self._strides, excess)):
                del self._strides[link]
