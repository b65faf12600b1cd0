"""What fetching KV costs is known from size and bandwidth, or supposed, and then learnt from decode legs."""

from random import Random

import pytest

from beaconry.latency.kv_links import KvLinks
from beaconry.latency.rates import RateBook
from beaconry.values.endpoint import Endpoint

ENDPOINT = Endpoint(name="d", host="h", port=1, model="m", variant="v")


def test_before_any_leg_fetching_is_bytes_over_bandwidth():
    links = KvLinks(RateBook(), kv_bytes_per_token=131_072, bytes_per_s=50e9)
    assert links.fetch_s(ENDPOINT, 10_000) == pytest.approx(10_000 * 131_072 / 50e9)
    assert links.statistics() == {}


def test_where_the_bytes_are_not_known_it_is_a_tenth_of_computing():
    rates = RateBook()
    assert KvLinks(rates).fetch_s(ENDPOINT, 1000) == pytest.approx(100 * rates.rates("v").token_s)


@pytest.mark.parametrize("token_s", [4e-6, 4e-5])
def test_decode_legs_teach_it_whatever_the_step_after_it_takes(token_s: float):
    links, rng = KvLinks(RateBook()), Random(1)
    for _ in range(1000):
        tokens = rng.randrange(2000, 30_000)
        links.observe(ENDPOINT, tokens, 0.03 + token_s * tokens)
    assert links.fetch_s(ENDPOINT, 10_000) == pytest.approx(10_000 * token_s, rel=0.3)
    assert links.statistics()["v"].legs == 1000


def test_a_handshake_of_seconds_moves_little():
    links, rng = KvLinks(RateBook()), Random(1)
    for _ in range(200):
        links.observe(ENDPOINT, 5000 + rng.randrange(10_000), 0.1)
    before_s = links.fetch_s(ENDPOINT, 10_000)
    links.observe(ENDPOINT, 10_000, 38.0)
    assert links.fetch_s(ENDPOINT, 10_000) < 1.05 * before_s
