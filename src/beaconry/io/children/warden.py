"""Run as a script: ends the process groups of a supervisor that died without ending them itself (SIGKILL, power of the OOM killer).

It reads lines `+PID` and `-PID` from standard input, a pipe whose other end only the supervisor holds. When the pipe closes, each
group still listed gets SIGTERM at its leader, then SIGKILL as a whole. After an orderly stop none is listed, and it just exits.
One warden serves a whole fleet, works on every POSIX system, and needs no cooperation of the engines. Started with `python -I -S`,
so it imports almost nothing; it has a session of its own, so signals of the terminal pass it by.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable

GRACE_S = 5.0
"""For engines to free their accelerators; nobody waits for answers any more."""
_POLL_S = 0.05


def main(lines: Iterable[str]) -> None:
    """Follow `lines` to their end, then end what they left."""
    groups: set[int] = set()
    for line in lines:
        pid = int(line[1:])
        if line.startswith("+"):
            groups.add(pid)
        else:
            groups.discard(pid)
    for pid in groups:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline_s = time.monotonic() + GRACE_S
    while time.monotonic() < deadline_s and any(_alive(pid) for pid in groups):
        time.sleep(_POLL_S)
    for pid in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses for zombies
            os.killpg(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(sys.stdin)
