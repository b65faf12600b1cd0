"""A file that operators change while it is in use.

It is looked at once a second (size, time, inode: replacing it atomically and mounted ConfigMaps are noticed) and taken once it has
stayed the same for two looks, so that a file being written is not taken half-way.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

POLL_S = 1.0
Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change in ns, inode."""


async def follow(path: Path, changed: Callable[[], Awaitable[None]], poll_s: float = POLL_S) -> None:
    """Call `changed` for every new version of the file, the first one included, until cancelled."""
    taken: Stamp | None = None  # of the version last handed on
    pending: Stamp | None = None
    while True:
        stamp = _stamp(path)
        if stamp is not None and stamp == pending and stamp != taken:
            taken = stamp
            await changed()
        pending = stamp
        await asyncio.sleep(poll_s)


def _stamp(path: Path) -> Stamp | None:
    """None if there is no file: it is being replaced, or gone; what was loaded stays in force."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ino)
