"""What `Tokenizing` needs of a source of tokens."""

from array import array
from collections.abc import Awaitable, Callable
from typing import Protocol

from beaconry.values.block_hash import MediaItem
from beaconry.wire.tokens import Chat, Text, TokenSource

Told = tuple["array[int]", tuple[MediaItem, ...]]
"""A prompt's token ids (type code "I") and the media items among them."""
Later = Callable[[float], Awaitable[Told]]
"""Gets the tokens within so many seconds, or raises NoTokensError."""


class Source(Protocol):
    """Tells a prompt's tokens."""

    @property
    def kind(self) -> TokenSource:
        """What kind of source it is."""
        ...

    def begin(self, ask: Text | Chat, body: bytes) -> Told | Later:
        """The tokens, if that takes no more than a millisecond, else how to get them. NoTokensError if it has none."""
        ...
