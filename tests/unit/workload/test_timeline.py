import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.workload.sample import Sample
from beaconry.workload.timeline import MOST_BUCKETS, timeline


def sample(planned_s, first_s=None, end_s=None, tokens=10, error=None):
    end_s = planned_s if end_s is None else end_s
    return Sample(
        index=0, planned_s=planned_s, sent_s=planned_s, first_s=first_s, end_s=end_s, output_tokens=tokens, error=error
    )


def test_requests_and_failures_stand_where_they_were_planned():
    series = timeline([sample(0.01, 0.02, 1.05), sample(0.31, error="reset"), sample(0.32, 0.4, 0.5)])
    assert series.bucket_s == 0.1
    assert series.planned_per_s[0] == pytest.approx(10.0)
    assert series.planned_per_s[3] == pytest.approx(20.0)
    assert (series.errors[3], sum(series.errors)) == (1, 1)
    assert series.ttft_p50_s[3] == pytest.approx(0.08)
    assert series.ttft_p90_s[1] is None


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 50), st.floats(0, 200), st.integers(1, 400)), min_size=1))
def test_no_token_is_lost_and_there_are_never_too_many_buckets(drawn):
    samples = [sample(at, at + ttft, at + ttft + rest, tokens) for at, ttft, rest, tokens in drawn]
    series = timeline(samples)
    total = sum(rate * series.bucket_s for rate in series.output_tokens_per_s)
    assert total == pytest.approx(sum(tokens for *_, tokens in drawn), rel=1e-6)
    assert len(series.planned_per_s) <= MOST_BUCKETS + 1
    assert len({len(getattr(series, name)) for name in ("errors", "ttft_p50_s", "output_tokens_per_s")}) == 1


def test_a_run_of_days_still_fits():
    assert len(timeline([sample(0.0, 1.0, 10_000_000.0)]).errors) <= MOST_BUCKETS + 1
