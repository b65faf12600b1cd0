"""Keeps engine processes running: starts them, waits for /health, restarts the crashed ones with back-off, stops them all.

Each child leads a session and process group of its own, so the terminal's Ctrl-C reaches only us, and a child's own children end with
it. Should we die without a chance to clean up, a `warden` process does it. Children write into a pipe of ours; the last lines are kept
and shown when one crashes. Nothing outlives `Supervisor.run()`: no process, no pipe, no file.
"""

import asyncio
import contextlib
import os
import random
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Self

from msgspec import Struct

from beaconry.io.children import warden
from beaconry.io.children.child import Child, completed, until_healthy
from beaconry.manifests.processes import EngineProcess
from beaconry.values.errors import OperatorError

_PORTS = (20_000, 32_000)
"""Below the range from which systems take ports for outgoing connections, so a restarted engine finds its port free."""


class ProcessState(StrEnum):
    """Where one process stands."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    """Crashed; the back-off runs."""
    STOPPED = "stopped"


class ProcessStarted(Struct, frozen=True):
    """The process runs; it does not answer yet."""

    name: str
    pid: int


class ProcessReady(Struct, frozen=True):
    """It answers /health with 200."""

    name: str
    after_s: float


class ProcessCrashed(Struct, frozen=True):
    """It ended unasked, or did not become ready in time and was killed."""

    name: str
    reason: str
    was_ready: bool
    lines: tuple[str, ...]
    """The last lines of its output, oldest first."""


class ProcessRestarting(Struct, frozen=True):
    """It will be started again."""

    name: str
    in_s: float


class ProcessStopped(Struct, frozen=True):
    """It ended because we asked, or will not be started again."""

    name: str


ProcessEvent = ProcessStarted | ProcessReady | ProcessCrashed | ProcessRestarting | ProcessStopped


class Timing(Struct, frozen=True, kw_only=True):
    """How patient the supervisor is."""

    health_poll_s: float = 0.05
    """Between two looks at /health during start-up; cheap on loopback, and start-up is what a newcomer waits for."""
    health_timeout_s: float = 2.0
    backoff_first_s: float = 1.0
    """Doubles with each crash."""
    backoff_max_s: float = 30.0
    """A large model takes longer than that to load, so waiting longer gains nothing."""
    stable_s: float = 60.0
    """Ready for so long, a process has its back-off reset."""
    kill_wait_s: float = 5.0
    """After SIGKILL; longer only where the kernel hangs in a driver."""


class ProcessStatistics(Struct, frozen=True, kw_only=True):
    """One process, as it is now."""

    name: str
    state: ProcessState
    crashes: int


class Supervisor:
    """Runs a fixed set of processes. `run()` ends after `stop()`, when all are gone; it may be called once."""

    def __init__(
        self,
        processes: Sequence[EngineProcess],
        *,
        environment: Mapping[str, str],
        on_event: Callable[[ProcessEvent], None],
        timing: Timing | None = None,
    ) -> None:
        self._processes = tuple(processes)
        self._environment = environment
        self._on_event = on_event
        self._timing = timing or Timing()
        self._states = {process.name: ProcessState.STARTING for process in processes}
        self._crashes = dict.fromkeys(self._states, 0)
        self._warden = Warden()
        self._stopping = asyncio.Event()
        self._grace_s = 0.0  # from SIGTERM to SIGKILL; set by stop()
        self._killing = asyncio.Event()

    async def run(self) -> None:
        """Start everything and keep it running until `stop()`. Cancelling it kills the children at once."""
        async with self._warden, asyncio.TaskGroup() as group:
            for process in self._processes:
                group.create_task(self._keep(process), name=f"supervise {process.name}")

    def stop(self, grace_s: float) -> None:
        """Ask every process to end: SIGTERM, and SIGKILL for its group after `grace_s`."""
        self._grace_s = grace_s
        self._stopping.set()

    def kill(self) -> None:
        """End every process at once."""
        self._stopping.set()
        self._killing.set()

    def statistics(self) -> tuple[ProcessStatistics, ...]:
        """Every process, in the order given."""
        return tuple(
            ProcessStatistics(name=name, state=state, crashes=self._crashes[name])
            for name, state in self._states.items()
        )

    async def _keep(self, process: EngineProcess) -> None:
        backoff_s = self._timing.backoff_first_s
        while not self._stopping.is_set():
            self._states[process.name] = ProcessState.STARTING
            life = await self._live(process)
            if self._stopping.is_set():
                break
            self._states[process.name] = ProcessState.WAITING
            self._crashes[process.name] += 1
            self._on_event(ProcessCrashed(process.name, life.reason, life.ready_s is not None, life.lines))
            if life.ready_s is not None and life.ready_s >= self._timing.stable_s:
                backoff_s = self._timing.backoff_first_s
            self._on_event(ProcessRestarting(process.name, backoff_s))
            await completed(self._stopping.wait(), backoff_s)
            backoff_s = min(2 * backoff_s, self._timing.backoff_max_s)
        self._states[process.name] = ProcessState.STOPPED
        self._on_event(ProcessStopped(process.name))

    async def _live(self, process: EngineProcess) -> "_Life":
        """From start to end of one process; nothing of it is left afterwards."""
        try:
            child = await Child.start(process.argv, {**self._environment, **process.env})
        except OSError as fault:
            return _Life(f"cannot run {process.argv[0]}: {fault.strerror}", (), None)
        try:
            self._warden.guard(child.pid)
            self._on_event(ProcessStarted(process.name, child.pid))
            reason, ready_s = await self._attend(process, child)
        finally:
            await child.end(self._timing.kill_wait_s)
            self._warden.release(child.pid)
        return _Life(reason, child.lines, ready_s)

    async def _attend(self, process: EngineProcess, child: Child) -> tuple[str, float | None]:
        """Wait for readiness, end or stop, whichever comes; return how it ended and for how long it was ready."""
        clock = asyncio.get_running_loop().time
        started_s, ready_at_s = clock(), None
        timing = self._timing
        exited = asyncio.create_task(child.exited())
        stopping = asyncio.create_task(self._stopping.wait())
        killing = asyncio.create_task(self._killing.wait())
        healthy = asyncio.create_task(
            until_healthy(process.host, process.port, timing.health_poll_s, timing.health_timeout_s)
        )
        try:
            await _first(exited, stopping, healthy, within_s=process.ready_within_s)
            if healthy.done() and not exited.done() and not stopping.done():
                healthy.result()
                ready_at_s = clock()
                self._states[process.name] = ProcessState.READY
                self._on_event(ProcessReady(process.name, ready_at_s - started_s))
                await _first(exited, stopping)
            if stopping.done() and not exited.done():
                child.terminate()
                await _first(exited, killing, within_s=self._grace_s)
            ready_s = None if ready_at_s is None else clock() - ready_at_s
            if exited.done():
                return exited.result(), ready_s
            return f"no answer on /health within {process.ready_within_s:g} s", ready_s
        finally:
            for task in (exited, stopping, killing, healthy):
                task.cancel()


class _Life(Struct, frozen=True):
    """One process from start to end."""

    reason: str
    lines: tuple[str, ...]
    ready_s: float | None
    """How long it was ready; None if it never was."""


class Warden:
    """The supervisor's end of the pipe to the `warden` process. Use as an async context manager."""

    def __init__(self) -> None:
        self._pipe_fd = -1  # -1 outside the context

    async def __aenter__(self) -> Self:
        read_fd, self._pipe_fd = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", warden.__file__, stdin=read_fd, start_new_session=True
            )
        except BaseException:
            os.close(self._pipe_fd)
            raise
        finally:
            os.close(read_fd)
        return self

    async def __aexit__(self, *exc: object) -> None:
        os.close(self._pipe_fd)
        await self._process.wait()

    def guard(self, pid: int) -> None:
        """End the group of `pid` should this process die."""
        self._tell(f"+{pid}\n")

    def release(self, pid: int) -> None:
        """The group has ended."""
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody killed it: engines still end in every orderly stop
            os.write(self._pipe_fd, line.encode())


def free_ports(count: int, host: str, rng: random.Random) -> tuple[int, ...]:
    """Return ports on which nobody listens now, `count` in a row where possible, from a place that `rng` chooses.

    Raises OperatorError if `host` cannot be bound at all.
    """
    found: list[int] = []
    first, beyond = _PORTS
    start = rng.randrange(first, beyond - count)
    for port in (*range(start, beyond), *range(first, start)):
        if len(found) == count:
            break
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((host, port))
            found.append(port)
    if len(found) < count:
        raise OperatorError(
            f"{host}: fewer than {count} ports between {first} and {beyond} are free: is the host one of this machine?"
        )
    return tuple(found)


async def _first(*tasks: asyncio.Task[Any], within_s: float | None = None) -> None:
    """Wait until one of `tasks` is done, or the time is over."""
    await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
