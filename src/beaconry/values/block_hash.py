"""Chained block hashes: equal hash, equal prefix.

The engines' own formulas, bit for bit, and a fast one for simulations nobody compares with an engine:

    sha256        SHA-256 over the pickle (protocol 5) of (parent, tokens, extra); vLLM's default
    sha256_cbor   SHA-256 over the canonical CBOR of the same: reproducible in any language
    xxhash        XXH3-128 over the pickle; xxhash_cbor over the CBOR; vLLM has them where the package xxhash is installed
    sglang        SHA-256 over (parent, tokens as 32-bit little-endian); knows no adapter, salt or image
    fast          XXH3-64 over the tokens' bytes, seeded by the parent; about 0.2 us a block

`parent` is the digest of the block before, or at the start of a prompt the hash of the seed (see `engine_seed`). `extra` is None or a
tuple of tagged tuples, in this order: ("lora", name, path) in every block, ("mm", identifier, offset from the block's start) in each block
that an image or another item reaches into, ("cache_salt", salt) in the first block. Sources: vLLM's `v1/core/kv_cache_utils.py` and
`utils/hashing.py`, SGLang's `mem_cache/hicache_storage.py`; all checked against recorded messages of both engines.

A hash is the digest as a number whose low 64 bits are what KV events carry: vLLM's digest read big-endian; SGLang's, which announces its
first eight bytes, with those turned to the low end.
"""

import hashlib
import pickle
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Final

import xxhash
from msgspec import Struct

from beaconry.values.errors import OperatorError

DEFAULT_SEED: Final = "vllm-none-hash"
"""vLLM's, where PYTHONHASHSEED is not set."""
MASK64: Final = (1 << 64) - 1
"""What KV events carry of a hash; signed and byte hashes come to the same under it."""

KEPT_TOKENS: Final = 1 << 18
"""Token ids whose CBOR is kept: the largest vocabularies have 262,144."""

Extra = tuple[tuple[str | int | bytes, ...], ...] | None
Adapter = tuple[str, str]
"""A LoRA adapter's name and path, as its engine was told them."""


class MediaItem(Struct, frozen=True, kw_only=True):
    """An image, video or audio clip within a prompt: its placeholder tokens and what identifies its content."""

    identifier: str
    """The engine's hash of the content."""
    offset: int
    """Of its first placeholder token in the prompt."""
    length: int
    """Placeholder tokens, at least 1."""


class Extras(Struct, frozen=True, kw_only=True):
    """What sets a prompt apart from others of the same tokens."""

    lora: Adapter | None = None
    salt: str | None = None
    """`cache_salt`."""
    items: tuple[MediaItem, ...] = ()
    """In the order of their offsets."""


PLAIN: Final = Extras()


class BlockHasher:
    """Hashes the blocks of one model's prompts. Immutable."""

    def __init__(self, block_tokens: int, algorithm: str = "fast", seed: str = DEFAULT_SEED) -> None:
        if algorithm not in ALGORITHMS:
            raise OperatorError(f"unknown block hash {algorithm!r}: use one of {', '.join(ALGORITHMS)}")
        if block_tokens < 1:
            raise OperatorError(f"a block of {block_tokens} tokens: at least one is needed")
        self.block_tokens = block_tokens
        self.algorithm = algorithm
        self._root, self._link = ALGORITHMS[algorithm](seed)

    def extend(
        self,
        hashes: list[int],
        tokens: "array[int]",
        *,
        lora: Adapter | None = None,
        salt: str | None = None,
        items: Sequence[MediaItem] = (),
    ) -> None:
        """Append to `hashes` those of the full blocks of `tokens` that it does not have yet.

        `tokens` (type code "I") begins at the start of the prompt; `items` are in the order of their offsets.
        """
        blocks = range(len(hashes), len(tokens) // self.block_tokens)
        parent = hashes[-1] if hashes else None
        hashes += self.run(parent, tokens, blocks, Extras(lora=lora, salt=salt, items=tuple(items)))

    def hashes(
        self,
        tokens: "array[int]",
        *,
        lora: Adapter | None = None,
        salt: str | None = None,
        items: Sequence[MediaItem] = (),
    ) -> list[int]:
        """Return the hashes of the full blocks of `tokens`; see `extend`."""
        found: list[int] = []
        self.extend(found, tokens, lora=lora, salt=salt, items=items)
        return found

    def run(self, parent: int | None, tokens: "array[int]", blocks: range, extras: "Extras") -> list[int]:
        """Return the hashes of these blocks of `tokens`; `parent` is the one before them, None at the start of the prompt."""
        size = self.block_tokens
        last = self._root if parent is None else parent
        adapter: tuple[tuple[str | int | bytes, ...], ...] = () if extras.lora is None else (("lora", *extras.lora),)
        found = []
        for index in blocks:
            tags = adapter
            if extras.items:
                tags += media_tags(extras.items, index * size, size)
            if index == 0 and extras.salt:
                tags += (("cache_salt", extras.salt),)
            last = self._link(last, tokens[index * size : (index + 1) * size], tags or None)
            found.append(last)
        return found

    def link(self, parent: int | None, tokens: "array[int]", extra: Extra = None) -> int:
        """Hash one block after `parent`, a whole hash; None is the start of a prompt."""
        return self._link(self._root if parent is None else parent, tokens, extra)

    def doubt(self, extras: "Extras") -> str | None:
        """Why the engine's hashes for such a prompt may differ from ours; None if they cannot."""
        if self.algorithm == "sglang" and extras != PLAIN:
            return "SGLang's events do not show how it tells adapters, salts and images apart"
        if self.algorithm in _PICKLED:
            told = [*(extras.lora or ()), *(item.identifier for item in extras.items)]
            if extras.salt:
                told.append(extras.salt)
            if len(set(told)) < len(told):
                return "a string occurs twice, and its pickle depends on whether the engine holds it once or twice"
        return None


def engine_seed(algorithm: str, python_hash_seed: str | None) -> str:
    """What vLLM seeds its hashes with: PYTHONHASHSEED as text if it is set, else a constant.

    Raises OperatorError for xxhash* without it: such engines seed themselves at random, each differently.
    """
    if python_hash_seed is not None:
        return python_hash_seed
    if algorithm.startswith("xxhash"):
        raise OperatorError(
            f"block hash {algorithm} without PYTHONHASHSEED: each engine process seeds itself at random; set the same "
            "PYTHONHASHSEED for all engines, or run them with --prefix-caching-hash-algo sha256_cbor"
        )
    return DEFAULT_SEED


def media_tags(items: Sequence[MediaItem], start: int, size: int) -> tuple[tuple[str | int | bytes, ...], ...]:
    """The tags of the items that reach into the `size` tokens from `start`, in order."""
    end = start + size
    return tuple(
        ("mm", item.identifier, item.offset - start)
        for item in items
        if item.offset < end and item.offset + item.length > start
    )


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


_Link = Callable[[int, "array[int]", Extra], int]


def _pickled(parent: bytes, tokens: "array[int]", extra: Extra) -> bytes:
    return pickle.dumps((parent, tuple(tokens.tolist()), extra), protocol=5)


def _pickled_seed(seed: str) -> bytes:
    return pickle.dumps(seed, protocol=5)


class _EncodedTokens(dict[int, bytes]):
    """CBOR of token ids as they are met. Ids beyond any vocabulary, which clients may send, are not kept."""

    def __missing__(self, token: int) -> bytes:
        encoded = _cbor_head(0, token)
        if token < KEPT_TOKENS:
            self[token] = encoded
        return encoded


def _cbor_blocks() -> Callable[[bytes, "array[int]", Extra], bytes]:
    """What `canonical_cbor` makes of (parent, tokens, extra), eight times as fast."""
    encoded = _EncodedTokens().__getitem__

    def serialize(parent: bytes, tokens: "array[int]", extra: Extra) -> bytes:
        head = b"\x83" + _cbor_head(2, len(parent)) + parent + _cbor_head(4, len(tokens))
        return head + b"".join(map(encoded, tokens)) + (b"\xf6" if extra is None else canonical_cbor(extra))

    return serialize


def _vllm(
    digest: Callable[[bytes], bytes],
    width: int,
    serialize_seed: Callable[[str], bytes],
    serializer: Callable[[], Callable[[bytes, "array[int]", Extra], bytes]],
) -> Callable[[str], tuple[int, _Link]]:
    def start(seed: str) -> tuple[int, _Link]:
        serialize = serializer()

        def link(parent: int, tokens: "array[int]", extra: Extra) -> int:
            return int.from_bytes(digest(serialize(parent.to_bytes(width, "big"), tokens, extra)), "big")

        return int.from_bytes(digest(serialize_seed(seed)), "big"), link

    return start


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _sglang(seed: str) -> tuple[int, _Link]:  # noqa: ARG001 (it has no seed)
    def link(parent: int, tokens: "array[int]", extra: Extra) -> int:  # noqa: ARG001 (nor extra keys)
        turned = parent.to_bytes(32, "big")
        before = turned[24:] + turned[:24] if parent != _SGLANG_ROOT else b""
        found = _sha256(before + _little_endian(tokens).tobytes())
        return int.from_bytes(found[8:] + found[:8], "big")

    return _SGLANG_ROOT, link


_SGLANG_ROOT: Final = 0
"""Stands for no bytes at all; no digest is zero."""


def _fast(seed: str) -> tuple[int, _Link]:
    def link(parent: int, tokens: "array[int]", extra: Extra) -> int:
        if extra is not None:
            parent = xxhash.xxh3_64_intdigest(repr(extra).encode(), parent)
        return xxhash.xxh3_64_intdigest(_little_endian(tokens), parent)

    return xxhash.xxh3_64_intdigest(seed.encode()), link


def _little_endian(tokens: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        tokens = tokens[:]
        tokens.byteswap()
    return tokens


_PICKLED: Final = frozenset({"sha256", "xxhash"})
ALGORITHMS: Final = {
    "sha256": _vllm(_sha256, 32, _pickled_seed, lambda: _pickled),
    "sha256_cbor": _vllm(_sha256, 32, canonical_cbor, _cbor_blocks),
    "xxhash": _vllm(xxhash.xxh3_128_digest, 16, _pickled_seed, lambda: _pickled),
    "xxhash_cbor": _vllm(xxhash.xxh3_128_digest, 16, canonical_cbor, _cbor_blocks),
    "sglang": _sglang,
    "fast": _fast,
}
