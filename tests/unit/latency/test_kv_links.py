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


@pytest.mark.parametrize("token_s", [4e-7, 4e-6, 4e-5])
def test_decode_legs_teach_it_whatever_the_step_after_it_takes(token_s: float):
    links, rng = KvLinks(RateBook()), Random(1)
    for _ in range(1000):
        tokens = rng.randrange(2000, 30_000)
        links.observe(ENDPOINT, tokens, 0.03 + token_s * tokens)
    assert links.fetch_s(ENDPOINT, 10_000) == pytest.approx(10_000 * token_s, rel=0.01)
    assert links.statistics()["v"].legs == 1000


@pytest.mark.parametrize(("token_s", "rel"), [(2.5e-5, 0.1), (1.6e-6, 0.4)])
def test_waiting_for_steps_and_for_other_transfers_is_not_taken_for_the_link(token_s: float, rel: float):
    """An engine asks and takes what has come between two steps of 10 ms; on TCP, and on InfiniBand, where all that is less than a step."""
    links, rng = KvLinks(RateBook()), Random(1)
    for _ in range(500):
        tokens = rng.randrange(500, 12_000)
        others_s = rng.choice((0.0, 0.0, token_s * rng.randrange(500, 12_000)))
        steps = -(-(0.005 + others_s + token_s * tokens) // 0.01)
        links.observe(ENDPOINT, tokens, rng.uniform(0.0, 0.01) + 0.01 * (1 + steps))
    assert links.fetch_s(ENDPOINT, 10_000) == pytest.approx(10_000 * token_s, rel=rel)


def test_where_all_fetch_alike_the_time_of_a_token_stays_what_it_was():
    links, rng = KvLinks(RateBook()), Random(1)
    for _ in range(300):
        tokens = rng.randrange(1000, 20_000)
        links.observe(ENDPOINT, tokens, 0.03 + 1e-5 * tokens)
    for _ in range(2000):
        links.observe(ENDPOINT, 4000, 0.07)
    assert links.fetch_s(ENDPOINT, 10_000) == pytest.approx(0.1, rel=0.05)


def test_times_that_fall_with_the_tokens_make_fetching_all_but_free():
    links = KvLinks(RateBook())
    for tokens in (1000, 20_000) * 300:
        links.observe(ENDPOINT, tokens, 0.2 - 5e-6 * tokens)
    assert 0.0 < links.fetch_s(ENDPOINT, 10_000) < 1e-4


def test_a_handshake_of_seconds_moves_little():
    links, rng = KvLinks(RateBook()), Random(1)
    for _ in range(200):
        links.observe(ENDPOINT, 5000 + rng.randrange(10_000), 0.1)
    before_s = links.fetch_s(ENDPOINT, 10_000)
    links.observe(ENDPOINT, 10_000, 38.0)
    assert links.fetch_s(ENDPOINT, 10_000) < 1.05 * before_s
