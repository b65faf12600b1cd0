"""How near do simulated engines come to published measurements of real ones: from first principles, and calibrated per variant?

Each published point is a closed loop of clients; the same loop runs here against the engine model in virtual time, so that queueing and
the herd at the start are in the figures as they were in the published ones. Three answers per point:

    prior        the roofline with its global efficiencies and overheads, nothing known of the variant
    calibrated   its terms multiplied by factors fitted to the variant's points (`latency.fitting` does the same for a user's engine)
    left out     the same, fitted without the point it is compared with

A variant has six factors and a time per request. Each is held near what first principles say by a prior as strong as a few points, so
variants with few points move little. Points where requests wait for KV memory are left out of the fit: they are the test of saturation.

    python -m benchmarks.calibration --python     # prints the factors as they stand in engine_model/calibrated.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median

import msgspec
from msgspec import Struct, structs

from beaconry.engine_model.exposure import Exposure
from beaconry.engine_model.least_squares import Equation, solve
from beaconry.engine_model.presets import Variant, variant
from beaconry.engine_model.roofline import Corrections, Roofline
from beaconry.engine_model.values import EngineSettings
from benchmarks import report
from benchmarks.closed_loop import Loop, run

FILE = Path(__file__).with_name("measurements.yaml")
MEMORY_SHARE = 0.9
"""`gpu-memory-utilization` of the published runs; vLLM's default before 0.10."""
TPOT_DEVIATION, TTFT_DEVIATION = 0.03, 0.10
"""How well a point is taken to be measured, and the model able to follow it, relative."""
PRIOR = Corrections(overhead=0.5, prompt=1.0, sequences=1.0, weights=0.15, compute=0.3, kv=0.3)
"""How far the factors are expected to be from 1: little where a data sheet speaks, much where an overhead was guessed."""
REQUEST_S, REQUEST_DEVIATION_S = 0.005, 0.010
"""What is expected of the time per request outside of steps."""
ROUNDS = 4
"""Of simulating with the factors found so far and fitting again; the schedule hardly changes after two."""
SMOKE = frozenset({"gpt-oss-120b/b200x8", "llama-3.1-8b/h100"})

Point = tuple[int, int, int, float | None, float]
"""Prompt tokens, output tokens, clients, TTFT ms, time per output token ms."""


class Source(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where points come from and how they were measured."""

    title: str
    from_: str = msgspec.field(name="from")
    protocol: str
    shortest: float
    """Shortest length as a share of the nominal one."""
    ttft: bool
    """The protocol is known well enough for TTFTs to mean something."""
    set_aside: str = ""
    """Why its points are shown and neither fitted to nor counted."""


class Group(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Points of one variant from one source."""

    variant: str
    source: str
    points: tuple[Point, ...]
    kv_bytes: float = 2.0
    """Bytes per KV element."""


class Measurements(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    sources: dict[str, Source]
    groups: tuple[Group, ...]


class Factors(Struct, frozen=True, kw_only=True):
    """What a fit finds."""

    corrections: Corrections = Corrections()
    request_s: float = 0.0


class Case(Struct, frozen=True, kw_only=True):
    """One point, ready to be simulated."""

    variant: Variant
    source: Source
    point: Point
    kind: str
    """`fit`, or why it is not used for that: `saturated`, `doubtful`, `set aside`."""

    @property
    def loop(self) -> Loop:
        """The load."""
        prompt, output, clients, _, _ = self.point
        return Loop(prompt_tokens=prompt, output_tokens=output, clients=clients, shortest=self.source.shortest)

    @property
    def settings(self) -> EngineSettings:
        """The engine as it was run."""
        settings = self.variant.settings(block_tokens=64, memory_share=MEMORY_SHARE)
        return structs.replace(settings, prefix_caching=False)

    def simulate(self, factors: Factors) -> list[Exposure]:
        """The point's requests under factors."""
        return run(self.loop, self.settings, self.step_time(factors))

    def step_time(self, factors: Factors) -> Roofline:
        """The roofline of the variant under factors, its own published ones left aside."""
        return self.variant.prior().corrected(factors.corrections)


class Errors(Struct, frozen=True, kw_only=True):
    """Relative errors of one point, and of its throughput."""

    ttft: float | None
    tpot: float
    throughput: float | None


class Outcome(Struct, frozen=True, kw_only=True):
    """One point and its errors, under each answer."""

    variant: str
    source: str
    point: Point
    kind: str
    prior: Errors
    calibrated: Errors
    left_out: Errors | None
    """None where the point was not fitted to."""


def cases(measurements: Measurements) -> Iterator[Case]:
    """Every point with its variant and what it can be used for."""
    for group in measurements.groups:
        known = variant(group.variant)
        known = structs.replace(known, model=structs.replace(known.model, kv_bytes=group.kv_bytes))
        source = measurements.sources[group.source]
        for point in group.points:
            kind = "set aside" if source.set_aside else kind_of(point, group.points)
            yield Case(variant=known, source=source, point=point, kind=kind)


def kind_of(point: Point, points: Sequence[Point]) -> str:
    """What a point is good for, by its neighbours with the same lengths.

    Requests wait for memory where twice the clients wait more than two and a half times as long; a point is doubtful if its tokens
    took longer than those of more clients.
    """
    prompt, output, clients, ttft, tpot = point
    same = [other for other in points if other[:2] == (prompt, output)]
    if any(other[2] > clients and other[4] < 0.98 * tpot for other in same):
        return "doubtful"
    half = next((other[3] for other in same if other[2] * 2 == clients), None)
    if ttft is not None and half is not None and ttft > 2.5 * half:
        return "saturated"
    return "fit"


def compare(case: Case, exposures: Sequence[Exposure], request_s: float) -> Errors:
    """Relative errors of means, as published."""
    ttft_ms, tpot_ms = case.point[3:]
    ttft_s = mean(one.first_s - one.arrived_s for one in exposures) + request_s
    tpot_s = mean((one.end_s - one.first_s) / (one.output_tokens - 1) for one in exposures)
    tokens = mean(one.output_tokens - 1 for one in exposures)
    throughput = None
    if ttft_ms is not None:
        throughput = (ttft_ms + tokens * tpot_ms) / 1e3 / (ttft_s + tokens * tpot_s) - 1
    counted = ttft_ms if case.source.ttft else None
    return Errors(
        ttft=None if counted is None else 1e3 * ttft_s / counted - 1,
        tpot=1e3 * tpot_s / tpot_ms - 1,
        throughput=throughput,
    )


def equations(case: Case, exposures: Sequence[Exposure]) -> list[Equation]:
    """What a point says of the factors: two means, linear in the factors as long as the schedule stays."""
    ttft_ms, tpot_ms = case.point[3:]
    terms = range(len(exposures[0].to_end))
    tpot = tuple(mean(one.to_end[i] / (one.output_tokens - 1) for one in exposures) for i in terms)
    found = [Equation((*tpot, 0.0), tpot_ms / 1e3, TPOT_DEVIATION * tpot_ms / 1e3)]
    if ttft_ms is not None and case.source.ttft:
        ttft = tuple(mean(one.to_first[i] for one in exposures) for i in terms)
        found.append(Equation((*ttft, 1.0), ttft_ms / 1e3, TTFT_DEVIATION * ttft_ms / 1e3))
    return found


def refine(factors: Factors, given: Sequence[Equation]) -> Factors:
    """Better factors by equations in multiples of the present ones, and by the prior."""
    present = structs.astuple(factors.corrections)
    size = len(present)
    prior = [
        Equation((*(value if i == j else 0.0 for j in range(size)), 0.0), 1.0, deviation)
        for i, (value, deviation) in enumerate(zip(present, structs.astuple(PRIOR), strict=True))
    ]
    prior.append(Equation((*[0.0] * size, 1.0), REQUEST_S, REQUEST_DEVIATION_S))
    *by, request_s = solve([*given, *prior]).coefficients
    # never quite 0: what has no weight could not come back in the next round
    found = (max(0.02, old * new) for old, new in zip(present, by, strict=True))
    return Factors(
        corrections=Corrections(**dict(zip(Corrections.__struct_fields__, found, strict=True))), request_s=request_s
    )


def calibrate(fitted: Sequence[Case]) -> tuple[Factors, list[Factors]]:
    """Factors from all of a variant's points, and from all but each of them."""
    before = factors = Factors()
    given: list[list[Equation]] = []
    for _ in range(ROUNDS):
        before = factors
        given = [equations(case, case.simulate(before)) for case in fitted]
        factors = refine(before, [one for some in given for one in some])
    without = [
        refine(before, [one for other, some in enumerate(given) if other != number for one in some])
        for number in range(len(given))
    ]
    return factors, without


def judge(of_variant: Sequence[Case]) -> tuple[Factors, list[Outcome]]:
    """Calibrate a variant and compare each of its points."""
    fitted = [case for case in of_variant if case.kind == "fit"]
    factors, without = calibrate(fitted)
    outcomes = []
    for case in of_variant:
        left_out = None
        if case.kind == "fit":
            other = without[fitted.index(case)]
            left_out = compare(case, case.simulate(other), other.request_s)
        outcomes.append(
            Outcome(
                variant=case.variant.name,
                source=case.source.title,
                point=case.point,
                kind=case.kind,
                prior=compare(case, case.simulate(Factors()), 0.0),
                calibrated=compare(case, case.simulate(factors), factors.request_s),
                left_out=left_out,
            )
        )
    return factors, outcomes


def mean_absolute(values: Sequence[float | None]) -> float | None:
    """In percent; None of nothing."""
    known = [abs(value) for value in values if value is not None]
    return 100 * mean(known) if known else None


def show(factors: dict[str, Factors], outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Print the tables; return the totals."""
    columns = (
        "",
        "points",
        *(f"{what} {answer}" for what in ("ITL", "TTFT") for answer in ("prior", "calibr.", "left out")),
    )
    every = [one for one in outcomes if one.kind == "fit"]
    rows = [(name, *_row([one for one in every if one.variant == name])) for name in factors]
    report.table("Mean absolute errors in %, ITL as time per output token", columns, [*rows, ("all", *_row(every))])
    report.table(
        "Where requests wait for KV memory (not fitted to): errors in %",
        ("", "in/out, clients", "throughput prior", "calibrated", "TTFT prior", "calibrated"),
        [
            (one.variant, f"{one.point[0]}/{one.point[1]}, {one.point[2]}", *_signed(one.prior.throughput, one.calibrated.throughput,
             one.prior.ttft, one.calibrated.ttft))
            for one in outcomes if one.kind == "saturated"
        ],
    )  # fmt: skip
    report.table(
        "Factors found",
        ("", *Corrections.__struct_fields__, "request ms"),
        [(name, *structs.astuple(one.corrections), 1e3 * one.request_s) for name, one in factors.items()],
    )
    for kind in ("doubtful", "set aside"):
        some = [one for one in outcomes if one.kind == kind]
        print(
            f"{len(some)} points {kind}, ITL off by {report.cell(mean_absolute([one.prior.tpot for one in some]))} % (prior)"
        )
    saturated = [one.calibrated.throughput for one in outcomes if one.kind == "saturated"]
    names = (
        "points",
        *(f"{what}_{answer}" for what in ("itl", "ttft") for answer in ("prior", "calibrated", "left_out")),
    )
    totals: dict[str, float | None] = dict(zip(names, _row(every), strict=True))
    left_out = [abs(one.left_out.tpot) for one in every if one.left_out is not None]
    return {**totals, "saturation": mean_absolute(saturated), "itl_left_out_median": 100 * median(left_out)}


def _row(some: Sequence[Outcome]) -> tuple[float | None, ...]:
    answers = [
        [one.prior for one in some],
        [one.calibrated for one in some],
        [one.left_out for one in some if one.left_out],
    ]
    return (
        len(some),
        *(mean_absolute([errors.tpot for errors in answer]) for answer in answers),
        *(mean_absolute([errors.ttft for errors in answer]) for answer in answers),
    )


def _signed(*values: float | None) -> list[str]:
    return ["-" if value is None else f"{100 * value:+.1f}" for value in values]


def as_python(factors: dict[str, Factors], outcomes: Sequence[Outcome]) -> str:
    """The table of `engine_model/calibrated.py`."""
    lines = []
    for name, found in factors.items():
        mine = [one for one in outcomes if one.variant == name and one.kind == "fit"]
        _, _, _, itl, _, _, ttft = _row(mine)
        values = ", ".join(f"{field}={value:.3g}" for field, value in structs.asdict(found.corrections).items())
        errors = (
            f"itl_error={itl / 100:.2g}, ttft_error={'None' if ttft is None else f'{ttft / 100:.2g}'}"
            if itl is not None
            else ""
        )
        source = "; ".join(dict.fromkeys(one.source for one in mine))
        lines.append(
            f'    "{name}": Calibration(\n        corrections=Corrections({values}),\n'
            f"        request_s={found.request_s:.2g}, points={len(mine)}, {errors},\n        source={source!r},\n    ),"
        )
    return "\n".join(lines)


def main() -> None:
    """Calibrate every variant that has points."""
    parser = report.options("Simulated engines against published measurements of real ones.")
    parser.add_argument("--python", action="store_true", help="print the factors as Python too")
    parser.add_argument("--points", action="store_true", help="print the errors of every point too")
    args = parser.parse_args()
    measurements = msgspec.yaml.decode(FILE.read_bytes(), type=Measurements)
    every = [case for case in cases(measurements) if not args.smoke or case.variant.name in SMOKE]
    factors: dict[str, Factors] = {}
    outcomes: list[Outcome] = []
    for name in dict.fromkeys(case.variant.name for case in every):
        found, judged = judge([case for case in every if case.variant.name == name])
        outcomes += judged
        if any(one.kind == "fit" for one in judged):
            factors[name] = found
    totals = show(factors, outcomes)
    if args.points:
        show_points(outcomes)
    if args.python:
        print(as_python(factors, outcomes))
    report.save(args.json, {"totals": totals, "factors": factors, "points": outcomes})


def show_points(outcomes: Sequence[Outcome]) -> None:
    """Print all errors."""
    rows = []
    for one in outcomes:
        answers = (one.prior, one.calibrated, one.left_out)
        itl = _signed(*(answer.tpot if answer else None for answer in answers))
        ttft = _signed(*(answer.ttft if answer else None for answer in answers))
        rows.append((one.variant, f"{one.point[0]}/{one.point[1]}, {one.point[2]}", one.kind, *itl, *ttft))
    columns = ("ITL prior", "calibrated", "left out", "TTFT prior", "calibrated", "left out")
    report.table("Every point: errors in %", ("", "in/out, clients", "", *columns), rows)


if __name__ == "__main__":
    main()
