"""The Prometheus text format, written fast: a gateway's page has thousands of lines, and streams wait while it is made.

`Lines` is a family whose lines are made directly, from label texts that are made once and used in many families; it is what everything is
made of that grows with the fleet. Families of `prometheus_client` are written too, without its checks of names at every sample.

Source of the format: Prometheus' exposition formats, text version 0.0.4.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec import Struct
from prometheus_client.core import Metric

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SLICE_LINES = 500
"""A millisecond's work at the most."""
_UNUSUAL = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}


class Lines(Struct, frozen=True, gc=False):
    """One family: its sample lines as they stand on the page, each with its line end."""

    kind: str
    """counter | gauge | histogram | summary."""
    name: str
    """As it stands on the page: a counter's ends in `_total`."""
    text: str
    lines: Iterable[str]
    """Made as they are taken, where they are many."""


Family = Metric | Lines


def page(families: Iterable[Family]) -> Iterator[bytes]:
    """The whole page in slices of `SLICE_LINES` samples."""
    pieces: list[str] = []
    left = SLICE_LINES
    for family in families:
        written = _lines_of(family) if isinstance(family, Metric) else family
        pieces.append(f"# HELP {written.name} {_escaped_text(written.text)}\n# TYPE {written.name} {written.kind}\n")
        lines = iter(written.lines)
        while some := list(islice(lines, left)):
            pieces += some
            left -= len(some)
            if not left:
                yield "".join(pieces).encode()
                pieces, left = [], SLICE_LINES
    yield "".join(pieces).encode()


def labels(names: Iterable[str], values: Iterable[str]) -> str:
    """`{name="value",...}`, empty without names."""
    pairs = ",".join([f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)])
    return f"{{{pairs}}}" if pairs else ""


def further(text: str, name: str, value: str) -> str:
    """What `labels` made, with one label more."""
    one = f'{name}="{_escaped(value)}"'
    return f"{text[:-1]},{one}}}" if text else f"{{{one}}}"


def number(value: float) -> str:
    """A value as the format has it."""
    text = repr(float(value))
    return _UNUSUAL.get(text, text)


def simple(kind: str, name: str, text: str, rows: Iterable[tuple[str, float]]) -> Lines:
    """A family of one line for each label text."""
    return Lines(kind, name, text, (f"{name}{label} {number(value)}\n" for label, value in rows))


def _lines_of(metric: Metric) -> Lines:
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    return Lines(metric.type, name, metric.documentation, _sample_lines(metric))


def _sample_lines(metric: Metric) -> Iterator[str]:
    for sample in metric.samples:
        names = sorted(sample.labels)
        yield f"{sample.name}{labels(names, map(sample.labels.__getitem__, names))} {number(sample.value)}\n"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def _escaped_text(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
