"""The page tells of each source how its events come in, what the self-test says, and what the index holds."""

import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from beaconry.io.http_server import ServerStatistics
from beaconry.io.kv_metrics import Verdict, cache_families, feed_families, verdict_of
from beaconry.io.metrics import MetricsPage
from beaconry.io.zmq_events import FeedStatistics
from beaconry.kvindex.agreement import Agreement
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.dual_keys import DualKeysStatistics
from beaconry.kvindex.exact import ExactIndex
from beaconry.kvindex.stream import StreamStatistics
from beaconry.latency.rates import RateBook
from beaconry.latency.tier_loads import TierLoads
from beaconry.router.caches import Caches
from beaconry.router.statistics import RouterStatistics
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import BlockStored, SourceState, Tier

STREAM = StreamStatistics(
    state=SourceState.EXACT,
    reason="",
    next_sequence=9,
    waiting=0,
    applied=8,
    duplicates=1,
    gaps=2,
    restarts=3,
    replays=4,
    lost=5,
)
FEED = FeedStatistics(
    stream=STREAM, messages=20, malformed=6, skipped=7, verdict=None, dual_keys=None, lags=4, lag_s=0.5
)
AGREED = Agreement(blocks=8, agreed=8, unverifiable=0, block_tokens=16)
STRANGE = Agreement(blocks=8, agreed=2, unverifiable=0, block_tokens=16, warning="they differ")
DUAL = DualKeysStatistics(blocks=11, translated=12, orphans=13, refused=14)


def samples(families):
    """By name and labels; no series twice."""
    router = RouterStatistics(
        at_s=0.0,
        endpoints=(),
        models={},
        refused=0,
        retries=0,
        recalls=0,
        in_flight=0,
        draining=False,
        plugin_failures={},
    )
    server = ServerStatistics(connections=0, buffered_bytes=0, refused={})
    page = b"".join(MetricsPage(lambda: router, lambda: server, dict, lambda: families).slices()).decode()
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in found, key
            found[key] = sample.value
    return found


def test_each_source_s_counts_are_its_own():
    found = samples(feed_families({("a", 0): FEED, ("a", 1): structs.replace(FEED, malformed=60)}))
    told = {name: found[f"beaconry_kv_feed_{name}_total", "a", "0"] for name in (
        "messages", "malformed_messages", "skipped_events", "applied_batches", "duplicate_batches", "gaps", "restarts", "replays",
        "lost_batches",
    )}  # fmt: skip
    assert list(told.values()) == [20, 6, 7, 8, 1, 2, 3, 4, 5]
    assert found["beaconry_kv_feed_malformed_messages_total", "a", "1"] == 60
    assert (
        found["beaconry_kv_feed_lag_seconds_count", "a", "0"],
        found["beaconry_kv_feed_lag_seconds_sum", "a", "0"],
    ) == (4, 0.5)


@pytest.mark.parametrize(
    ("verdict", "dual", "word"),
    [
        (None, None, Verdict.PENDING),
        (AGREED, None, Verdict.AGREED),
        (STRANGE, DUAL, Verdict.TRANSLATED),
        (structs.replace(AGREED, warning="the engine's blocks have 32 tokens"), None, Verdict.OTHER_SIZE),
    ],
)
def test_exactly_one_verdict_is_1(verdict, dual, word):
    feed = structs.replace(FEED, verdict=verdict, dual_keys=dual)
    assert verdict_of(feed) is word
    found = samples(feed_families({("a", 0): feed}))
    assert [one for one in Verdict if found["beaconry_kv_feed_self_test", "a", "0", one.value]] == [word]


def test_the_dual_key_map_is_told_where_there_is_one():
    strange = structs.replace(FEED, verdict=STRANGE, dual_keys=DUAL)
    found = samples(feed_families({("a", 0): FEED, ("b", 0): strange}))
    assert found["beaconry_kv_feed_orphan_blocks_total", "b", "0"] == 13
    assert found["beaconry_kv_feed_dual_key_blocks", "b", "0"] == 11
    assert found["beaconry_kv_feed_hash_agreement_ratio", "b", "0"] == 0.25
    assert ("beaconry_kv_feed_orphan_blocks_total", "a", "0") not in found


def test_the_index_and_learnt_loads_are_told_by_tier():
    caches = Caches(ApproximateIndex(), ExactIndex(limit_bytes=1 << 20), TierLoads(RateBook()))
    for tier, blocks in ((Tier.GPU, (1, 2)), (Tier.CPU, (1, 2, 3))):
        event = BlockStored(block_hashes=blocks, parent_hash=None, token_ids=(), block_tokens=16, tier=tier)
        caches.exact.apply("a", 0, [event])
    caches.loads.observe(Endpoint(name="a", host="h", port=1, model="m", variant="v"), ((Tier.CPU, 9000),), 0.5, 0)
    caches.links.observe(Endpoint(name="d", host="h", port=1, model="m", variant="decode"), 9000, 0.1)
    found = samples(cache_families(caches.statistics()))
    assert 0 < found["beaconry_kv_fetch_token_seconds", "decode"] < 1e-4
    assert found["beaconry_kv_index_blocks", "cpu"] == 3
    assert found["beaconry_kv_index_endpoint_blocks", "a", "0", "gpu"] == 2
    assert found["beaconry_kv_index_stored_total",] == 5
    assert found["beaconry_kv_index_limit_bytes",] == 1 << 20
    assert found["beaconry_tier_load_token_seconds", "cpu", "v"] > 0


def test_an_empty_fleet_has_its_families_all_the_same():
    caches = Caches(ApproximateIndex(), ExactIndex())
    assert samples(feed_families({}))["beaconry_retries_total",] == 0
    assert samples(cache_families(caches.statistics()))["beaconry_kv_index_blocks", "gpu"] == 0
