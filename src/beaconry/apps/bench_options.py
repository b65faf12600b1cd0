"""The command line of `beaconry bench`. `bench_plan.py` makes of it what it asks for."""

import argparse
import math
import string
from pathlib import Path

from beaconry.workload.synthetic import Bounds
from beaconry.workload.traces import MOONCAKE_BLOCK_TOKENS

DEFAULT_RATE = 1.0
TOKEN = frozenset(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
"""Characters of a header name (RFC 9110, token)."""
DEFAULT_REQUESTS = 100
"""Openings of a made-up workload that has neither a number nor a duration."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare all options, in groups as the help shows them."""
    _add_target_options(parser)
    _add_trace_options(parser)
    _add_synthetic_options(parser)
    _add_arrival_options(parser)
    _add_result_options(parser)


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target")
    group.add_argument("--url", default="http://127.0.0.1:8080", help="base address, with or without /v1 (%(default)s)")
    group.add_argument("--model", default="", help="model name (the first of /v1/models)")
    group.add_argument(
        "--api", choices=("chat", "completions"), default="chat", help="chat or plain completions (%(default)s)"
    )
    group.add_argument("--api-key", type=_bearer, metavar="KEY", help="sent as `authorization: Bearer KEY`")
    group.add_argument(
        "--header",
        action="append",
        type=_header,
        default=[],
        metavar="'NAME: VALUE'",
        help="one more header; may be repeated",
    )
    group.add_argument(
        "--max-connections",
        type=_positive,
        default=1024,
        metavar="N",
        help="requests beyond it wait, their clock running (%(default)s)",
    )
    group.add_argument(
        "--timeout-s", type=_above_zero, default=600.0, metavar="S", help="planned time to end of answer (%(default)g)"
    )
    group.add_argument(
        "--chars-per-token", type=_above_zero, default=4.0, metavar="X", help="of the model's tokenizer (%(default)g)"
    )
    group.add_argument(
        "--honour-eos",
        action="store_true",
        help="let the model end its answers early, instead of asking for exact lengths",
    )


def _add_trace_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("replay a trace")
    group.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="Mooncake JSONL, Azure CSV or a recording of the gateway's, told apart by content",
    )
    group.add_argument(
        "--speedup", type=_above_zero, default=1.0, metavar="X", help="compress the trace's time (%(default)g)"
    )
    group.add_argument("--skip", type=_count, default=0, metavar="N", help="leave out the first N requests")
    group.add_argument("--limit", type=_positive, metavar="N", help="replay at most N requests")
    group.add_argument(
        "--scale-lengths",
        type=_above_zero,
        default=1.0,
        metavar="X",
        help="factor on all lengths; sharing stays exact (%(default)g)",
    )
    group.add_argument(
        "--trace-block-tokens",
        type=_positive,
        default=MOONCAKE_BLOCK_TOKENS,
        metavar="N",
        help="tokens per hash id of a Mooncake trace (%(default)s)",
    )
    group.add_argument("--trace-model", metavar="NAME", help="which of a recording's models, if it has several")


def _add_synthetic_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("or make requests up")
    group.add_argument(
        "--requests", type=_positive, metavar="N", help=f"requests to send ({DEFAULT_REQUESTS}, unless --duration)"
    )
    group.add_argument(
        "--groups", type=_count, default=0, metavar="N", help="groups that share a prefix; 0: all prompts differ"
    )
    group.add_argument(
        "--zipf",
        type=_not_negative,
        default=1.0,
        metavar="S",
        help="skew of the groups' popularity; 0: even (%(default)g)",
    )
    group.add_argument(
        "--prefix-tokens",
        type=_bounds,
        default=Bounds(low=2048, high=2048),
        metavar="N[:M]",
        help="length of shared prefixes (2048)",
    )
    group.add_argument(
        "--suffix-tokens",
        type=_bounds,
        default=Bounds(low=256, high=256),
        metavar="N[:M]",
        help="length of a prompt's own part (256)",
    )
    group.add_argument(
        "--output-tokens",
        type=_bounds,
        default=Bounds(low=128, high=128),
        metavar="N[:M]",
        help="length of answers (128)",
    )
    group.add_argument(
        "--sessions", type=_positive, metavar="N", help="conversations to open, instead of --requests; --rate is theirs"
    )
    group.add_argument(
        "--turns", type=_positive, default=5, metavar="N", help="turns of each conversation (%(default)s)"
    )
    group.add_argument(
        "--think-s",
        type=_not_negative,
        default=2.0,
        metavar="S",
        help="mean pause between answer and next turn (%(default)g)",
    )


def _add_arrival_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("arrivals")
    group.add_argument(
        "--rate",
        type=_above_zero,
        metavar="R",
        help=f"arrivals per second ({DEFAULT_RATE:g}; with --trace: the trace's own times)",
    )
    group.add_argument("--arrivals", choices=("poisson", "fixed", "gamma"), default="poisson", help="(%(default)s)")
    group.add_argument(
        "--burstiness",
        type=_above_zero,
        default=0.5,
        metavar="K",
        help="shape of gamma arrivals: below 1 bursts, 1 is Poisson (%(default)g)",
    )
    group.add_argument("--duration", type=_above_zero, metavar="S", help="send nothing after S seconds")
    group.add_argument(
        "--seed", type=int, default=0, help="of arrivals, lengths and words; a new one finds caches cold (%(default)s)"
    )


def _add_result_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result")
    group.add_argument(
        "--warmup-s",
        type=_not_negative,
        default=0.0,
        metavar="S",
        help="requests planned earlier are not counted (%(default)g)",
    )
    group.add_argument("--slo-ttft-ms", type=_above_zero, metavar="MS", help="target for the time to first token")
    group.add_argument(
        "--slo-itl-ms", type=_above_zero, metavar="MS", help="target for a request's mean time between tokens"
    )
    group.add_argument("--label", help="the run's name in tables and plots (the target's address)")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the result, for --compare")
    group.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained report with plots")
    group.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="load nothing: lay the results of these files side by side",
    )


def _bearer(key: str) -> tuple[str, str]:
    if not (key.isascii() and key.isprintable()):
        raise argparse.ArgumentTypeError("the key holds characters that cannot stand in a header")
    return "authorization", f"Bearer {key}"


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not name or not set(name) <= TOKEN or not (value.isascii() and value.isprintable()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a header such as 'x-team: search'")
    return name, value


def _bounds(text: str) -> Bounds:
    low, colon, high = text.partition(":")
    bounds = Bounds(low=_positive(low), high=_positive(high if colon else low))
    if bounds.high < bounds.low:
        raise argparse.ArgumentTypeError(f"{text!r}: the upper bound is below the lower one")
    return bounds


def _number(text: str, kind: type[int] | type[float], lowest: float, *, included: bool) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number) and (number > lowest or (included and number == lowest)):
        return number
    what = "a whole number" if kind is int else "a number"
    raise argparse.ArgumentTypeError(f"{text!r} is not {what} {'of at least' if included else 'above'} {lowest:g}")


def _positive(text: str) -> int:
    return int(_number(text, int, 1, included=True))


def _count(text: str) -> int:
    return int(_number(text, int, 0, included=True))


def _above_zero(text: str) -> float:
    return _number(text, float, 0.0, included=False)


def _not_negative(text: str) -> float:
    return _number(text, float, 0.0, included=True)
