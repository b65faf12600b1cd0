"""Endpoints that are not known to be closed."""

from beaconry.router.ajar import Ajar


def test_who_was_found_closed_is_asked_again_after_it_was_told_of():
    ajar = Ajar()
    for name in "ab":
        ajar.reopen(name)
    ajar.to((1.0, None)).discard("a")
    assert ajar.to((1.0, None)) == {"b"}
    ajar.reopen("a")
    assert ajar.to((1.0, None)) == {"a", "b"}


def test_who_is_closed_to_one_kind_may_be_open_to_another_one():
    ajar = Ajar()
    ajar.reopen("a")
    ajar.to((0.2, None)).discard("a")
    assert ajar.to((1.0, None)) == ajar.to((0.2, 5)) == {"a"}


def test_kinds_that_somebody_makes_up_do_not_pile_up():
    ajar = Ajar()
    ajar.reopen("a")
    for priority in range(1000):
        assert ajar.to((1.0, priority)) == {"a"}
    assert len(ajar._sets) < 100


def test_who_is_gone_is_forgotten():
    ajar = Ajar()
    ajar.reopen("a")
    ajar.to((1.0, None))
    ajar.forget("a")
    assert ajar.to((1.0, None)) == ajar.to((0.5, None)) == set()
