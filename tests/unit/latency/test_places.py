"""Places: learnt from requests that wait for nothing else, and never wrong for long."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from beaconry.latency.places import Places


def learnt(limit: int) -> Places:
    places = Places()
    for second in range(3):
        places.filled(limit, float(second))
    assert places.limit == limit
    return places


def test_nothing_is_known_until_several_waits_agree():
    places = Places()
    places.filled(5, 0.0)
    places.filled(24, 1.0)
    places.filled(11, 2.0)
    places.filled(18, 3.0)
    assert places.limit == inf
    assert places.allowed(100.0) == inf


def test_waits_that_agree_tell_the_most_that_ran():
    places = Places()
    for second, running in enumerate((31, 32, 30)):
        places.filled(running, float(second))
    assert places.limit == 32


def test_waits_too_long_apart_do_not_add_up():
    places = Places()
    for minute in range(5):
        places.filled(32, 60.0 * minute)
    assert places.limit == inf


def test_a_number_that_runs_is_proof():
    places = learnt(16)
    places.ran(20, 3.0)
    assert places.limit == 20


def test_lower_evidence_lowers_the_limit_slowly():
    places = learnt(32)
    for second in range(3):
        places.filled(16, 10.0 + second)
    assert 28 < places.limit < 32


def test_a_trial_that_fails_is_repeated_less_and_less_often():
    places, pauses, now_s = learnt(32), [], 2.0
    for _ in range(6):
        since_s = now_s
        while places.allowed(now_s) == 32:
            now_s += 0.5
        pauses.append(now_s - since_s)
        assert places.allowed(now_s) == 33
        places.filled(32, now_s)
        for _ in range(2):
            places.filled(32, now_s)
    assert pauses == sorted(pauses)
    assert pauses[0] <= 5
    assert 30 <= pauses[-1] <= 61


@given(wrong=st.integers(1, 255), right=st.integers(2, 256))
def test_a_limit_that_is_too_low_heals_within_seconds(wrong: int, right: int):
    """An engine that always has requests waiting in the gateway: as many as are allowed are there, as many as it has places run."""
    places, now_s = learnt(min(wrong, right)), 2.0
    for _ in range(40):
        now_s += 0.5
        there = int(min(places.allowed(now_s), right + 1))
        if there > right:
            places.filled(right, now_s)
        else:
            places.ran(there, now_s)
    assert places.limit == right
