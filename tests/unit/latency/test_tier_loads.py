"""What a hit in a slower tier costs is known from sizes and bandwidths, or supposed, and then learnt from first tokens."""

from random import Random

import pytest

from beaconry.config.gateway import Offloading
from beaconry.latency.rates import LegTimes, RateBook
from beaconry.latency.tier_loads import PRIOR_SHARES, TierLoads
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import Tier

ENDPOINT = Endpoint(name="a", host="h", port=1, model="m", variant="v")


def leg_times(ttft_s, tokens):
    return LegTimes(
        now_s=0.0,
        ttft_s=ttft_s,
        decode_s=0.1,
        uncached_tokens=tokens,
        tokens_ahead=0,
        in_flight=0,
        batch=1,
        output_tokens=1,
        prefilled_tokens=0,
    )


def taught(base_s=0.02, token_s=5e-5):
    """A rate book that has seen a hundred legs of such an engine."""
    rates, rng = RateBook(), Random(1)
    for _ in range(100):
        tokens = rng.randrange(10, 20_000)
        rates.observe_end(ENDPOINT, leg_times(base_s + token_s * tokens, tokens))
    return rates


@pytest.mark.parametrize(("tier", "bytes_per_s"), [(Tier.CPU, 25e9), (Tier.STORAGE, 3e9), (Tier.SHARED, 3e9)])
def test_before_any_leg_loading_is_bytes_over_bandwidth(tier, bytes_per_s):
    loads = TierLoads(RateBook(), Offloading(kv_bytes_per_token=131_072))
    assert loads.load_s(ENDPOINT, ((tier, 1000),)) == pytest.approx(1000 * 131_072 / bytes_per_s)


def test_where_the_bytes_are_not_known_it_is_a_share_of_the_learnt_time_to_compute():
    rates = taught(token_s=2e-4)
    loads = TierLoads(rates)
    tokens = 1000 * PRIOR_SHARES[Tier.CPU] + 100 * PRIOR_SHARES[Tier.SHARED]
    seconds = loads.load_s(ENDPOINT, ((Tier.CPU, 1000), (Tier.SHARED, 100)))
    assert seconds == pytest.approx(tokens * rates.rates("v").token_s)
    assert loads.statistics() == {}


@pytest.mark.parametrize("real_s", [1e-6, 2e-5, 4e-5])
@pytest.mark.parametrize("bytes_per_token", [None, 131_072, 4_000_000])
def test_the_real_figure_is_learnt_whatever_was_supposed_and_through_noise(real_s, bytes_per_token):
    rates, rng = taught(), Random(2)
    loads = TierLoads(rates, Offloading(kv_bytes_per_token=bytes_per_token))
    for _ in range(300):
        tokens, computed = rng.randrange(5000, 40_000), rng.randrange(10, 500)
        ttft_s = 0.02 + 5e-5 * computed + real_s * tokens
        waited_s = 0.1 * rng.random() if rng.random() < 0.1 else 0.0
        loads.observe(ENDPOINT, ((Tier.CPU, tokens),), ttft_s * rng.gauss(1.0, 0.05) + waited_s, computed)
    learnt = loads.statistics()["v", Tier.CPU]
    assert learnt.legs == 300
    assert learnt.token_s == pytest.approx(real_s, abs=4e-7, rel=0.15)


def test_one_leg_that_hung_changes_the_figure_little_however_long_it_took():
    loads = TierLoads(taught())
    for _ in range(50):
        loads.observe(ENDPOINT, ((Tier.CPU, 20_000),), 0.02 + 1e-5 * 20_000, 0)
    before = loads.load_s(ENDPOINT, ((Tier.CPU, 1),))
    loads.observe(ENDPOINT, ((Tier.CPU, 20_000),), 600.0, 0)
    assert before < loads.load_s(ENDPOINT, ((Tier.CPU, 1),)) < 1.1 * before


def test_variants_and_tiers_are_learnt_apart():
    loads = TierLoads(taught())
    other = Endpoint(name="b", host="h", port=1, model="m", variant="w")
    before = loads.load_s(other, ((Tier.CPU, 1),))
    loads.observe(ENDPOINT, ((Tier.CPU, 9000),), 1.0, 0)
    assert loads.load_s(other, ((Tier.CPU, 1),)) == before
    assert loads.statistics().keys() == {("v", Tier.CPU)}
