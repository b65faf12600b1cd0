"""Child processes of a benchmark: started together, known to be ready by the line they print, and gone afterwards."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_READY = re.compile(r"http://[^:]+:(\d+)")
STOP_S = 5.0


class Child:
    """One Python process and the port it serves."""

    def __init__(self, arguments: Sequence[str], cpu: int | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        self.pid = self._process.pid
        if cpu is not None:
            os.sched_setaffinity(self.pid, {cpu})
        self.port = 0

    def wait_ready(self) -> None:
        """Wait for the line with the address. Raises RuntimeError with what it said if it ends before."""
        said = ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = _READY.search(line)
            if found is not None:
                self.port = int(found[1])
                return
            said += line
        raise RuntimeError(f"{' '.join(self._process.args)} did not start: {said}")  # type: ignore[arg-type]

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def end(self) -> None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()

    def wait_ended(self) -> None:
        """Wait for its end, and make it end if it does not."""
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def children(*commands: Sequence[str], cpu: int | None = None) -> Iterator[list[Child]]:
    """Run `python ARGUMENTS...` of each command, on one core if given, until the block ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # or they would outlive us
    started = [Child(arguments, cpu) for arguments in commands]
    try:
        for child in started:
            child.wait_ready()
        yield started
    finally:
        for child in started:
            child.end()
        for child in started:
            child.wait_ended()
