import pytest
from msgspec.structs import replace

from beaconry.values.errors import OperatorError
from beaconry.workload.result import Result, decode_result, encode_result, figures, latencies, spreads, timings
from beaconry.workload.sample import Sample, Slo
from beaconry.workload.summary import summarise


def result(label="a", ttft=0.1, error=None, **more):
    samples = [
        Sample(
            index=n,
            planned_s=float(n),
            sent_s=float(n),
            first_s=n + ttft,
            end_s=n + 1.0,
            output_tokens=11,
            gaps_s=(0.1,),
        )
        for n in range(4)
    ]
    if error:
        samples.append(Sample(index=4, planned_s=0.0, sent_s=0.0, end_s=0.0, error=error, detail="why <it> failed"))
    values = {
        "target": "http://h:1",
        "model": "m",
        "started_at": "2030-01-01T00:00:00+00:00",
        "workload": {"rate": 1.0},
    }
    return Result(label=label, **{**values, **more}, summary=summarise(samples, slo=Slo(ttft_s=0.2)))


def row(rows, name):
    return next(row for row in rows if row.name == name)


def test_a_result_survives_its_file():
    before = result(error="timeout")
    assert decode_result(encode_result(before), "x.json") == before


def test_a_result_has_a_line_per_success_that_tells_its_tokens():
    told = Sample(
        index=1, planned_s=0.0, sent_s=0.25, first_s=0.5, end_s=1.0, prompt_tokens=9, output_tokens=3, endpoint="e"
    )
    others = (
        Sample(index=0, planned_s=0.0, sent_s=0.0, first_s=0.5, end_s=1.0),
        Sample(index=2, planned_s=0.0, sent_s=0.0, end_s=1.0, error="timeout"),
    )
    before = result(timings=timings((*others, told)))
    encoded = encode_result(before)
    assert b'\n  ["e",0.25,0.5,1.0,9,0,3]\n' in encoded
    assert decode_result(encoded, "x.json") == before


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "not a result"),
        (b"[]", "not a result"),
        (b'{"version": 1}', "not a result"),
        (b'{"version": 99, "new": []}', "version 99"),
    ],
)
def test_what_is_no_result_of_this_version_is_refused_by_name(data, words):
    with pytest.raises(OperatorError, match=rf"x\.json: .*{words}"):
        decode_result(data, "x.json")


def test_latencies_are_side_by_side_in_milliseconds():
    rows = latencies([result(), result("b", ttft=0.3)])
    ttft = row(rows, "TTFT p50")
    assert ttft.values == (pytest.approx(100.0), pytest.approx(300.0))
    assert ttft.best() == pytest.approx(100.0)
    assert ttft.changes() == (None, pytest.approx(2.0))


def test_more_goodput_is_better_and_fewer_failures_are():
    rows = figures([result(ttft=0.3, error="timeout"), result("b")])
    assert row(rows, "goodput").best() == row(rows, "goodput").values[1]
    assert row(rows, "failed").best() == 0
    assert row(rows, "requests").best() is None


def test_equal_values_have_no_best_and_a_missing_one_no_change():
    without = replace(result("b"), summary=replace(result().summary, goodput=None))
    goodput = row(figures([result(), without]), "goodput")
    assert goodput.values[1] is None
    assert goodput.changes() == (None, None)
    assert goodput.best() is None
    assert row(figures([result(), result("b")]), "goodput").best() is None


def test_a_figure_that_nobody_has_is_left_out():
    names = {row.name for row in figures([result()])}
    assert "prefix hit rate" not in names
    assert list(spreads(result().summary)) == ["TTFT", "ITL", "TPOT", "E2E", "client lag"]
