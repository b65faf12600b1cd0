"""What lower bands leave to higher ones follows from how often and how large those ask."""

import pytest

from beaconry.flowcontrol.demand import Demand


def mixed(top_per_s: float, rest_per_s: float, *, tokens: int = 1000, seconds: int = 120) -> Demand:
    """Two bands for a while, evenly spread; everything is dispatched as it comes."""
    demand = Demand()
    arrivals = [(i / top_per_s, 10) for i in range(int(top_per_s * seconds))]
    arrivals += [(i / rest_per_s, 0) for i in range(int(rest_per_s * seconds))]
    for now_s, priority in sorted(arrivals):
        demand.note(priority, tokens, now_s)
        demand.sent(now_s)
    return demand


def test_a_band_alone_is_not_contested_and_claims_nothing():
    demand = Demand()
    for i in range(1000):
        demand.note(7, 100, 0.1 * i)
        demand.sent(0.1 * i)
    assert not demand.contested
    assert demand.claim(7, 100.0) is None


def test_the_highest_band_leaves_nothing_to_anybody():
    demand = mixed(1.0, 9.0)
    assert demand.contested
    assert demand.claim(10, 120.0) is None


@pytest.mark.parametrize(("share", "requests"), [(0.02, 2), (0.1, 3), (0.15, 3), (0.4, 6), (0.9, 8)])
def test_more_is_claimed_the_more_of_all_comes_from_higher_bands(share: float, requests: int):
    demand = mixed(10 * share, 10 * (1 - share))
    claim = demand.claim(0, 120.0)
    assert claim is not None
    assert claim.requests == requests
    assert claim.tokens == pytest.approx(1000)


def test_a_band_that_has_fallen_silent_claims_nothing_after_a_while():
    demand = mixed(1.0, 9.0)
    assert demand.claim(0, 121.0) is not None
    for i in range(1200):
        demand.note(0, 1000, 120.0 + 0.1 * i)
        demand.sent(120.0 + 0.1 * i)
    assert demand.claim(0, 240.0) is None


def test_the_claim_grows_while_higher_bands_find_no_room_and_shrinks_while_they_do():
    demand = mixed(1.5, 8.5)
    usual = demand.claim(0, 120.0)
    for _ in range(2):
        demand.placed(found_room=False)
    missed = demand.claim(0, 120.1)
    for _ in range(1000):
        demand.placed(found_room=True)
    found = demand.claim(0, 120.2)
    assert usual is not None
    assert missed is not None
    assert found is not None
    assert 1 <= found.requests < usual.requests < missed.requests


def test_a_large_request_is_one_that_few_exceed():
    demand = Demand()
    for i in range(4000):
        now_s = 0.05 * i
        demand.note(10 if i % 2 else 0, 100 + 10 * (37 * i % 200), now_s)
        demand.sent(now_s)
    claim = demand.claim(0, 200.0)
    assert claim is not None
    assert 800 < claim.tokens < 1400
    assert 1600 < claim.large_tokens < 2400


def test_priorities_that_somebody_makes_up_do_not_pile_up():
    demand = Demand()
    for priority in range(1000):
        demand.note(priority, 10, float(priority))
    assert len(demand._streams) <= 16
