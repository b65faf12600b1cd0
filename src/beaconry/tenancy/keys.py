"""API keys: made from 256 bits of chance, kept as SHA-256 hashes, compared in constant time.

A key that is guessed at is hashed first, so how long the search takes tells of its hash only, which the guesser cannot steer; the hash
found by its first half is then compared whole in constant time. A fast hash is right here: it protects what cannot be guessed.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from beaconry.values.errors import OperatorError

T = TypeVar("T")

PREFIX = "bk-"
"""Of keys made here, so that scanners for leaked secrets can be taught it."""
_SCHEME = "sha256:"
_HALF = 16


def key_of(chance: bytes) -> str:
    """A new key of at least 32 bytes of chance."""
    if len(chance) < 32:
        raise ValueError("a key takes 32 bytes of chance")
    return PREFIX + chance.hex()


def hash_of(key: str) -> str:
    """The form in which a tenants file holds a key."""
    return _SCHEME + hashlib.sha256(key.encode()).hexdigest()


class KeyRing(Generic[T]):
    """Owners by their keys. Immutable."""

    def __init__(self, keys: Mapping[str, Iterable[str]], owners: Mapping[str, T], source: str) -> None:
        """`keys`: hashes by owner's name. OperatorError if two owners, or one twice, have the same key."""
        self._owners: dict[bytes, tuple[bytes, T]] = {}
        """By the first half of the hash: the whole hash, and whose key it is."""
        holders: dict[bytes, str] = {}
        for name, hashes in keys.items():
            for text in hashes:
                digest = bytes.fromhex(text.removeprefix(_SCHEME))
                half = digest[:_HALF]
                if half in holders:
                    raise OperatorError(
                        f"{source}: tenants.{name}.keys: {text[:14]}... stands under {holders[half]} already; remove one"
                    )
                holders[half] = name
                self._owners[half] = (digest, owners[name])

    def owner(self, key: bytes) -> T | None:
        """Whose key it is; None for nobody's."""
        digest = hashlib.sha256(key).digest()
        found = self._owners.get(digest[:_HALF])
        return found[1] if found is not None and hmac.compare_digest(found[0], digest) else None
