"""What do clients notice of engines that die, hang and fail?

A gateway in this process, four simulated engines in their own. 200 requests are kept in flight, two thirds of them streams. In one
run, overlapping: one engine is killed and stays dead, one is stopped (it accepts connections and says nothing) and continued, one
answers 500 for a while. Promised, and checked (exit code 1): no request fails before its first byte, each has exactly one outcome, and
afterwards the gateway holds what it held before.

A fault waits until the one before it is known to the health checks: a request has three attempts, and one that met all three engines would
rightly fail. So what is promised does not depend on how fast the machine is.

    python -m benchmarks.faults [--smoke] [--json FILE]
"""

import asyncio
import gc
import signal
import sys
import urllib.request
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from random import Random

import msgspec
import psutil
import uvloop
from msgspec import Struct

from beaconry.apps.assemble import Gateway
from beaconry.config.gateway import EndpointConfig, GatewayConfig, Health, Listen
from beaconry.router.statistics import RouterStatistics
from benchmarks.children import Child, children
from benchmarks.report import options, save, table

MODEL = "m"
IN_FLIGHT = 200
STEP_S = 0.03
"""An engine step: 200 streams make some 6,000 chunks a second, which one core relays and reads with ease."""
PATIENCE_S = 90.0
"""How long one answer may take: above the gateway's own deadline for a stalled stream."""
LASTING = frozenset({"kill", "stop"})
"""What health checks find out; engines that answer 500 are well, as far as these can tell."""
LEAK_BYTES = 48 * 1024 * 1024
KNOWN_WITHIN_S = 60.0
"""How long health checks may take to find out that an engine is dead or hangs."""
LETS_GO_WITHIN_S = 10.0
"""How long the gateway may take to let go of connections once nothing runs."""


class Sent(Struct, kw_only=True):
    """One request: when it was sent, and how it ended."""

    at_s: float
    streamed: bool
    ended: str = "unknown"
    seconds: float = 0.0


class Step(Struct, frozen=True, kw_only=True):
    """One thing that happens to an engine."""

    name: str
    at_s: float
    engine: int


class Phase(Struct, kw_only=True):
    """From one step to the next. Requests belong to the phase in which they were sent."""

    name: str
    at_s: float
    requests: int = 0
    completed: int = 0
    failed_before_first_byte: int = 0
    broken_after_first_byte: int = 0
    retries: int = 0
    noticed_s: float | None = None
    """Until the endpoint was no longer chosen freely (or, at its end, until it was again)."""
    slowest_s: float = 0.0


class Holdings(Struct, frozen=True, kw_only=True):
    """What the gateway holds when nothing runs."""

    in_flight: int
    legs: int
    relays: int
    client_connections: int
    buffered_bytes: int
    files: int
    """Open file descriptors, without those of idle connections to engines."""
    rss_mib: float
    """Of gateway and load client together."""


def steps(*, smoke: bool) -> tuple[list[Step], float, float]:
    """What happens when, how long one engine answers 500, and when the load ends."""
    plan = (0.0, 1.0, 2.0, 3.0, 7.0) if smoke else (0.0, 5.0, 10.0, 15.0, 30.0)
    names = ("no fault", "kill", "stop", "answer 500", "continue")
    made = [Step(name=n, at_s=at, engine=max(0, i - 1) % 3) for i, (n, at) in enumerate(zip(names, plan, strict=True))]
    made[4] = Step(name="continue", at_s=plan[4], engine=1)
    return made, (3.0 if smoke else 10.0), (8.5 if smoke else 40.0)


class Load:
    """Keeps requests in flight until told to stop."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._rng = Random(1)
        self._loop = asyncio.get_running_loop()
        self.sent: list[Sent] = []
        self.stopping = False

    async def run(self) -> None:
        """Until `stopping`, and all answers are there."""
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(self._one_after_another())

    async def _one_after_another(self) -> None:
        await asyncio.sleep(self._rng.random())
        while not self.stopping:
            await self.one()

    async def one(self) -> None:
        """Send one request and note how it ends."""
        rng = self._rng
        document = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"{rng.random()} " * rng.randrange(5, 60)}],
            "max_tokens": rng.randrange(10, 70),
            "ignore_eos": True,
            "stream": rng.random() < 2 / 3,
        }
        body = msgspec.json.encode(document)
        sent = Sent(at_s=self._loop.time(), streamed=bool(document["stream"]))
        self.sent.append(sent)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        writer = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(head % len(body) + body)
                sent.ended = verdict(await _read_all(reader), streamed=sent.streamed)
        except TimeoutError:
            sent.ended = "no end"
        except OSError as error:
            sent.ended = f"connection: {error}"
        finally:
            sent.seconds = self._loop.time() - sent.at_s
            if writer is not None:
                writer.close()


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    try:
        while data := await reader.read(65_536):
            pieces.append(data)
    except ConnectionError:
        pass  # a cut connection: the verdict sees that the answer is not complete
    return b"".join(pieces)


def verdict(answer: bytes, *, streamed: bool) -> str:
    """How a request ended, from all bytes of its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        return f"status {head[9:12].decode() or 'none'}"
    if not body:
        return "nothing"
    if streamed:
        return "completed" if b"data: [DONE]\n\n" in body and body.endswith(b"0\r\n\r\n") else "broken"
    return "completed" if b'"usage"' in body and body.endswith(b"}") else "broken"


def holdings(gateway: Gateway) -> Holdings:
    """Count what the gateway holds, behind its public face too."""
    gc.collect()
    router, server, driver = gateway.statistics(), gateway.server_statistics(), gateway._driver  # noqa: SLF001
    driver.router.check()
    process = psutil.Process()
    return Holdings(
        in_flight=router.in_flight,
        legs=sum(e.prefilling + e.decoding for e in router.endpoints),
        relays=len(driver._relays),  # noqa: SLF001
        client_connections=server.connections,
        buffered_bytes=server.buffered_bytes,
        files=process.num_fds() - driver.connections,
        rss_mib=process.memory_info().rss / 2**20,
    )


def strike(step: Step, engines: list[Child], error_s: float) -> None:
    """Let a step happen."""
    child = engines[step.engine]
    if step.name == "kill":
        child.send(signal.SIGKILL)
    elif step.name == "stop":
        child.send(signal.SIGSTOP)
    elif step.name == "continue":
        child.send(signal.SIGCONT)
    elif step.name == "answer 500":
        body = msgspec.json.encode({"kind": "error", "status": 500, "for_s": error_s})
        url = f"http://127.0.0.1:{child.port}/fault"
        urllib.request.urlopen(urllib.request.Request(url, body, method="POST"), timeout=30).close()


def due(plan: Sequence[Step], happened: int, now_s: float, statistics: RouterStatistics) -> Step | None:
    """The next step, if its time has come and health checks know of the engines that are dead or hang by now."""
    if happened == len(plan) or now_s < plan[happened].at_s:
        return None
    hurt = [step.engine for step in plan[:happened] if step.name in LASTING]
    known = all(statistics.endpoints[engine].state == "unhealthy" for engine in hurt)
    return plan[happened] if known or now_s >= plan[happened].at_s + KNOWN_WITHIN_S else None


async def follow(gateway: Gateway, engines: list[Child], load: Load, *, smoke: bool) -> list[Phase]:
    """Let everything happen in its time, and watch how the gateway takes it."""
    loop = asyncio.get_running_loop()
    plan, error_s, end_s = steps(smoke=smoke)
    start_s = loop.time()
    phases: list[Phase] = []
    retries_before = 0
    while (now_s := loop.time() - start_s) < end_s or len(phases) < len(plan):
        statistics = gateway.statistics()
        step = due(plan, len(phases), now_s, statistics)
        if step is not None:
            if phases:
                phases[-1].retries = statistics.retries - retries_before
            retries_before = statistics.retries
            await asyncio.to_thread(strike, step, engines, error_s)
            phases.append(Phase(name=step.name, at_s=loop.time() - start_s))
        for phase, step in zip(phases, plan, strict=False):
            ready = statistics.endpoints[step.engine].state == "ready"
            if phase.noticed_s is None and step.name != "no fault" and ready == (step.name == "continue"):
                phase.noticed_s = loop.time() - start_s - phase.at_s
        await asyncio.sleep(0.02)
    load.stopping = True
    phases[-1].retries = gateway.statistics().retries - retries_before
    return phases


def assign(phases: list[Phase], sent: list[Sent], start_s: float) -> None:
    """Count each request in its phase."""
    for one in sent:
        phase = [p for p in phases if p.at_s <= one.at_s - start_s][-1:] or phases[:1]
        phase[0].requests += 1
        phase[0].completed += one.ended == "completed"
        phase[0].broken_after_first_byte += one.ended == "broken"
        phase[0].failed_before_first_byte += one.ended not in ("completed", "broken")
        phase[0].slowest_s = max(phase[0].slowest_s, one.seconds)


def broken_promises(phases: list[Phase], sent: int, outcomes: int, before: Holdings, after: Holdings) -> list[str]:
    """What was promised and not kept."""
    broken = [
        f"{p.failed_before_first_byte} requests failed before their first byte ({p.name})"
        for p in phases
        if p.failed_before_first_byte
    ]
    broken += [f"{p.name} was not noticed" for p in phases if p.name in LASTING and p.noticed_s is None]
    if outcomes != sent:
        broken.append(f"{sent} requests were sent, {outcomes} outcomes counted")
    broken += kept(before, after)
    if (after.rss_mib - before.rss_mib) * 2**20 > LEAK_BYTES:
        broken.append(f"memory grew by {after.rss_mib - before.rss_mib:.0f} MiB")
    return broken


def kept(before: Holdings, after: Holdings) -> list[str]:
    """What the gateway still holds."""
    empty = ("in_flight", "legs", "relays", "client_connections", "buffered_bytes")
    found = [f"{name} is {getattr(after, name)} after the run" for name in empty if getattr(after, name)]
    if after.files > before.files:
        found.append(f"{after.files - before.files} file descriptors are left open")
    return found


async def measure(engines: list[Child], args: Namespace) -> int:
    """One run. The exit code."""
    endpoints = tuple(
        EndpointConfig(name=f"engine-{i}", host="127.0.0.1", port=child.port, model=MODEL)
        for i, child in enumerate(engines)
    )
    health = Health(interval_s=0.5, timeout_s=3.0, unhealthy_after=1) if args.smoke else Health()
    gateway = Gateway(GatewayConfig(listen=Listen(port=0), endpoints=endpoints, policy=args.policy, health=health))
    await gateway.start()
    try:
        await warm_up(gateway)
        before = holdings(gateway)
        counted = sum(gateway.statistics().models[MODEL].outcomes.values())
        load = Load(gateway.port)
        start_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            phases = await follow(gateway, engines, load, smoke=args.smoke)
        await all_left(gateway)
        after = await let_go(gateway, before)
        outcomes = gateway.statistics().models[MODEL].outcomes
    finally:
        await gateway.stop(1.0)
    assign(phases, load.sent, start_s)
    broken = broken_promises(phases, len(load.sent), sum(outcomes.values()) - counted, before, after)
    show(phases, load.sent, before, after)
    figures = {
        "phases": phases,
        "requests": len(load.sent),
        "endings": Counter(one.ended for one in load.sent),
        "outcomes": {outcome.value: count for outcome, count in outcomes.items()},
        "before": before,
        "after": after,
        "broken_promises": broken,
    }
    save(args.json, figures)
    print("\nPromises kept." if not broken else "\nBROKEN: " + "; ".join(broken))
    return 1 if broken else 0


async def warm_up(gateway: Gateway) -> None:
    """Some requests, so that buffers and pools are there before anything is counted."""
    load = Load(gateway.port)
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(load.one())
    assert all(one.ended == "completed" for one in load.sent), Counter(one.ended for one in load.sent)
    await all_left(gateway)


async def all_left(gateway: Gateway) -> None:
    """Until the gateway has closed the last client connection."""
    while gateway.server_statistics().connections:  # noqa: ASYNC110 -- the gateway has no event for it
        await asyncio.sleep(0.01)


async def let_go(gateway: Gateway, before: Holdings) -> Holdings:
    """What the gateway holds when it has let go of all, or `LETS_GO_WITHIN_S` later."""
    deadline_s = asyncio.get_running_loop().time() + LETS_GO_WITHIN_S
    while kept(before, after := holdings(gateway)) and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110 -- no event for it
        await asyncio.sleep(0.05)
    return after


def show(phases: list[Phase], sent: list[Sent], before: Holdings, after: Holdings) -> None:
    """Print the tables."""
    columns = {
        "phase": "name", "at s": "at_s", "requests": "requests", "completed": "completed",
        "failed before 1st byte": "failed_before_first_byte", "broken after": "broken_after_first_byte", "retries": "retries",
        "noticed after s": "noticed_s", "slowest s": "slowest_s",
    }  # fmt: skip
    table(
        f"{IN_FLIGHT} requests in flight, {len(sent)} in all",
        list(columns),
        [[getattr(phase, name) for name in columns.values()] for phase in phases],
    )
    others = Counter(one.ended for one in sent if one.ended != "completed")
    if others:
        print("not completed:", ", ".join(f"{count} x {ended}" for ended, count in others.most_common()))
    fields = Holdings.__struct_fields__
    table(
        "what the gateway holds",
        ("", "before", "after"),
        [(name, getattr(before, name), getattr(after, name)) for name in fields],
    )


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--policy", default="expected-cost", help="the gateway's")
    args = parser.parse_args()
    engine = [
        "-m",
        "beaconry",
        "engine",
        "--port",
        "0",
        "--model",
        MODEL,
        "--step-time",
        f"fixed_s={STEP_S},prefill_tps=40000",
    ]
    with (
        children(*[[*engine, "--seed", str(i)] for i in range(4)]) as engines,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(measure(engines, args))


if __name__ == "__main__":
    sys.exit(main())
