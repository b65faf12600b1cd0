import pytest

from beaconry.workload.sample import INTERRUPTED, Sample, Slo
from beaconry.workload.summary import summarise


def sample(at_s=0.0, *, ttft=0.1, gaps=(0.02, 0.02), **more):
    """A request planned at `at_s` with three tokens, sent without delay unless told otherwise."""
    first_s = at_s + ttft
    values = {
        "index": 0,
        "planned_s": at_s,
        "sent_s": at_s,
        "first_s": first_s,
        "end_s": first_s + sum(gaps),
        "gaps_s": gaps,
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "output_tokens": 3,
        "planned_prompt_tokens": 100,
        "planned_output_tokens": 3,
        "ideal_cached_tokens": 50,
    }
    return Sample(**{**values, **more})


def failure(at_s=0.0, error="status 503", **more):
    return Sample(index=0, planned_s=at_s, sent_s=at_s, end_s=at_s + 0.01, error=error, **more)


def test_latencies_count_from_the_planned_time_not_from_sending():
    late = sample(sent_s=5.0, first_s=5.5, end_s=6.0)
    assert (late.ttft_s, late.e2e_s, late.lag_s) == (5.5, 6.0, 5.0)
    summary = summarise([late])
    assert summary.ttft_s.p50 == 5.5
    assert summary.lag_s.max == 5.0


def test_tpot_is_the_mean_over_tokens_after_the_first_and_none_below_two():
    assert sample().tpot_s == pytest.approx(0.02)
    assert sample(output_tokens=1).tpot_s is None
    assert sample(output_tokens=None).tpot_s is None
    assert failure().tpot_s is None


def test_rates_are_over_the_span_from_first_planned_to_last_end():
    summary = summarise([sample(1.0), sample(2.0, ttft=0.96)])
    assert summary.span_s == pytest.approx(2.0)
    assert summary.requests_per_s == pytest.approx(1.0)
    assert summary.output_tokens_per_s == pytest.approx(3.0)
    assert summary.prompt_tokens_per_s == pytest.approx(100.0)


def test_itl_is_over_all_gaps_of_all_requests():
    summary = summarise([sample(gaps=(0.01,)), sample(gaps=(0.03, 0.05))])
    assert summary.itl_s.count == 3
    assert summary.itl_s.p50 == 0.03


def test_the_warm_up_is_left_out_of_every_figure():
    summary = summarise([sample(0.0, ttft=9.0), failure(0.5), sample(2.0)], warmup_s=1.0)
    assert (summary.requests, summary.failed, summary.warming) == (1, 0, 2)
    assert summary.ttft_s.max == pytest.approx(0.1)
    assert summary.prompt_tokens == 100


def test_errors_are_counted_by_kind_with_an_example_and_no_latency():
    summary = summarise([failure(), failure(detail="busy"), failure(error="timeout"), sample()])
    assert summary.errors == {"status 503": 2, "timeout": 1}
    assert summary.error_examples == {"status 503": "busy"}
    assert (summary.requests, summary.succeeded, summary.failed) == (4, 1, 3)
    assert summary.e2e_s.count == 1


def test_interrupted_requests_are_neither_successes_nor_failures():
    summary = summarise([failure(error=INTERRUPTED), sample()], slo=Slo(ttft_s=1.0))
    assert (summary.requests, summary.failed, summary.interrupted) == (1, 0, 1)
    assert summary.attainment == 1.0


def test_failures_miss_the_slo():
    summary = summarise([sample(), sample(), failure(), sample(ttft=0.5)], slo=Slo(ttft_s=0.2))
    assert summary.attainment == 0.5
    assert summary.goodput == pytest.approx(2 / summary.span_s)


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (Slo(), True),
        (Slo(ttft_s=0.1), True),
        (Slo(ttft_s=0.09), False),
        (Slo(itl_s=0.021), True),
        (Slo(itl_s=0.019), False),
        (Slo(ttft_s=0.2, itl_s=0.019), False),
    ],
)
def test_an_slo_is_met_when_every_target_given_is(slo, met):
    assert slo.met_by(sample()) is met


def test_without_slo_there_is_no_goodput():
    summary = summarise([sample()])
    assert summary.attainment is None
    assert summary.goodput is None


def test_hit_rates_are_over_tokens_and_only_where_engines_report_them():
    known, silent = sample(prompt_tokens=300, cached_tokens=60), sample(cached_tokens=None)
    summary = summarise([known, sample(), silent])
    assert summary.hit_rate == pytest.approx(100 / 400)
    assert summary.ideal_hit_rate == pytest.approx(0.5)
    assert summarise([silent]).hit_rate is None


def test_short_replies_and_endpoints_are_counted():
    summary = summarise([sample(output_tokens=2, endpoint="b"), sample(endpoint="a"), sample(endpoint="b")])
    assert summary.short_replies == 1
    assert summary.endpoints == {"a": 1, "b": 2}


def test_no_samples_make_an_empty_summary():
    summary = summarise([], slo=Slo(ttft_s=1.0))
    assert (summary.requests, summary.requests_per_s, summary.attainment, summary.timeline) == (0, 0.0, None, None)
