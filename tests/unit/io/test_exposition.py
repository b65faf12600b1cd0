"""What is written fast is what `prometheus_client` writes slowly."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from beaconry.io.exposition import SLICE_LINES, Lines, further, labels, number, page, simple
from beaconry.io.histogram import histogram
from beaconry.router.statistics import Histogram

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\x85\u2028\u2029"), max_size=8)
NUMBERS = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False)


class Given:
    """A collector of given families."""

    def __init__(self, families):
        self._families = families

    def collect(self):
        return self._families


def parsed(text):
    """Everything the page says, without regard to the order of labels."""
    return [
        (family.name, family.type, family.documentation, [(s.name, s.labels, s.value) for s in family.samples])
        for family in text_string_to_metric_families(text)
    ]


def written(*families):
    return b"".join(page(families)).decode()


@given(st.lists(st.tuples(TEXTS, TEXTS, NUMBERS), max_size=5), TEXTS)
def test_families_say_what_the_client_library_makes_of_them(rows, text):
    families = [
        GaugeMetricFamily("a_gauge", "Of " + text, labels=["one", "two"]),
        CounterMetricFamily("a_counter_total", "Counts.", labels=["one", "two"]),
        CounterMetricFamily("plain_total", "Without labels.", 3),
    ]
    for one, two, value in rows:
        families[0].add_metric([one, two], value)
        families[1].add_metric([one, two], value)
    summary = SummaryMetricFamily("a_summary", "Sums.", labels=["one"])
    summary.add_metric(["x"], 3, 0.5)
    registry = CollectorRegistry()
    registry.register(Given([*families, summary]))
    assert parsed(written(*families, summary)) == parsed(generate_latest(registry).decode())


@given(st.lists(st.tuples(TEXTS, TEXTS, NUMBERS), max_size=5))
def test_lines_say_what_a_family_with_the_same_rows_says(rows):
    family = GaugeMetricFamily("a_gauge", "A text.", labels=["a", "b", "c"])
    for one, two, value in rows:
        family.add_metric([one, two, "x"], value)
    lines = simple(
        "gauge",
        "a_gauge",
        "A text.",
        [(further(labels(("a", "b"), row[:2]), "c", "x"), row[2]) for row in rows],
    )
    assert written(lines) == written(family)


def test_a_histogram_has_cumulative_buckets_a_count_and_a_sum():
    values = Histogram((0.5, 1.0))
    for value in (0.1, 0.7, 3.0):
        values.add(value)
    text = written(histogram("h_seconds", "Takes.", ["m"], [(["x"], values.snapshot())]))
    assert text.splitlines()[2:] == [
        'h_seconds_bucket{m="x",le="0.5"} 1.0',
        'h_seconds_bucket{m="x",le="1.0"} 2.0',
        'h_seconds_bucket{m="x",le="+Inf"} 3.0',
        'h_seconds_count{m="x"} 3.0',
        'h_seconds_sum{m="x"} 3.8',
    ]


@pytest.mark.parametrize(("value", "text"), [(inf, "+Inf"), (-inf, "-Inf"), (nan, "NaN"), (True, "1.0"), (3, "3.0")])
def test_numbers_are_written_as_prometheus_reads_them(value, text):
    assert number(value) == text


def test_a_label_may_be_added_to_none():
    assert further(labels((), ()), "le", 'a"b') == '{le="a\\"b"}'


def test_a_page_comes_in_slices_of_so_many_lines_however_long_its_families_are():
    families = [Lines("gauge", f"g{i}", "Some.", ["g 1\n"] * count) for i, count in enumerate((10, 3 * SLICE_LINES, 0))]
    slices = list(page(families))
    assert [each.count(b"g 1\n") for each in slices] == [SLICE_LINES] * 3 + [10]
    assert (
        b"".join(slices)
        == "".join(
            f"# HELP {family.name} Some.\n# TYPE {family.name} gauge\n{''.join(family.lines)}" for family in families
        ).encode()
    )
