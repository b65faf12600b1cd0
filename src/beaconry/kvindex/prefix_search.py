"""How far each holder's prefix of a prompt reaches, with few probes.

Blocks are chained, and engines drop the end of a prompt before its beginning: so whoever holds a block holds those before it, and
the set of holders only shrinks along a prompt. Where the sets at two blocks are equal, nobody ends between them; else bisect. A prompt
of 2,048 blocks whose holders end at five different blocks takes 35 probes instead of 2,048, and each one is a cache miss or four in a
large table. (Galloping ahead from the beginning takes as many.)

Whatever is probed is respected, and some more blocks are probed to find holders with holes in their prefix (lost events): these are
cut there. So an answer is too long only by holes that no probe has met.
"""

from collections.abc import Callable, Sequence

Probe = Callable[[int], int]
"""The holders of a block, as bits."""

_SPOT_CHECKS = 2


def reach(keys: Sequence[int], probe: Probe, live: int) -> tuple[list[tuple[int, int]], int]:
    """Return (holders, number of blocks) for each length at which some prefix ends, ascending; and how many holes were met.

    `keys` are the prompt's block hashes, at least one; only holders in `live` count; those without the first block are left out.
    """
    alive = probe(keys[0]) & live
    if not alive:
        return [], 0
    ends: list[tuple[int, int]] = []
    at, position = 0, len(keys) - 1
    held = probe(keys[position])
    beyond: list[tuple[int, int]] = []  # probed already, nearest on top
    while True:
        rest = alive & held
        if rest != alive:
            if position - at > 1:
                beyond.append((position, held))
                position = (at + position) >> 1
                held = probe(keys[position])
                continue
            ends.append((alive ^ rest, position))
            if not rest:
                break
            alive = rest
        at = position
        if not beyond:
            ends.append((alive, len(keys)))
            break
        position, held = beyond.pop()
    return _spot_checked(ends, keys, probe)


def _spot_checked(ends: list[tuple[int, int]], keys: Sequence[int], probe: Probe) -> tuple[list[tuple[int, int]], int]:
    """Probe some blocks within the longest prefix, at places that the keys' own bits choose, and cut those who do not hold them."""
    length, holes = ends[-1][1], 0
    if length < 4:
        return ends, 0
    chance = keys[length - 1]
    for turn in range(_SPOT_CHECKS):
        position = (chance >> 20 * turn) % length
        held = probe(keys[position])
        missing = 0
        for holders, end in ends:
            if end > position:
                missing |= holders & ~held
        if missing:
            holes += missing.bit_count()
            ends = [(holders & ~missing if end > position else holders, end) for holders, end in ends]
            ends.append((missing, position))
            ends = sorted(((holders, end) for holders, end in ends if holders and end), key=lambda one: one[1])
    return ends, holes
