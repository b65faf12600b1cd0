"""A fleet on this machine: engines and their gateway, from start to clean end.

The gateway is bound first, so a taken port is found before anything is started; the engines start at once, and are told to the gateway
as they become ready. An engine that ends before the fleet was ready ends everything; later ones are restarted. The end comes in order:
no new requests, running ones finish, engines stop.
"""

import asyncio
import logging
import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from beaconry.apps.assemble import Gateway
from beaconry.apps.ending import Ending
from beaconry.apps.live_view import Screen, Watch, plain_line, render, totals
from beaconry.config.gateway import Listen
from beaconry.io.children.child import completed
from beaconry.io.children.supervisor import (
    ProcessCrashed,
    ProcessEvent,
    ProcessReady,
    ProcessRestarting,
    ProcessState,
    Supervisor,
    free_ports,
)
from beaconry.manifests.model_service import ModelService
from beaconry.manifests.processes import ENGINE_HOST, EngineProcess, count_ports, plan_gateway, plan_processes
from beaconry.router.facts import EndpointGone, EndpointSeen, Fact, HealthChecked
from beaconry.values.errors import OperatorError

ENGINE_GRACE_S = 10.0
"""From SIGTERM to SIGKILL, after the gateway has let the requests finish."""
SCREEN_EVERY_S = 0.5
LINE_EVERY_S = 5.0
WAITING_LINE_EVERY_S = 10.0
SHOWN_LINES = 15
"""Of a crashed engine's output."""


class Fleet:
    """Engines, gateway and view; `serve()` may be called once."""

    def __init__(self, service: ModelService, listen: Listen, *, plain: bool) -> None:
        self._service = service
        self._plain = plain
        self._host = listen.host
        self._config = plan_gateway(service, listen)
        self._gateway = Gateway(self._config)
        self._watch = Watch(service.spec.model.served_name)
        self._supervisor: Supervisor | None = None
        """None until the gateway is bound."""
        self._processes: dict[str, EngineProcess] = {}
        """By name; complete when there is a supervisor."""
        self._up: set[str] = set()
        """Processes that are ready now."""
        self._crash: ProcessCrashed | None = None
        """The first one."""
        self._serving = False
        """The gateway takes facts."""
        self._announced = False
        """All have been ready: from here on crashes are repaired, and reported."""
        self._news = asyncio.Event()
        """Set at each event of a process and each signal."""
        self._ending = Ending()

    async def serve(self) -> None:
        """From binding to the end of the last process. Raises OperatorError if something cannot start."""
        self._ending.on_signal = self._signalled
        self._ending.listen()
        fault: OperatorError | None = None
        with _logged_to(self._on_log):
            async with asyncio.TaskGroup() as tasks:
                try:
                    await self._serve(tasks)
                except OperatorError as raised:  # out of the group it would come wrapped
                    fault = raised
        if fault is not None:
            raise fault

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        started_s = time.monotonic()
        await self._gateway.start()
        self._serving = True
        try:
            self._supervisor = supervisor = self._plan()
            tasks.create_task(supervisor.run())
            if await self._all_ready(supervisor, started_s):
                self._announced = True
                self._announce(time.monotonic() - started_s)
                await self._show(supervisor)
        finally:
            await self._stop_gateway()
            if self._supervisor is not None:
                self._supervisor.stop(ENGINE_GRACE_S)

    def _plan(self) -> Supervisor:
        """Plan the processes, and tell the gateway what there will be: a model that is known, and not served yet."""
        ports = free_ports(count_ports(self._service), ENGINE_HOST, random.Random())
        processes = plan_processes(self._service, ports, sys.executable)
        for process in processes:
            self._processes[process.name] = process
            self._gateway.tell(EndpointSeen(msgspec.structs.replace(process.endpoint, draining=True)))
        return Supervisor(processes, environment=os.environ, on_event=self._on_event)

    async def _all_ready(self, supervisor: Supervisor, started_s: float) -> bool:
        """Wait for all engines; False if a signal came first. Raises OperatorError at the first crash."""
        while len(self._up) < len(self._processes):
            if self._crash is not None:
                process = self._processes[self._crash.name]
                raise OperatorError(
                    f"{process.name} did not start: {self._crash.reason}. Try it by hand: {shlex.join(process.argv)}"
                    + _indented(self._crash.lines)
                )
            if self._ending.asked.is_set():
                return False
            self._news.clear()
            if not await completed(self._news.wait(), WAITING_LINE_EVERY_S):
                ready = sum(one.state is ProcessState.READY for one in supervisor.statistics())
                say(f"{ready}/{len(self._processes)} engines ready after {time.monotonic() - started_s:.0f} s")
        return True

    def _on_event(self, event: ProcessEvent) -> None:
        """Tell the gateway and the operator what happened to a process."""
        endpoint = self._processes[event.name].endpoint
        line, details = "", tuple[str, ...]()
        if isinstance(event, ProcessReady):
            self._up.add(event.name)
            # Told as healthy too: checks failed while it started, and the next one is seconds away.
            self._tell(EndpointSeen(endpoint), HealthChecked(event.name, healthy=True))
            line, details = f"{event.name} is ready after {event.after_s:.1f} s", ()
        elif isinstance(event, ProcessCrashed):
            self._up.discard(event.name)
            self._crash = self._crash or event
            # Gone, since its cache is; and back as draining, so that its model stays known: 503 is true, 404 is not.
            draining = msgspec.structs.replace(endpoint, draining=True)
            self._tell(EndpointGone(event.name), EndpointSeen(draining))
            line, details = f"{event.name} ended: {event.reason}", event.lines
        elif isinstance(event, ProcessRestarting):
            line = f"{event.name} starts again in {event.in_s:g} s"
        if line and self._announced:  # before, one line in the end tells it all
            self._report(line, details)
        self._news.set()

    def _tell(self, *facts: Fact) -> None:
        if self._serving:
            for fact in facts:
                self._gateway.tell(fact)

    def _report(self, line: str, details: Sequence[str] = ()) -> None:
        line = f"{time.strftime('%H:%M:%S')} {line}"
        self._watch.note(line + (f": {details[-1][:100]}" if details else ""))
        if self._plain or not self._announced:
            say(line + _indented(details))

    def _on_log(self, record: logging.LogRecord) -> None:
        """Warnings go where the rest is shown; during start-up engines fail their health checks, so only errors count."""
        if self._announced or record.levelno >= logging.ERROR:
            line, *details = logging.Formatter().format(record).splitlines()
            self._report(line, details)

    def _announce(self, after_s: float) -> None:
        model = self._service.spec.model.served_name
        address = self._address()
        body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": "Hello"}]}).decode()
        engines = f"{len(self._processes)} engine{'s' if len(self._processes) > 1 else ''}"
        say(
            f"Ready in {after_s:.1f} s: {engines} serve {model} at {address}/v1\n\n"
            f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json' \\\n    -d {shlex.quote(body)}\n"
        )

    def _address(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)  # noqa: S104  # shown, not bound
        return f"http://{host}:{self._gateway.port}"

    async def _show(self, supervisor: Supervisor) -> None:
        """Show the fleet until a signal comes."""
        self._look(supervisor)  # rates count from here
        if self._plain:
            await self._show_lines(supervisor)
        else:
            with suppress(OSError):  # the terminal has gone; the fleet goes on
                await self._show_screen(supervisor)
        await self._ending.asked.wait()

    async def _show_lines(self, supervisor: Supervisor) -> None:
        shown: tuple[object, ...] = ()
        while not await completed(self._ending.asked.wait(), LINE_EVERY_S):
            screen = self._look(supervisor)
            current = (screen.fleet.state, screen.fleet.in_flight, screen.totals)
            if current != shown:  # an idle fleet fills no log
                await asyncio.to_thread(say, f"{time.strftime('%H:%M:%S')} {plain_line(screen)}")
            shown = current

    async def _show_screen(self, supervisor: Supervisor) -> None:
        """Drawn in a thread: a terminal that stands still holds up no stream."""
        from rich.live import Live  # noqa: PLC0415  # 50 ms that only a terminal needs

        with Live(auto_refresh=False) as live:
            ended = False
            while not ended:
                picture = render(self._look(supervisor), self._address())
                await asyncio.to_thread(live.update, picture, refresh=True)
                ended = await completed(self._ending.asked.wait(), SCREEN_EVERY_S)

    def _look(self, supervisor: Supervisor) -> Screen:
        return self._watch.look(self._gateway.statistics(), supervisor.statistics())

    async def _stop_gateway(self) -> None:
        """Finish what runs, at most for the configured time or until the second signal, then close."""
        running = self._gateway.statistics().in_flight
        if self._announced:
            say(f"Stopping{f': {running} requests finish; the same signal again cuts them off' if running else ''}.")
        self._serving = False
        await self._ending.drain(self._gateway, self._config.deadlines.drain_s)
        ended = ", ".join(f"{name} {count}" for name, count in totals(self._gateway.statistics()).items())
        if self._announced:
            say(f"Requests: {ended or 'none'}.")

    def _signalled(self) -> None:
        if self._ending.hurried.is_set() and self._supervisor is not None:
            self._supervisor.kill()
        self._news.set()


def say(text: str) -> None:
    """Print lines at once. A reader or a terminal that has gone does not end the fleet."""
    try:
        print(text, flush=True)
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class _Forward(logging.Handler):
    """Gives warnings and errors to a function."""

    def __init__(self, take: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.WARNING)
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        self._take(record)


@contextmanager
def _logged_to(take: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    """Send the warnings of the whole process to `take`."""
    handler = _Forward(take)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _indented(lines: Sequence[str]) -> str:
    return "".join(f"\n    {line}" for line in lines[-SHOWN_LINES:])
