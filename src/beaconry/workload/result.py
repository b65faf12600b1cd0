"""A run's result as a file: the summary with what was run against what. `figures` and `latencies` lay several side by side."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from beaconry.values.errors import OperatorError
from beaconry.workload.distribution import Distribution
from beaconry.workload.sample import Sample
from beaconry.workload.summary import Summary

VERSION = 1
Spread = Callable[[Summary], Distribution | None]
_Wanted = tuple[str, str, Callable[[Summary], float | None], bool | None]
"""Name, unit, figure and whether higher is better."""


class Timing(Struct, frozen=True, kw_only=True, array_like=True):
    """One success of a run, in seconds since its start: what `beaconry fit` reads. A row of numbers, in this order."""

    endpoint: str
    """"" where nobody names it."""
    sent_s: float
    first_s: float
    end_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Result(Struct, frozen=True, kw_only=True):
    """One run. `version` is the layout of this file and rises when a field changes its meaning."""

    version: int = VERSION
    label: str
    target: str
    model: str
    started_at: str
    """Wall-clock time, ISO 8601."""
    workload: dict[str, str | int | float | None]
    """What was asked for: every setting needed to run it again."""
    summary: Summary
    client_cpu: float | None = None
    """Share of one core that the client took. Near 1 means that the client was the bottleneck."""
    timings: tuple[Timing, ...] = ()
    """Every success that tells its tokens, those of the warm-up included: they loaded the engine as well."""


class Row(Struct, frozen=True, kw_only=True):
    """One figure of several results."""

    name: str
    unit: str
    values: tuple[float | None, ...]
    higher_is_better: bool | None = None
    """None where neither is."""

    def best(self) -> float | None:
        """The best of several different values, None if there is no such thing."""
        known = [value for value in self.values if value is not None]
        if self.higher_is_better is None or len(set(known)) < 2:
            return None
        return max(known) if self.higher_is_better else min(known)

    def changes(self) -> tuple[float | None, ...]:
        """Each value against the first, -0.1 for a tenth less; None where one is missing or nothing has changed."""
        first = self.values[0]
        return tuple(value / first - 1 if value and first and value != first else None for value in self.values)


def timings(samples: Iterable[Sample]) -> tuple[Timing, ...]:
    """The successes among samples, in order of sending."""
    found = [
        Timing(
            endpoint=sample.endpoint or "",
            sent_s=sample.sent_s,
            first_s=sample.first_s,
            end_s=sample.end_s,
            prompt_tokens=sample.prompt_tokens,
            cached_tokens=sample.cached_tokens or 0,
            output_tokens=sample.output_tokens,
        )
        for sample in samples
        if sample.error is None and sample.first_s is not None and sample.prompt_tokens and sample.output_tokens
    ]
    return tuple(sorted(found, key=lambda timing: timing.sent_s))


def encode_result(result: Result) -> bytes:
    """The result as indented JSON, with a line per request at its end."""
    head = msgspec.json.format(msgspec.json.encode(replace(result, timings=())), indent=1)
    lines = b",\n  ".join(map(msgspec.json.encode, result.timings))
    return head.replace(b'"timings": []', b'"timings": [\n  ' + lines + b"\n ]") + b"\n"


def decode_result(data: bytes, place: str) -> Result:
    """Read a result. Raises OperatorError naming `place` if it is none, or is of another version."""
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version == VERSION:
            return msgspec.json.decode(data, type=Result)
    except msgspec.MsgspecError as error:
        raise OperatorError(f"{place}: not a result of `beaconry bench --json`: {error}") from error
    raise OperatorError(
        f"{place}: the result has version {version}, this Beaconry reads version {VERSION}; run the bench again"
    )


def figures(results: Sequence[Result]) -> list[Row]:
    """Counts, rates and shares of the results, side by side in their order; shares in %. A figure that no result has is left out."""
    return _rows(
        results,
        [
            ("requests", "", lambda s: s.requests, None),
            ("left out as warm-up", "", lambda s: s.warming or None, None),
            ("failed", "", lambda s: s.failed, False),
            ("request throughput", "/s", lambda s: s.requests_per_s, True),
            ("output throughput", "tokens/s", lambda s: s.output_tokens_per_s, True),
            ("prompt throughput", "tokens/s", lambda s: s.prompt_tokens_per_s, None),
            ("SLO attainment", "%", lambda s: _percent(s.attainment), True),
            ("goodput", "/s", lambda s: s.goodput, True),
            ("prefix hit rate", "%", lambda s: _percent(s.hit_rate), True),
            ("ideal hit rate", "%", lambda s: _percent(s.ideal_hit_rate), None),
        ],
    )


def latencies(results: Sequence[Result]) -> list[Row]:
    """Percentiles of the results' latencies and of the client's lag, side by side in their order, in ms."""
    return _rows(
        results,
        [
            *(
                (f"{name} {point}", "ms", partial(_milli, spread, point), False)
                for name, spread in LATENCIES.items()
                for point in ("p50", "p90", "p99")
            ),
            ("client lag p99", "ms", partial(_milli, _lag_s, "p99"), None),
        ],
    )


LATENCIES: dict[str, Spread] = {
    "TTFT": lambda summary: summary.ttft_s,
    "ITL": lambda summary: summary.itl_s,
    "TPOT": lambda summary: summary.tpot_s,
    "E2E": lambda summary: summary.e2e_s,
}
"""The latencies of a request, by the field's names."""


def spreads(summary: Summary) -> dict[str, Distribution]:
    """Every distribution that was measured, by name, the client's lag last."""
    every = {**{name: spread(summary) for name, spread in LATENCIES.items()}, "client lag": summary.lag_s}
    return {name: spread for name, spread in every.items() if spread is not None}


def _rows(results: Sequence[Result], wanted: Sequence[_Wanted]) -> list[Row]:
    rows = []
    for name, unit, figure, higher_is_better in wanted:
        values = tuple(figure(result.summary) for result in results)
        if any(value is not None for value in values):
            rows.append(Row(name=name, unit=unit, values=values, higher_is_better=higher_is_better))
    return rows


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _milli(spread: Spread, point: str, summary: Summary) -> float | None:
    values = spread(summary)
    return None if values is None else 1000 * float(getattr(values, point))


def _lag_s(summary: Summary) -> Distribution | None:
    return summary.lag_s


class _Versioned(Struct):
    version: int
