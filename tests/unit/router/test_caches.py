"""What an endpoint's cache is worth to a request: matched tokens wherever they lie, and the seconds to load those beside the GPU."""

import pytest

from beaconry.config.gateway import Offloading
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.rates import RateBook
from beaconry.latency.tier_loads import TierLoads
from beaconry.router.caches import Caches
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import BlockStored, SourceState, Tier
from beaconry.values.request import Api, Request

SIZE = 16
KEYS = tuple(range(100, 140))
PROMPT = 40 * SIZE + 5


def endpoint(name):
    return Endpoint(name=name, host="h", port=1, model="m")


def request(**fields):
    given = {"keys": KEYS, "key_tokens": SIZE, "prefix": tuple(range(10)), "prompt_tokens": PROMPT, **fields}
    return Request(id="r", model="m", api=Api.CHAT, arrived_s=0.0, **given)


def caches(*names, states=SourceState.EXACT, kv_bytes=1_000_000):
    """One second per thousand tokens from the host, ten per thousand from elsewhere."""
    knobs = Offloading(
        kv_bytes_per_token=kv_bytes, cpu_bytes_per_s=1e9, storage_bytes_per_s=1e8, shared_bytes_per_s=1e8
    )
    found = Caches(ApproximateIndex(), ExactIndex(), TierLoads(RateBook(), knobs))
    for name in names:
        found.changed(name, 0, states)
    return found


def store(found, name, tier, first, last, size=SIZE):
    """Blocks `first` to `last` of the prompt are in a tier."""
    event = BlockStored(block_hashes=KEYS[first:last], parent_hash=None, token_ids=(), block_tokens=size, tier=tier)
    found.exact.apply(name, 0, [event])


def view(found, name, **fields):
    return found.find(request(**fields)).view(endpoint(name))


def test_blocks_beside_the_gpu_count_as_matched_and_come_with_the_seconds_to_load_them():
    found = caches("a")
    store(found, "a", Tier.GPU, 0, 10)
    store(found, "a", Tier.CPU, 0, 30)
    seen = view(found, "a")
    assert (seen.matched_tokens, seen.exact) == (30 * SIZE, True)
    assert seen.loads == ((Tier.CPU, 20 * SIZE),)
    assert seen.load_s == pytest.approx(0.32)


def test_each_tier_goes_on_where_the_faster_one_ends():
    found = caches("a")
    store(found, "a", Tier.GPU, 0, 10)
    store(found, "a", Tier.CPU, 10, 20)
    store(found, "a", Tier.STORAGE, 0, 25)
    assert view(found, "a").loads == ((Tier.CPU, 10 * SIZE), (Tier.STORAGE, 5 * SIZE))


def test_the_last_token_is_computed_wherever_the_rest_is():
    found = caches("a")
    store(found, "a", Tier.CPU, 0, 40)
    seen = view(found, "a", prompt_tokens=40 * SIZE)
    assert seen.matched_tokens == 40 * SIZE - 1
    assert seen.loads == ((Tier.CPU, 40 * SIZE - 1),)


def test_a_shared_store_is_everybodys_and_sets_an_endpoint_apart_only_by_the_loading_it_saves():
    found = caches("a", "b", "c")
    store(found, "a", Tier.SHARED, 0, 30)
    store(found, "b", Tier.GPU, 0, 20)
    views = {name: view(found, name) for name in "abc"}
    assert {seen.matched_tokens for seen in views.values()} == {30 * SIZE}
    assert views["a"].loads == views["c"].loads == ((Tier.SHARED, 30 * SIZE),)
    assert views["b"].loads == ((Tier.SHARED, 10 * SIZE),)
    assert views["a"].load_s == views["c"].load_s == pytest.approx(4.8)


def test_an_endpoint_without_events_can_load_from_the_shared_store_all_the_same():
    found = caches("a")
    store(found, "a", Tier.SHARED, 0, 30)
    seen = view(found, "silent")
    assert (seen.matched_tokens, seen.exact) == (30 * SIZE, False)


def test_what_another_request_is_prefilling_need_not_be_loaded():
    found = caches("a")
    store(found, "a", Tier.CPU, 0, 30)
    found.approximate.routed("a", request().prefix)
    seen = view(found, "a", block_tokens=32.0)
    assert seen.sharers == 1
    assert (seen.matched_tokens, seen.loads) == (30 * SIZE, ((Tier.CPU, 10 * SIZE),))


def test_blocks_of_another_size_than_the_requests_keys_are_no_exact_view():
    found = caches("a")
    store(found, "a", Tier.GPU, 0, 10, size=2 * SIZE)
    found.approximate.routed("a", request().prefix)
    seen = view(found, "a", block_tokens=32.0)
    assert (seen.exact, seen.matched_tokens) == (False, 10 * 32)


def test_engines_of_two_block_sizes_live_side_by_side():
    found = caches("a", "b")
    store(found, "a", Tier.GPU, 0, 10)
    store(found, "b", Tier.GPU, 0, 10, size=2 * SIZE)
    assert view(found, "a").matched_tokens == 10 * SIZE
    assert view(found, "b").matched_tokens == 0


@pytest.mark.parametrize("states", [SourceState.DEGRADED, SourceState.COLD])
def test_what_is_not_known_exactly_is_not_counted_on(states):
    found = caches("a", states=states)
    store(found, "a", Tier.CPU, 0, 30)
    assert (view(found, "a").matched_tokens, view(found, "a").loads) == (0, ())


def test_a_prompt_displaces_nothing_where_it_is_held_although_another_gateway_sent_it_there():
    found = caches("a", "b")
    for name, others in (("a", range(1000, 1010)), ("b", range(2000, 2010))):  # both are full of something else
        found.approximate.sized(name, 10)
        found.approximate.confirmed(found.approximate.routed(name, tuple(others)), 0)
    store(found, "a", Tier.GPU, 0, 40)
    holder, stranger = view(found, "a"), view(found, "b")
    assert (holder.known_tokens, holder.displaced_tokens) == (40 * SIZE, 0.0)
    assert stranger.known_tokens == 0
    assert stranger.displaced_tokens > 0
