"""Reads the recorded messages of `tests/fixtures/kv_events`."""

import struct
from collections.abc import Iterator
from pathlib import Path

RECORDED = Path(__file__).parents[2] / "fixtures" / "kv_events"


def recorded(name: str) -> Iterator[list[bytes]]:
    """The messages of a recording: frame count, then length and bytes of each frame, all counts 4 bytes big-endian."""
    data, at = (RECORDED / f"{name}.frames.bin").read_bytes(), 0
    while at < len(data):
        (count,) = struct.unpack_from(">I", data, at)
        at += 4
        frames = []
        for _ in range(count):
            (length,) = struct.unpack_from(">I", data, at)
            frames.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        yield frames
