"""Whoever predicts badly is passed over, and comes back once it is right again."""

import pytest

from beaconry.latency.track_record import Quantity, TrackRecord
from beaconry.values.candidate import Source

SHADOW, CLOSED, NONE = Source.SHADOW, Source.CLOSED_FORM, Source.TOKEN_LOAD


def note(record, times, *, shadow, closed):
    """Both predictors predict the truth times so much."""
    for i in range(times):
        record.note(SHADOW, Quantity.TTFT, shadow if i % 2 else 1 / shadow, 1.0)
        record.note(CLOSED, Quantity.TTFT, closed if i % 2 else 1 / closed, 1.0)
    return record


def test_the_shadow_is_believed_from_the_start():
    assert TrackRecord().source is SHADOW
    assert note(TrackRecord(), 50, shadow=1.1, closed=1.3).source is SHADOW


def test_a_shadow_three_times_off_gives_way_to_the_closed_form_and_comes_back():
    record = note(TrackRecord(), 100, shadow=1.1, closed=1.3)
    note(record, 60, shadow=3.0, closed=1.3)
    assert record.source is CLOSED
    assert record.fallbacks == 1
    note(record, 150, shadow=1.1, closed=1.3)
    assert record.source is SHADOW
    assert record.fallbacks == 1


def test_where_both_are_far_off_neither_is_believed_until_one_is_right_again():
    record = note(TrackRecord(), 100, shadow=4.0, closed=4.0)
    assert record.source is NONE
    note(record, 150, shadow=4.0, closed=1.2)
    assert record.source is CLOSED
    note(record, 150, shadow=1.1, closed=1.2)
    assert record.source is SHADOW


def test_a_shadow_clearly_worse_than_the_closed_form_gives_way_within_its_band():
    record = note(TrackRecord(), 200, shadow=1.35, closed=1.12)
    assert record.source is CLOSED
    note(record, 200, shadow=1.05, closed=1.12)
    assert record.source is SHADOW


def test_an_error_at_the_edge_of_the_band_does_not_flap():
    record = note(TrackRecord(), 100, shadow=1.6, closed=1.6)
    before = record.fallbacks
    for error in (1.45, 1.5, 1.45, 1.5, 1.45, 1.5) * 5:
        note(record, 20, shadow=error, closed=error)
    assert record.fallbacks - before <= 1


def test_accuracy_tells_error_coverage_and_drift():
    record = TrackRecord()
    for _ in range(100):
        record.note(SHADOW, Quantity.ITL, 1.0, 1.25, high=2.0)
    for _ in range(100):
        record.note(SHADOW, Quantity.ITL, 1.0, 1.25, high=1.1)
    found = record.errors[SHADOW, Quantity.ITL].accuracy()
    assert found.outcomes == 200
    assert found.mape == pytest.approx(0.2)
    assert found.median_error == pytest.approx(0.2)
    assert found.coverage == 0.5
    assert found.drift == pytest.approx(0.25)


def test_without_outcomes_nothing_is_claimed():
    found = TrackRecord().errors[SHADOW, Quantity.TTFT].accuracy()
    assert (found.outcomes, found.mape, found.median_error, found.coverage) == (0, None, None, None)
