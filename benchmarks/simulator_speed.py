"""How fast does the simulator run, and how does its cost grow with engines and requests?

CPU time of one process. The trace part replays a Mooncake trace (without `--trace`: made-up sessions) on eight engines, in simulated
blocks of 64 and of 512 tokens, and a part of it step by step as well. The growth part has sessions at equal load per engine.

    python -m benchmarks.simulator_speed --trace conversation_trace.jsonl
    python -m benchmarks.simulator_speed --large --json large.json    # 1,000 engines, 1,000,000 requests
    python -m benchmarks.simulator_speed --growth --plot growth.svg --course large.json

The large run says how it gets on every ten CPU seconds, and writes it to the file each time: what there is survives an interruption.
The plot has the growth part, and the course of a large run that was made before.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from math import log2
from pathlib import Path

import msgspec
from msgspec import Struct

from beaconry.apps.virtual_fleet import cells, run_cell
from beaconry.config.loading import load_yaml
from beaconry.sim.host import MANY_STEPS
from beaconry.sim.scenario import Scenario
from beaconry.workload.charts import Chart, Line, draw_file
from beaconry.workload.page import STYLE
from benchmarks import report

SCENARIO = """\
apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {{name: speed}}
service:
  model: {{uri: "hf://meta-llama/Llama-3.1-8B-Instruct"}}
  engine: {{type: sim, preset: llama-3.1-8b/h100}}
  pools: [{{name: engine, replicas: {engines}}}]
fleet: {{blockTokens: {block_tokens}}}
workloads:
- {workload}
"""
SESSIONS = (
    "{{type: sessions, arrivals: {{rate: {rate}}}, turns: {turns}, thinkS: 10, promptTokens: [100, 1000],"
    " outputTokens: [50, 350], groups: 50, prefixTokens: [500, 3000], requests: {requests}}}"
)
TURNS = 4
SESSIONS_PER_ENGINE_S = 0.5
GROWTH: dict[int, tuple[int, ...]] = {
    8: (2000, 8000, 32_000),
    16: (4000,),
    64: (16_000, 64_000),
    512: (32_000, 128_000),
}
"""Requests by engines; among them `EACH` for every engine."""
EACH = 250
JUDGED = 16
"""Endpoints that are judged for a request, in larger fleets too: a smaller fleet is cheaper by what it has not."""
LARGE = (1000, 1_000_000)
TELL_S = 10.0


class Point(Struct, frozen=True, kw_only=True):
    """How far a long run has come."""

    requests: int
    """Ended."""
    virtual_s: float
    cpu_s: float
    us_per_request: float
    """Since the point before."""
    resident_mib: int


class Large(Struct):
    """What is read of a large run's file."""

    course: list[Point]


class Course:
    """Follows a long run: now and then a line on stderr, and the points so far in `file`."""

    def __init__(self, file: Path | None, tell_s: float = TELL_S) -> None:
        """`tell_s`: CPU time between two points."""
        self._tell_s = tell_s
        self.points = [Point(requests=0, virtual_s=0.0, cpu_s=time.process_time(), us_per_request=0.0, resident_mib=0)]
        self._file = file

    def __call__(self, virtual_s: float, requests: int) -> None:
        """Note where the run is, if it is time."""
        last, cpu_s = self.points[-1], time.process_time()
        if cpu_s < last.cpu_s + self._tell_s or requests == last.requests:
            return
        point = Point(
            requests=requests,
            virtual_s=virtual_s,
            cpu_s=cpu_s,
            us_per_request=1e6 * (cpu_s - last.cpu_s) / (requests - last.requests),
            resident_mib=_resident_mib(),
        )
        self.points.append(point)
        print(
            f"{requests:,} requests, {virtual_s:.0f} virtual s, {cpu_s:.0f} CPU s, {point.us_per_request:.0f} us/request, "
            f"{point.resident_mib:,} MiB",
            file=sys.stderr,
            flush=True,
        )
        report.save(self._file, {"course": self.points})


class Speed(Struct, frozen=True, kw_only=True):
    """One run."""

    what: str
    engines: int
    block_tokens: int
    requests: int
    virtual_s: float
    cpu_s: float
    times_real: float
    us_per_request: float
    events: int
    resident_mib: int
    """The process's most so far."""
    ttft_p50_s: float
    hit_rate: float
    failed: int


def run(
    what: str,
    workload: str,
    engines: int,
    *,
    block_tokens: int = 64,
    steps_at_once: int = MANY_STEPS,
    progress: Callable[[float, int], None] | None = None,
) -> Speed:
    """Simulate one fleet."""
    text = SCENARIO.format(engines=engines, block_tokens=block_tokens, workload=workload)
    scenario = load_yaml(text, Scenario, "benchmark")
    began_s = time.process_time()
    cell = cells(scenario)[0]
    result, _ = run_cell(scenario, cell, Path.cwd(), steps_at_once=steps_at_once, progress=progress)
    cpu_s = time.process_time() - began_s
    summary = result.summary
    return Speed(
        what=what,
        engines=engines,
        block_tokens=block_tokens,
        requests=summary.requests,
        virtual_s=result.virtual_s,
        cpu_s=cpu_s,
        times_real=result.virtual_s / cpu_s,
        us_per_request=1e6 * cpu_s / summary.requests,
        events=result.events,
        resident_mib=_resident_mib(),
        ttft_p50_s=summary.ttft_s.p50 if summary.ttft_s else 0.0,
        hit_rate=summary.hit_rate or 0.0,
        failed=summary.failed,
    )


def _resident_mib() -> int:
    """The most that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def sessions(engines: int, requests: int) -> str:
    """A workload section of about that many requests, at the same load for each engine."""
    return SESSIONS.format(rate=SESSIONS_PER_ENGINE_S * engines, turns=TURNS, requests=requests // TURNS)


def trace_part(trace: Path | None, limit: int) -> Iterator[Speed]:
    """Eight engines in blocks of either size, and a part step by step."""

    def workload(requests: int) -> str:
        if trace is None:
            return sessions(8, requests)
        return f"{{type: trace, file: {trace.absolute()}, limit: {requests}}}"

    part = max(limit // 12, 100)
    yield run("all", workload(limit), 8)
    yield run("all, large blocks", workload(limit), 8, block_tokens=512)
    yield run("a part", workload(part), 8)
    yield run("a part, step by step", workload(part), 8, steps_at_once=1)


def growth_charts(speeds: Sequence[Speed], course: Sequence[Point]) -> Iterator[Chart]:
    """CPU time per request against requests, and against engines where each has as much to do; dashed is what n log n would be."""
    by_engines: dict[str, list[tuple[float, float]]] = {}
    for one in speeds:
        by_engines.setdefault(f"{one.engines} engines", []).append((one.requests, one.us_per_request))
    if course:
        label = f"{LARGE[0]:,} engines, one run"
        by_engines[label] = [(p.requests, 1e6 * (p.cpu_s - course[0].cpu_s) / p.requests) for p in course[1:]]
    lines = [
        Line(label=label, points=points, colour=i) for i, (label, points) in enumerate(by_engines.items()) if points[1:]
    ]
    yield Chart(
        title="CPU time per request, by requests",
        x_unit="requests",
        y_unit="us",
        lines=[*lines, *map(n_log_n, lines)],
        log_x=True,
    )
    even = [(float(one.engines), one.us_per_request) for one in speeds if one.requests == EACH * one.engines]
    if even:
        line = Line(label=f"{EACH} requests for each engine", points=even)
        from_there = Line(label=line.label, points=[point for point in even if point[0] >= JUDGED])
        yield Chart(
            title="CPU time per request, by engines",
            x_unit="engines",
            y_unit="us",
            lines=[line, n_log_n(from_there, EACH)],
            log_x=True,
        )


def n_log_n(line: Line, each: int = 1) -> Line:
    """How a line would go on from its first point if the whole cost grew as n log n, n being `each` times x."""
    first, us = line.points[0] if line.points else (2.0, 0.0)
    assert us is not None
    points = [(x, us * log2(each * x) / log2(each * first)) for x, _ in line.points]
    return Line(label="n log n", points=points, colour=line.colour, faint=True)


def show(title: str, speeds: Sequence[Speed]) -> None:
    columns = ("run", "engines", "block", "requests", "virtual s", "CPU s", "x real time", "us/request", "us/(request log2 n)",
               "events", "RSS MiB", "TTFT p50 s", "hit rate", "failed")  # fmt: skip
    rows = [
        (
            one.what, one.engines, one.block_tokens, one.requests, one.virtual_s, one.cpu_s, one.times_real, one.us_per_request,
            one.us_per_request / log2(one.requests), one.events, one.resident_mib, one.ttft_p50_s, one.hit_rate, one.failed,
        )
        for one in speeds
    ]  # fmt: skip
    report.table(title, columns, rows)


def main() -> None:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, help="Mooncake JSONL")
    parser.add_argument("--limit", type=int, default=12_031, help="requests of the trace part")
    parser.add_argument("--large", action="store_true", help="1,000 engines and 1,000,000 requests, and nothing else")
    parser.add_argument("--growth", action="store_true", help="the growth part, and nothing else")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw the growth part there")
    parser.add_argument("--course", type=Path, metavar="FILE", help="a large run's figures, to be in the plot as well")
    args = parser.parse_args()
    if args.large:
        engines, requests = LARGE
        course = Course(args.json)
        large = [run("sessions", sessions(engines, requests), engines, progress=course)]
        show("One large fleet", large)
        report.save(args.json, {"large": large, "course": course.points})
        return
    growth = GROWTH
    if args.smoke:
        args.limit, growth = 400, {8: (400, 800), 64: (400,)}
    first = [] if args.growth else list(trace_part(args.trace, args.limit))
    if first:
        show("Eight engines", first)
    second = [run("sessions", sessions(engines, n), engines) for engines, numbers in growth.items() for n in numbers]
    show("Growth, at equal load per engine", second)
    report.save(args.json, {"trace": first, "growth": second})
    if args.plot is not None:
        points = [] if args.course is None else msgspec.json.decode(args.course.read_bytes(), type=Large).course
        args.plot.write_text(draw_file(list(growth_charts(second, points)), STYLE))


if __name__ == "__main__":
    main()
