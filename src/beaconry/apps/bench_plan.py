"""What the command line of `beaconry bench` asks for: the plan, its target, the load's options and the latency targets."""

import argparse
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from beaconry.apps.bench_options import DEFAULT_RATE, DEFAULT_REQUESTS
from beaconry.io.load.client import LoadOptions
from beaconry.io.load.target import Target, first_model, parse_target
from beaconry.values.errors import OperatorError
from beaconry.workload import arrivals
from beaconry.workload.plan import Plan
from beaconry.workload.sample import Slo
from beaconry.workload.synthetic import Bounds, Shape, conversations
from beaconry.workload.traces import Replay, read_trace, replay

DESCRIBED = (
    "trace", "speedup", "skip", "limit", "scale_lengths", "trace_block_tokens",
    "trace_model", "rate", "arrivals", "burstiness", "requests", "duration",
    "groups", "zipf", "prefix_tokens", "suffix_tokens", "sessions", "turns", "think_s", "output_tokens", "seed", "warmup_s", "api",
    "max_connections", "timeout_s", "chars_per_token",
)  # fmt: skip
"""Options that make a run what it is: they go into the result."""


def make_target(args: argparse.Namespace) -> Target:
    """The server to load; asks it for its model if none is given."""
    headers = (*args.header, args.api_key) if args.api_key else tuple(args.header)
    target = parse_target(args.url, args.model, headers)
    return target if target.model else parse_target(args.url, first_model(target), headers)


def make_load_options(args: argparse.Namespace) -> LoadOptions:
    """How to send."""
    return LoadOptions(
        chat=args.api == "chat",
        timeout_s=args.timeout_s,
        max_connections=args.max_connections,
        ignore_eos=not args.honour_eos,
    )


def make_slo(args: argparse.Namespace) -> Slo | None:
    """Latency targets in seconds, None without any."""
    if args.slo_ttft_ms is None and args.slo_itl_ms is None:
        return None
    return Slo(
        ttft_s=None if args.slo_ttft_ms is None else args.slo_ttft_ms / 1000,
        itl_s=None if args.slo_itl_ms is None else args.slo_itl_ms / 1000,
    )


def make_plan(args: argparse.Namespace) -> Plan:
    """What to send and when."""
    return _trace_plan(args) if args.trace else _synthetic_plan(args)


def describe(args: argparse.Namespace) -> dict[str, str | int | float | None]:
    """The options that make the run, as numbers and words."""
    described: dict[str, str | int | float | None] = {}
    for name in DESCRIBED:
        value = getattr(args, name)
        described[name] = value if value is None or isinstance(value, int | float) else _words(value)
    return described


def _words(value: object) -> str:
    if isinstance(value, Bounds):
        return str(value.low) if value.low == value.high else f"{value.low}:{value.high}"
    return value.name if isinstance(value, Path) else str(value)


def _trace_plan(args: argparse.Namespace) -> Plan:
    """The whole part to be replayed is read first: a bad line in the middle is found before the run."""
    if args.requests or args.sessions or args.groups:
        raise OperatorError(
            "--trace replays what the file holds: use --limit and --skip, not --requests, --sessions or --groups"
        )
    how = Replay(
        speedup=args.speedup,
        skip=args.skip,
        limit=args.limit,
        scale_lengths=args.scale_lengths,
        block_tokens=args.trace_block_tokens,
    )
    times = _arrival_times(args, args.rate, Random(f"arrivals {args.seed}")) if args.rate else None
    requests = list(
        replay(read_trace(_lines(args.trace), str(args.trace), how.block_tokens, args.trace_model), how, times)
    )
    if not requests:
        raise OperatorError(f"{args.trace}: no request is left after skipping {args.skip}")
    size = sum(request.at_s < (args.duration or math.inf) for request in requests)
    return Plan(requests, size=size, until_s=args.duration)


def _synthetic_plan(args: argparse.Namespace) -> Plan:
    if args.requests and args.sessions:
        raise OperatorError("--requests counts single requests and --sessions conversations: give one of them")
    shape = Shape(
        prompt_tokens=args.suffix_tokens,
        output_tokens=args.output_tokens,
        turns=args.turns if args.sessions else 1,
        think_s=args.think_s,
        groups=args.groups,
        prefix_tokens=args.prefix_tokens,
        zipf=args.zipf,
    )
    openings = args.sessions or args.requests or (None if args.duration else DEFAULT_REQUESTS)
    times = _arrival_times(args, args.rate or DEFAULT_RATE, Random(f"arrivals {args.seed}"))
    requests = conversations(shape, islice(times, openings), Random(f"lengths {args.seed}"))
    size = None if openings is None or args.duration else openings * shape.turns
    return Plan(requests, size=size, until_s=args.duration)


def _arrival_times(args: argparse.Namespace, rate: float, rng: Random) -> Iterator[float]:
    if args.arrivals == "fixed":
        return arrivals.fixed(rate)
    return arrivals.gamma(rate, 1.0 if args.arrivals == "poisson" else args.burstiness, rng)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"--trace {path}: cannot read: {error}") from error
