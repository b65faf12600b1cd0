import json
import re
from html import unescape
from html.parser import HTMLParser
from itertools import product
from xml.etree import ElementTree as ET

import pytest

from beaconry.workload.charts import Chart, Line, Mark, draw, draw_file
from beaconry.workload.report import render_html
from beaconry.workload.result import Result
from beaconry.workload.sample import Sample, Slo
from beaconry.workload.summary import summarise


def result(label="run a", slower=1.0, **more):
    samples = [
        Sample(
            index=n,
            planned_s=n / 10,
            sent_s=n / 10,
            first_s=n / 10 + 0.1 * slower + n / 1000,
            end_s=n / 10 + 1.5 * slower,
            output_tokens=20,
            gaps_s=(0.02 * slower, 0.03),
            endpoint=f"engine-{n % 2}",
            error="status 503" if n == 7 else None,
            detail="<script>alert(1)</script>" if n == 7 else "",
        )
        for n in range(50)
    ]
    summary = summarise(samples, slo=Slo(ttft_s=0.13, itl_s=0.1), warmup_s=0.5)
    return Result(
        label=label,
        target="http://h:1",
        model="m",
        started_at="t",
        workload={"rate": 1.0, "trace": None},
        summary=summary,
    )


class Checker(HTMLParser):
    """Fails on tags that are not closed in order; collects addresses."""

    VOID = frozenset(("meta",))

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


@pytest.mark.parametrize("results", [[result()], [result(), result("b", 2.0), result("c", 0.5)]])
def test_a_page_is_well_formed_and_needs_no_network(results):
    page = render_html(results)
    assert parsed(page).addresses == []
    assert "@import" not in page
    assert "url(" not in page
    assert page.count("<svg ") == 8


def test_a_page_for_a_run_without_any_success_says_so():
    empty = result()
    failed = Result(label="x", target="t", model="m", started_at="t", workload={}, summary=summarise([]))
    assert "nothing measured" in render_html([failed])
    assert "nothing measured" not in render_html([empty])
    assert "no request is counted" in render_html([failed])


def test_text_from_outside_is_escaped():
    page = render_html([result("<b>label</b>")])
    assert "<script>alert(1)" not in page
    assert "<b>label</b>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_several_runs_share_each_chart_and_have_their_own_colour():
    page = render_html([result(), result("b", 2.0)])
    first = json.loads(unescape(re.search(r'data-lines="([^"]*)"', page).group(1)))
    assert [line["label"] for line in first] == ["run a", "b"]
    assert [line["colour"] for line in first] == [0, 1]


def test_the_same_results_give_the_same_page():
    assert render_html([result()]) == render_html([result()])


def path(chart):
    return re.search(r' d="([^"]*)"', draw(chart)).group(1)


def test_a_missing_value_interrupts_the_line():
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 1.0)]
    assert path(Chart(title="t", x_unit="s", y_unit="", lines=[Line(label="a", points=points)])).count("M") == 2


def test_everything_stays_inside_the_frame():
    far, near = [(1e-9, 0.0), (0.5, 50.0), (2000.0, 100.0)], [(0.0, 0.0), (50.0, 50.0), (60.0, 100.0)]
    for log_x, points in product((True, False), (far, near)):
        lines = [Line(label="a", points=points)]
        chart = Chart(title="t", x_unit="ms", y_unit="%", lines=lines, distribution=True, log_x=log_x)
        places = [float(number) for number in re.findall(r"[ML ]([\d.]+)", path(chart))]
        assert max(places) <= 560
        assert min(places) >= 22
        assert min(float(x) for x in re.findall(r"[ML]([\d.]+)", path(chart))) >= 56


def test_values_of_nought_can_be_drawn():
    line = Line(label="a", points=[(0.0, 0.0), (0.0, 0.0)])
    for log_x in (True, False):
        assert "<svg" in draw(Chart(title="t", x_unit="", y_unit="", lines=[line], log_x=log_x))


def test_charts_in_a_file_of_their_own_bring_style_and_labels():
    line, limit = Line(label="a < b", points=[(1, 2), (3, 4)]), Line(label="limit", points=[(1, 3)], faint=True)
    charts = [Chart(title=title, x_unit="s", y_unit="", lines=[line, limit]) for title in ("first", "second")]
    root = ET.fromstring(draw_file(charts, ".line { fill: none; }"))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert texts.count("a < b") == 2
    assert "limit" not in texts
    assert {"first", "second"} <= set(texts)
    assert root[0].text == ".line { fill: none; }"


def test_a_mark_is_drawn_with_its_label():
    chart = Chart(
        title="t", x_unit="ms", y_unit="", lines=[Line(label="a", points=[(1, 1)])], marks=[Mark(label="SLO <1", x=2)]
    )
    assert "SLO &lt;1" in draw(chart)
