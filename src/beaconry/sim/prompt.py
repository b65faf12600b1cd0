"""Planned prompts as block hashes, without building any text: equal spans give equal hashes, as equal text would."""

from collections.abc import Iterable

from beaconry.workload.request import Span

_MASK = (1 << 60) - 1
"""Two digits of a Python integer: caches are made of hashes, and a third digit would make each half as large again."""


def block_hashes(spans: Iterable[Span], block_tokens: int) -> list[int]:
    """Chained 60-bit hashes of the full blocks of `block_tokens` tokens. The same in every process."""
    hashes: list[int] = []
    parent, room = 0, block_tokens
    begun: tuple[int, ...] = ()
    for span in spans:
        number, tokens, at = span.id, span.tokens, 0
        if begun:
            if tokens < room:
                begun += (number, 0, tokens)
                room -= tokens
                continue
            parent = hash((parent, *begun, number, 0, room)) & _MASK
            hashes.append(parent)
            at, room, begun = room, block_tokens, ()
        for start in range(at, tokens - block_tokens + 1, block_tokens):
            parent = hash((parent, number, start)) & _MASK
            hashes.append(parent)
        rest = (tokens - at) % block_tokens
        if rest:
            begun = (number, tokens - rest, rest)
            room = block_tokens - rest
    return hashes
