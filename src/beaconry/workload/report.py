"""Results as one self-contained HTML page: plots, tables and settings, readable in light and dark, without any network."""

from collections.abc import Iterator, Sequence
from html import escape

from beaconry.workload.charts import Chart, Line, Mark, draw
from beaconry.workload.distribution import CURVE_POINTS, POINTS, Distribution
from beaconry.workload.page import page
from beaconry.workload.result import LATENCIES, Result, Row, figures, latencies, spreads
from beaconry.workload.summary import Summary
from beaconry.workload.timeline import Timeline
from beaconry.workload.wording import change_in_short, in_short, remarks

COLOURS = 8
"""Size of the page's palette; more results than that share colours."""
MEANINGS = {
    "TTFT": "planned send time to first token",
    "ITL": "between one chunk and the next",
    "TPOT": "mean time per output token of a request",
    "E2E": "planned send time to end",
}
Points = Sequence[tuple[float, float | None]]


def render_html(results: Sequence[Result]) -> str:
    """The page for one result, or for several side by side; they have one axis each and one colour per result."""
    title = "Beaconry bench: " + (results[0].label if len(results) == 1 else "comparison")
    one = results[0] if len(results) == 1 else None
    parts = [
        f"<h1>{escape(title)}</h1>",
        _runs(results),
        _tiles(one.summary) if one else "",
        _remarks(results),
        f'<section class="charts">{"".join(map(draw, charts_of(results)))}</section>',
        _latency_table(one.summary) if one else "",
        _side_by_side(results),
        _errors(results),
        _settings(results),
    ]
    return page(title, "".join(parts))


def _runs(results: Sequence[Result]) -> str:
    """Which line is which run."""
    items = [
        f'<li><span class="key c{number % COLOURS}"></span><b>{escape(result.label)}</b> · {escape(result.model)} at'
        f" {escape(result.target)} · {escape(result.started_at)}</li>"
        for number, result in enumerate(results)
    ]
    return f'<ul class="runs">{"".join(items)}</ul>'


def _tiles(summary: Summary) -> str:
    tiles = [
        _tile("requests", f"{summary.succeeded:,}", "", f"{summary.failed:,} failed, in {in_short(summary.span_s)} s")
    ]
    for name in ("TTFT", "ITL"):
        spread = LATENCIES[name](summary)
        if spread is not None:
            note = f"p90 {in_short(1000 * spread.p90)}, p99 {in_short(1000 * spread.p99)}"
            tiles.append(_tile(f"{name} p50", in_short(1000 * spread.p50), "ms", note))
    tiles.append(
        _tile(
            "output",
            in_short(summary.output_tokens_per_s),
            "tokens/s",
            f"{in_short(summary.requests_per_s)} requests/s",
        )
    )
    if summary.hit_rate is not None:
        ideal = summary.ideal_hit_rate
        note = "" if ideal is None else f"infinite cache: {in_short(100 * ideal)} %"
        tiles.append(_tile("prefix hit rate", in_short(100 * summary.hit_rate), "%", note))
    if summary.attainment is not None and summary.goodput is not None:
        tiles.append(
            _tile("goodput", in_short(summary.goodput), "/s", f"{in_short(100 * summary.attainment)} % within the SLO")
        )
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _tile(name: str, value: str, unit: str, note: str) -> str:
    value = f'<div class="value">{value} <small>{unit}</small></div>'
    return f'<div class="tile"><div class="name">{name}</div>{value}<div class="note">{note}</div></div>'


def _remarks(results: Sequence[Result]) -> str:
    items = [
        f"<li>{escape(remark if len(results) == 1 else f'{result.label}: {remark}')}</li>"
        for result in results
        for remark in remarks(result)
    ]
    return f'<ul class="remarks">{"".join(items)}</ul>' if items else ""


def charts_of(results: Sequence[Result]) -> Iterator[Chart]:
    """Distributions of latencies and series over time, a line per result."""
    slo = results[0].summary.slo
    targets = {"TTFT": slo and slo.ttft_s, "TPOT": slo and slo.itl_s}
    for name, spread in LATENCIES.items():
        target = targets.get(name)
        yield Chart(
            title=f"{name}: {MEANINGS[name]}",
            x_unit="ms",
            y_unit="%",
            lines=_lines(results, [_curve(spread(result.summary)) for result in results]),
            marks=(Mark(label=f"SLO {in_short(1000 * target)} ms", x=1000 * target),) if target else (),
            distribution=True,
            log_x=True,
        )
    times = [result.summary.timeline for result in results]
    warmup = tuple(Mark(label="counted from here", x=time.warmup_s) for time in times[:1] if time and time.warmup_s)
    p50 = _lines(results, [_series(time, time.ttft_p50_s, 1000) if time else () for time in times], " p50", faint=True)
    p90 = _lines(results, [_series(time, time.ttft_p90_s, 1000) if time else () for time in times], " p90")
    output = _lines(results, [_series(time, time.output_tokens_per_s) if time else () for time in times])
    planned = _lines(results, [_series(time, time.planned_per_s) if time else () for time in times])
    failed = _lines(results, [_series(time, time.errors) if time else () for time in times])
    title = "TTFT over time, by planned send time: p90, dashed p50"
    yield Chart(title=title, x_unit="s", y_unit="ms", lines=[*p90, *p50], marks=warmup)
    yield Chart(title="Output over time", x_unit="s", y_unit="tokens/s", lines=output, marks=warmup)
    yield Chart(title="Requests over time, as planned", x_unit="s", y_unit="/s", lines=planned, marks=warmup)
    if any(result.summary.failed for result in results):
        yield Chart(title="Failures over time, by planned send time", x_unit="s", y_unit="", lines=failed, marks=warmup)


def _lines(results: Sequence[Result], points: Sequence[Points], suffix: str = "", *, faint: bool = False) -> list[Line]:
    """One line per result, in its colour."""
    return [
        Line(label=result.label + suffix, points=along, colour=number % COLOURS, faint=faint)
        for number, (result, along) in enumerate(zip(results, points, strict=True))
    ]


def _curve(spread: Distribution | None) -> Points:
    """Milliseconds against the share of values below them in %."""
    if spread is None:
        return ()
    return [(1000 * value, 100 * place / (CURVE_POINTS - 1)) for place, value in enumerate(spread.curve)]


def _series(time: Timeline, values: Sequence[float | None], factor: float = 1.0) -> Points:
    """Bucket middles in seconds against the buckets' values."""
    return [
        ((place + 0.5) * time.bucket_s, None if value is None else value * factor) for place, value in enumerate(values)
    ]


def _latency_table(summary: Summary) -> str:
    rows = [
        "".join([f"<td>{name}</td>", *(f"<td>{in_short(1000 * getattr(spread, point))}</td>" for point in POINTS)])
        for name, spread in spreads(summary).items()
    ]
    return table("Latencies in ms", ["", *POINTS], rows)


def _side_by_side(results: Sequence[Result]) -> str:
    """A row per figure; of several values the best is marked, and the others say how far they are from the first one."""
    if len(results) == 1:
        return table("Figures", ["", "value", "unit"], [_row(row) for row in figures(results)])
    heads = ["", *(result.label for result in results), "unit"]
    return table("Side by side", heads, [_row(row) for row in [*figures(results), *latencies(results)]])


def _row(row: Row) -> str:
    best, cells = row.best(), []
    for value, change in zip(row.values, row.changes(), strict=True):
        marked = ' class="best"' if value is not None and value == best else ""
        moved = f"<small>{'' if change is None else change_in_short(change)}</small>" if len(row.values) > 1 else ""
        cells.append(f"<td{marked}>{'-' if value is None else in_short(value)}{moved}</td>")
    return f'<td>{row.name}</td>{"".join(cells)}<td class="unit">{row.unit}</td>'


def _errors(results: Sequence[Result]) -> str:
    """Every kind of failure with an example, and who served what."""
    items = []
    for result in results:
        whose = "" if len(results) == 1 else f"{result.label}: "
        for kind, number in result.summary.errors.items():
            example = result.summary.error_examples.get(kind, "")
            items.append(f"<li>{escape(f'{whose}{number:,} x {kind}')}{': ' if example else ''}{escape(example)}</li>")
    failures = f'<h2>Failures</h2><ul class="errors">{"".join(items)}</ul>' if items else ""
    names = sorted({name for result in results for name in result.summary.endpoints})
    rows = [
        f"<td>{escape(name)}</td>"
        + "".join(f"<td>{result.summary.endpoints.get(name, 0):,}</td>" for result in results)
        for name in names
    ]
    return failures + (
        table("Requests served by endpoint", ["", *(result.label for result in results)], rows) if rows else ""
    )


def _settings(results: Sequence[Result]) -> str:
    names = dict.fromkeys(name for result in results for name in result.workload)
    rows = [
        f"<td>{escape(name)}</td>" + "".join(f"<td>{escape(str(_setting(result, name)))}</td>" for result in results)
        for name in names
    ]
    settings = table("", ["", *(result.label for result in results)], rows)
    return f"<details><summary>Settings of the workload</summary>{settings}</details>" if rows else ""


def _setting(result: Result, name: str) -> str | int | float:
    value = result.workload.get(name)
    return "-" if value is None else value


def table(title: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    """An HTML table. `rows` are ready cells; `heads` are plain text."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f'{heading}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
