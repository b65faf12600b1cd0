"""Planned prompts as block hashes, without building any text: equal spans give equal hashes, as equal text would."""

from collections.abc import Iterable

from beaconry.workload.request import Span


def block_hashes(spans: Iterable[Span], block_tokens: int) -> list[int]:
    """Chained 64-bit hashes of the full blocks of `block_tokens` tokens. The same in every process."""
    hashes: list[int] = []
    parent, room = 0, block_tokens
    pieces: list[int] = []
    for span in spans:
        at = 0
        while at < span.tokens:
            taken = min(room, span.tokens - at)
            pieces += (span.id, at, taken)
            at += taken
            room -= taken
            if not room:
                parent = hash((parent, *pieces)) & 0xFFFF_FFFF_FFFF_FFFF
                hashes.append(parent)
                pieces.clear()
                room = block_tokens
    return hashes
