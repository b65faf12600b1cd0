"""Chained block hashes: equal hash, equal prefix.

Two of vLLM's formulas, bit for bit (`v1/core/kv_cache_utils.py`), and a fast one for simulations nobody compares with vLLM:

    sha256        SHA-256 over the pickle (protocol 5) of (parent, tokens, extra); vLLM's default
    sha256_cbor   SHA-256 over the canonical CBOR of the same: reproducible in any language
    fast          XXH3-64 over the tokens' bytes, seeded by the parent; about 0.2 us a block

`parent` is the digest of the block before, or at the start of a prompt the hash of the seed (vLLM: `PYTHONHASHSEED`, else the
string "vllm-none-hash"). `extra` is None or a tuple of tagged tuples: ("lora", name, path) in every block, ("cache_salt", salt)
in the first. A hash is the digest as a number, big-endian; vLLM's KV events carry its low 64 bits.
"""

import hashlib
import pickle
import sys
from array import array
from collections.abc import Callable
from typing import Final

import xxhash

from beaconry.values.errors import OperatorError

DEFAULT_SEED: Final = "vllm-none-hash"

Extra = tuple[tuple[str, ...], ...] | None


class BlockHasher:
    """Hashes the blocks of one model's prompts. Immutable."""

    def __init__(self, block_tokens: int, algorithm: str = "fast", seed: str = DEFAULT_SEED) -> None:
        if algorithm not in ALGORITHMS:
            raise OperatorError(f"unknown block hash {algorithm!r}: use one of {', '.join(ALGORITHMS)}")
        self.block_tokens = block_tokens
        self._root, self._link = ALGORITHMS[algorithm](seed)

    def extend(
        self,
        hashes: list[int],
        tokens: "array[int]",
        *,
        lora: tuple[str, str] | None = None,
        salt: str | None = None,
    ) -> None:
        """Append to `hashes` those of the full blocks of `tokens` that it does not have yet.

        `tokens` (type code "I") begins at the start of the prompt; `lora` is a pair of name and path.
        """
        size = self.block_tokens
        for index in range(len(hashes), len(tokens) // size):
            tags: tuple[tuple[str, ...], ...] = () if lora is None else (("lora", *lora),)
            if salt and index == 0:
                tags += (("cache_salt", salt),)
            parent = hashes[index - 1] if index else self._root
            hashes.append(self._link(parent, tokens[index * size : (index + 1) * size], tags or None))

    def hashes(
        self, tokens: "array[int]", *, lora: tuple[str, str] | None = None, salt: str | None = None
    ) -> list[int]:
        """Return the hashes of the full blocks of `tokens`; see `extend`."""
        found: list[int] = []
        self.extend(found, tokens, lora=lora, salt=salt)
        return found


def canonical_cbor(value: object) -> bytes:
    """Encode None, integers, bytes, strings and tuples of them as canonical CBOR (RFC 8949, section 4.2.1)."""
    match value:
        case None:
            return b"\xf6"
        case int():
            return _cbor_head(0, value) if value >= 0 else _cbor_head(1, -1 - value)
        case bytes():
            return _cbor_head(2, len(value)) + value
        case str():
            text = value.encode()
            return _cbor_head(3, len(text)) + text
        case tuple():
            return _cbor_head(4, len(value)) + b"".join(map(canonical_cbor, value))
        case _:
            raise TypeError(f"no CBOR here for {type(value).__name__}")


def _cbor_head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes((major << 5 | number,))
    for code, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << (8 * width):
            return bytes((major << 5 | code,)) + number.to_bytes(width, "big")
    raise OverflowError(f"{number} does not fit into 64 bits")


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=5)


_Link = Callable[[int, "array[int]", Extra], int]


def _sha256_over(serialize: Callable[[object], bytes]) -> Callable[[str], tuple[int, _Link]]:
    def digest(value: object) -> int:
        return int.from_bytes(hashlib.sha256(serialize(value)).digest(), "big")

    def link(parent: int, tokens: "array[int]", extra: Extra) -> int:
        return digest((parent.to_bytes(32, "big"), tuple(tokens), extra))

    return lambda seed: (digest(seed), link)


def _fast(seed: str) -> tuple[int, _Link]:
    def link(parent: int, tokens: "array[int]", extra: Extra) -> int:
        if sys.byteorder == "big":
            tokens = tokens[:]
            tokens.byteswap()
        if extra is not None:
            parent = xxhash.xxh3_64_intdigest(repr(extra).encode(), parent)
        return xxhash.xxh3_64_intdigest(tokens, parent)

    return xxhash.xxh3_64_intdigest(seed.encode()), link


ALGORITHMS: Final = {"sha256": _sha256_over(_pickled), "sha256_cbor": _sha256_over(canonical_cbor), "fast": _fast}
