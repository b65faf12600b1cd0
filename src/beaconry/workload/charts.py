"""Line charts as inline SVG: no network, no library, colours from the page's CSS so that they suit light and dark.

Each chart carries its points as JSON for the page's pointer read-out (the script in `page.py`).
"""

import math
from collections.abc import Sequence
from html import escape

import msgspec
from msgspec import Struct

from beaconry.workload.wording import in_short

WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 22, 36
"""Margins around the plot, in SVG units."""
FEW_TIMES = 8
"""Values that span less than this factor are drawn on a linear scale."""


class Line(Struct, frozen=True, kw_only=True):
    """One series. A `y` of None interrupts the line. `colour` numbers the page's palette; `faint` lines are dashed."""

    label: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0
    faint: bool = False


class Mark(Struct, frozen=True, kw_only=True):
    """A labelled vertical line at `x`."""

    label: str
    x: float


class Chart(Struct, frozen=True, kw_only=True):
    """What to draw. Read-outs follow x (time series), or y (distributions, where y is a share in %)."""

    title: str
    x_unit: str
    y_unit: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    distribution: bool = False
    log_x: bool = False


class _Scale(Struct, frozen=True, kw_only=True):
    """Maps data from `low`..`high` to SVG units `start`..`end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where `value` is drawn; what lies below the scale is drawn at its beginning."""
        measure = math.log if self.log else float
        share = (measure(max(value, self.low)) - measure(self.low)) / (measure(self.high) - measure(self.low))
        return round(self.start + (self.end - self.start) * share, 1)

    def ticks(self) -> list[float]:
        """Round numbers within the scale: 1, 2, 5 and their tenfolds (fewer over many decades), or about five equal steps."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(decades) <= 4 else (1,)
            every = [factor * 10.0**decade for decade in decades for factor in factors]
            return [tick for tick in every if self.low <= tick <= self.high]
        step = _round_up((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [step * number for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def draw(chart: Chart) -> str:
    """The chart as an HTML figure; a line of text if there is nothing to draw."""
    scales = _scales(chart)
    if scales is None:
        return f'<figure class="chart"><figcaption>{escape(chart.title)}</figcaption><p class="empty">nothing measured</p></figure>'
    x, y = scales
    parts = _parts(chart, x, y)
    return (
        f'<figure class="chart" data-by="{"y" if chart.distribution else "x"}" data-lines="{escape(_read_outs(chart, x, y))}">'
        f"<figcaption>{escape(chart.title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">{"".join(parts)}'
        '<g class="pointer"></g></svg></figure>'
    )


def draw_file(charts: Sequence[Chart], style: str) -> str:
    """Charts one below the other as an SVG file of its own, with `style` and a label at the end of each line that is not faint."""
    groups = []
    for number, chart in enumerate(charts):
        scales = _scales(chart)
        if scales is None:
            continue
        x, y = scales
        title = f'<text class="marked" x="{LEFT}" y="{TOP - 10}">{escape(chart.title)}</text>'
        labels = (_end_label(line, x, y) for line in chart.lines if not line.faint)
        groups.append(
            f'<g transform="translate(0 {number * HEIGHT})">{title}{"".join(_parts(chart, x, y))}{"".join(labels)}</g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT * len(charts)}" width="{WIDTH}" '
        f'font-family="system-ui, sans-serif"><style>{style}</style>{"".join(groups)}</svg>\n'
    )


def _end_label(line: Line, x: _Scale, y: _Scale) -> str:
    x_value, y_value = [(x, y) for x, y in line.points if y is not None][-1]
    return (
        f'<text class="marked" x="{x.place(x_value)}" y="{y.place(y_value) - 6}" text-anchor="end">'
        f"{escape(line.label)}</text>"
    )


def _scales(chart: Chart) -> tuple[_Scale, _Scale] | None:
    """Both axes; None if there is nothing to draw."""
    xs = [x for line in chart.lines for x, y in line.points if y is not None] + [mark.x for mark in chart.marks]
    ys = [y for line in chart.lines for _, y in line.points if y is not None]
    if not ys:
        return None
    top = 100.0 if chart.distribution else _top(max(ys))
    return _x_scale(xs, log=chart.log_x), _Scale(low=0.0, high=top, start=HEIGHT - BOTTOM, end=TOP)


def _parts(chart: Chart, x: _Scale, y: _Scale) -> list[str]:
    return [*_grid(x, y, chart), *(_path(line, x, y) for line in chart.lines), *_marks(chart.marks, x)]


def _x_scale(xs: Sequence[float], *, log: bool) -> _Scale:
    """Time series begin at 0. Distributions are logarithmic, unless their values are so close that a logarithm has few round numbers."""
    end = WIDTH - RIGHT
    if not log:
        return _Scale(low=0.0, high=max(xs) or 1.0, start=LEFT, end=end)
    above_zero = [x for x in xs if x > 0] or [1.0]
    low, high = min(above_zero), max(above_zero) * 1.05
    low = max(low, high / 1e5) / 1.05  # a single outlier near zero must not squeeze everything else
    return _Scale(low=low, high=high, start=LEFT, end=end, log=high > FEW_TIMES * low)


def _top(highest: float) -> float:
    """Where a scale from 0 ends: at the first tick that is not below `highest`."""
    step = _round_up(highest / 5)
    return step * math.ceil(highest / step - 1e-9) if step else 1.0


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 and their tenfolds that is not below `value`; 0 for 0."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if value <= power * factor * (1 + 1e-9))


def _grid(x: _Scale, y: _Scale, chart: Chart) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks():
        at = y.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{tick:,.7g}</text>')
    for tick in x.ticks():
        at = x.place(tick)
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at}" y="{bottom + 15}" text-anchor="middle">{tick:,.7g}</text>')
    parts.append(
        f'<text class="unit" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(chart.x_unit)}</text>'
    )
    parts.append(f'<text class="unit" x="{LEFT - 6}" y="{TOP - 10}" text-anchor="end">{escape(chart.y_unit)}</text>')
    return parts


def _marks(marks: Sequence[Mark], x: _Scale) -> list[str]:
    parts = []
    for mark in marks:
        at = x.place(mark.x)
        side, anchor = (-4, "start") if at < WIDTH * 0.7 else (4, "end")
        parts.append(f'<line class="mark" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="marked" x="{at + side}" y="{TOP - 10}" text-anchor="{anchor}">{escape(mark.label)}</text>'
        )
    return parts


def _path(line: Line, x: _Scale, y: _Scale) -> str:
    steps, pen_down = [], False
    for x_value, y_value in line.points:
        if y_value is None:
            pen_down = False
            continue
        steps.append(f"{'L' if pen_down else 'M'}{x.place(x_value)} {y.place(y_value)}")
        if not pen_down:
            steps.append("h0")  # a point without neighbours is drawn as a dot
        pen_down = True
    return f'<path class="line c{line.colour}{" faint" if line.faint else ""}" d="{"".join(steps)}"/>'


def _read_outs(chart: Chart, x: _Scale, y: _Scale) -> str:
    """JSON for the pointer: per line its label, colour and `[x, y, heading, value]` of each point, places in SVG units."""
    lines = []
    for line in chart.lines:
        points: list[tuple[float, float, str, str]] = []
        for x_value, y_value in line.points:
            if y_value is None:
                continue
            if chart.distribution:
                heading, value = f"p{y_value:g}", f"{in_short(x_value)} {chart.x_unit}"
            else:
                heading, value = f"at {in_short(x_value)} {chart.x_unit}", f"{in_short(y_value)} {chart.y_unit}"
            points.append((x.place(x_value), y.place(y_value), heading, value))
        lines.append({"label": line.label, "colour": line.colour, "points": points})
    return msgspec.json.encode(lines).decode()
