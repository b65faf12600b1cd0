"""What stalls a reply is told by the second, weighted by those who meet it."""

import pytest

from beaconry.latency.interference import Interference


def test_nothing_is_known_before_a_sequence_has_decoded():
    met = Interference()
    met.age()
    assert met.step_s is None
    assert met.stretch == 1.0


def test_prefill_stretches_steps_by_its_share():
    met = Interference()
    met.note(4, 0.010, 0.0)
    met.note(4, 0.010, 0.030)
    assert met.step_s == pytest.approx(0.010)
    assert met.stretch == pytest.approx(2.5)


def test_a_step_counts_for_each_of_its_sequences():
    met = Interference()
    met.note(1, 0.010, 0.030)
    met.note(9, 0.020, 0.0)
    assert met.step_s == pytest.approx(0.019)
    assert met.stretch == pytest.approx(1 + 0.03 / 0.19)


def test_many_equal_steps_are_noted_at_once():
    one_by_one, at_once = Interference(), Interference()
    for _ in range(50):
        one_by_one.note(3, 0.012, 0.001)
    at_once.note(150, 0.012, 0.001)
    assert one_by_one.step_s == pytest.approx(at_once.step_s)
    assert one_by_one.stretch == pytest.approx(at_once.stretch)


def test_a_new_load_is_believed_after_some_hundred_requests():
    met = Interference()
    for prefill_s in (0.0, 0.010):
        for _ in range(300):
            met.age()
            met.note(5, 0.010, prefill_s)
    assert met.stretch == pytest.approx(2.0, abs=0.06)
