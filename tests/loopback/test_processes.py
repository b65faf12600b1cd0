"""The supervisor against small real processes: readiness, crash, restart, stop, and what is left (nothing)."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time

import msgspec
import psutil
import pytest
import uvloop

from beaconry.io.children.supervisor import (
    ProcessCrashed,
    ProcessReady,
    ProcessRestarting,
    ProcessStarted,
    ProcessState,
    ProcessStopped,
    Supervisor,
    Timing,
    free_ports,
)
from beaconry.manifests.processes import EngineProcess
from beaconry.values.endpoint import Endpoint

QUICK = Timing(health_poll_s=0.01, backoff_first_s=0.02, backoff_max_s=0.08, stable_s=1000.0)
DEADLINE_S = 20.0

SERVE = """
import signal, socket, sys
port, mode = int(sys.argv[1]), sys.argv[2]
print("hello from", port, flush=True)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "broken":
    print("\\x1b[31mno model\\x1b[0m", file=sys.stderr, flush=True)
    sys.exit(3)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", port))
listener.listen()
if mode == "parent":
    import subprocess
    print("grandchild", subprocess.Popen(["sleep", "1000"]).pid, flush=True)
status = b"503 loading" if mode == "loading" else b"200 OK"
while True:
    peer, _ = listener.accept()
    request = peer.recv(4096)
    if b"/die" in request:
        sys.exit(7)
    peer.sendall(b"HTTP/1.1 " + status + b"\\r\\nContent-Length: 0\\r\\n\\r\\n")
    peer.close()
"""


def engine(name="one", mode="normal", *, argv=None, ready_within_s=DEADLINE_S):
    (port,) = free_ports(1, "127.0.0.1", random.Random())
    return EngineProcess(
        name=name,
        argv=argv or (sys.executable, "-I", "-S", "-c", SERVE, str(port), mode),
        env={},
        host="127.0.0.1",
        port=port,
        endpoint=Endpoint(name=name, host="127.0.0.1", port=port, model="m"),
        ready_within_s=ready_within_s,
    )


class Fleet:
    """A supervisor in a task, and its events."""

    def __init__(self, *processes, timing=QUICK):
        self.events = []
        self._news = asyncio.Event()
        self.supervisor = Supervisor(processes, environment=os.environ, on_event=self._note, timing=timing)

    def _note(self, event):
        self.events.append(event)
        self._news.set()

    async def __aenter__(self):
        self.task = asyncio.create_task(self.supervisor.run())
        return self

    async def __aexit__(self, *exc):
        self.supervisor.kill()
        await self.task

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, kind, count=1):
        async with asyncio.timeout(DEADLINE_S):
            while len(self.of(kind)) < count:
                self._news.clear()
                await self._news.wait()
        return self.of(kind)[count - 1]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    async def nothing():
        await (await asyncio.create_subprocess_exec("true")).wait()

    def start(work):
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(nothing())  # libuv keeps two descriptors for the life of the process from its first child on
        before = descriptors()
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(work)
        assert psutil.Process().children() == []
        assert descriptors() == before

    return start


def descriptors():
    return psutil.Process().num_fds()


def answers(process):
    try:
        socket.create_connection((process.host, process.port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


async def ask(process, path):
    reader, writer = await asyncio.open_connection(process.host, process.port)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_gone(*pids):
    end = time.monotonic() + DEADLINE_S
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < end, "a process outlived its supervisor"
        time.sleep(0.02)


def test_processes_become_ready_at_the_same_time_and_leave_nothing_behind_when_stopped(run):
    engines = [engine("a"), engine("b"), engine("c")]

    async def work():
        async with Fleet(*engines) as fleet:
            await fleet.until(ProcessReady, 3)
            assert all(one.state is ProcessState.READY for one in fleet.supervisor.statistics())
            fleet.supervisor.stop(DEADLINE_S)
            async with asyncio.timeout(DEADLINE_S):
                await fleet.task
            kinds = [type(event) for event in fleet.events]
            assert kinds[:3] == [ProcessStarted] * 3
            assert sorted(event.name for event in fleet.of(ProcessStopped)) == ["a", "b", "c"]
            assert fleet.of(ProcessCrashed) == []

    run(work())
    assert not any(answers(one) for one in engines)


def test_a_crashed_process_is_restarted_on_its_port(run):
    one = engine()

    async def work():
        async with Fleet(one) as fleet:
            await fleet.until(ProcessReady)
            await ask(one, "/die")
            crash = await fleet.until(ProcessCrashed)
            assert crash == ProcessCrashed("one", "exit code 7", True, (f"hello from {one.port}",))
            await fleet.until(ProcessReady, 2)
            assert (await ask(one, "/health")).startswith(b"HTTP/1.1 200")
            assert fleet.supervisor.statistics()[0].crashes == 1

    run(work())


def test_the_back_off_doubles_up_to_its_bound_and_the_last_words_are_kept_without_colours(run):
    async def work():
        async with Fleet(engine(mode="broken")) as fleet:
            await fleet.until(ProcessRestarting, 5)
            assert [event.in_s for event in fleet.of(ProcessRestarting)[:5]] == [0.02, 0.04, 0.08, 0.08, 0.08]
            crash = fleet.of(ProcessCrashed)[0]
            assert (crash.reason, crash.was_ready, crash.lines[-1]) == ("exit code 3", False, "no model")

    run(work())


def test_the_back_off_starts_over_after_a_stable_run(run):
    one = engine()

    async def work():
        async with Fleet(one, timing=Timing(health_poll_s=0.01, backoff_first_s=0.02, stable_s=0.0)) as fleet:
            for count in (1, 2, 3):
                await fleet.until(ProcessReady, count)
                await ask(one, "/die")
            await fleet.until(ProcessRestarting, 3)
            assert [event.in_s for event in fleet.of(ProcessRestarting)] == [0.02, 0.02, 0.02]

    run(work())


def test_a_program_that_does_not_exist_is_a_crash_with_its_name(run):
    async def work():
        async with Fleet(engine(argv=("/no/such/vllm", "serve"))) as fleet:
            crash = await fleet.until(ProcessCrashed)
            assert crash.reason == "cannot run /no/such/vllm: No such file or directory"

    run(work())


def test_a_process_that_never_gets_healthy_is_killed_at_its_deadline(run):
    async def work():
        async with Fleet(engine(mode="loading", ready_within_s=0.5)) as fleet:
            pid = (await fleet.until(ProcessStarted)).pid
            crash = await fleet.until(ProcessCrashed)
            assert crash.reason == "no answer on /health within 0.5 s"
            assert gone(pid)

    run(work())


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(run):
    async def work():
        async with Fleet(engine(mode="stubborn")) as fleet:
            await fleet.until(ProcessReady)
            fleet.supervisor.stop(0.1)
            async with asyncio.timeout(DEADLINE_S):
                await fleet.task

    run(work())


def test_kill_cuts_a_long_grace_short(run):
    async def work():
        async with Fleet(engine(mode="stubborn")) as fleet:
            await fleet.until(ProcessReady)
            fleet.supervisor.stop(1000.0)
            await asyncio.sleep(0.05)
            assert not fleet.task.done()
            fleet.supervisor.kill()
            async with asyncio.timeout(DEADLINE_S):
                await fleet.task

    run(work())


def test_the_children_of_a_crashed_process_end_with_it(run):
    one = engine(mode="parent")

    async def work():
        async with Fleet(one) as fleet:
            await fleet.until(ProcessReady)
            await ask(one, "/die")
            crash = await fleet.until(ProcessCrashed)
            await asyncio.to_thread(wait_gone, int(crash.lines[-1].split()[1]))

    run(work())


def test_cancelling_the_supervisor_kills_its_processes(run):
    async def work():
        fleet = Fleet(engine(mode="stubborn"))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(fleet.supervisor.run())
            pid = (await fleet.until(ProcessReady) and fleet.of(ProcessStarted)[0]).pid
            task.cancel()
        assert gone(pid)

    run(work())


def test_a_stop_during_start_up_or_back_off_ends_at_once(run):
    async def work():
        async with Fleet(engine("a", "loading"), engine("b", "broken"), timing=Timing(backoff_first_s=1000.0)) as fleet:
            await fleet.until(ProcessRestarting)
            await fleet.until(ProcessStarted, 2)
            fleet.supervisor.stop(DEADLINE_S)
            async with asyncio.timeout(DEADLINE_S):
                await fleet.task
            assert {one.state for one in fleet.supervisor.statistics()} == {ProcessState.STOPPED}

    run(work())


def test_an_endless_line_and_many_lines_are_kept_within_bounds(run):
    flood = "import sys\nsys.stdout.write('x' * 3_000_000)\nfor i in range(2000): print(i)\nsys.exit(1)"

    async def work():
        async with Fleet(engine(argv=(sys.executable, "-c", flood))) as fleet:
            crash = await fleet.until(ProcessCrashed)
            assert crash.lines == tuple(str(number) for number in range(1950, 2000))

    run(work())


def test_processes_end_when_their_supervisor_is_killed_without_warning():
    one = engine(mode="parent")
    script = textwrap.dedent("""
        import asyncio, os, sys
        import msgspec
        from beaconry.io.children.supervisor import Supervisor
        from beaconry.manifests.processes import EngineProcess
        process = msgspec.json.decode(sys.argv[1], type=EngineProcess)
        supervisor = Supervisor([process], environment=os.environ, on_event=lambda event: print(event, flush=True))
        asyncio.run(supervisor.run())
    """)
    argv = [sys.executable, "-c", script, msgspec.json.encode(one).decode()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        while "ProcessReady" not in parent.stdout.readline():
            assert parent.poll() is None
        descendants = psutil.Process(parent.pid).children(recursive=True)
        assert len(descendants) == 3, "the engine, its child, and the warden"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_gone(*(process.pid for process in descendants))
    assert not answers(one)


def test_a_fleet_survives_the_loss_of_its_warden(run):
    async def work():
        async with Fleet(engine()) as fleet:
            await fleet.until(ProcessReady)
            (warden,) = [one for one in psutil.Process().children() if one.cmdline()[-1].endswith("warden.py")]
            warden.kill()
            await ask(fleet.supervisor._processes[0], "/die")
            await fleet.until(ProcessReady, 2)
            fleet.supervisor.stop(DEADLINE_S)
            async with asyncio.timeout(DEADLINE_S):
                await fleet.task

    run(work())


def test_ports_found_free_are_different_and_can_be_bound():
    ports = free_ports(20, "127.0.0.1", random.Random(1))
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_port_in_use_is_not_chosen():
    (port,) = free_ports(1, "127.0.0.1", random.Random(2))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        assert free_ports(1, "127.0.0.1", random.Random(2)) != (port,)
