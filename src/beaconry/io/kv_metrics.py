"""What is known of the engines' caches, and how well, as families of the metrics page: feeds, self-test, index and load times.

Labels are bounded: endpoints and their data-parallel ranks come from discovery, tiers and verdicts are closed sets.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from operator import attrgetter
from typing import Any

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from beaconry.io.zmq_events import FeedStatistics
from beaconry.router.caches import CachesStatistics

Feeds = Mapping[tuple[str, int], FeedStatistics]
"""By endpoint and data-parallel rank."""
_FEED_LABELS = ["endpoint", "rank"]


class Verdict(StrEnum):
    """What the self-test says of a source's block hashes."""

    PENDING = "pending"
    """Nothing yet, or it is not asked."""
    AGREED = "agreed"
    """They are ours."""
    TRANSLATED = "translated"
    """They are not; its events are told in ours by the tokens that come with them."""
    OTHER_SIZE = "other-block-size"
    """They are ours, of blocks of another size than configured: no key can match."""


class _Column(Struct, frozen=True):
    """One figure that every feed has."""

    name: str
    text: str
    read: Callable[[FeedStatistics], Any]


_COUNTERS = (
    _Column("messages", "Messages heard, replayed ones included.", attrgetter("messages")),
    _Column("malformed_messages", "Messages that could not be read, dropped.", attrgetter("malformed")),
    _Column("skipped_events", "Events of unknown types.", attrgetter("skipped")),
    _Column("applied_batches", "Batches applied, in order.", attrgetter("stream.applied")),
    _Column("duplicate_batches", "Batches that came again.", attrgetter("stream.duplicates")),
    _Column("gaps", "Times that batches were missing.", attrgetter("stream.gaps")),
    _Column("restarts", "Times that the engine had restarted.", attrgetter("stream.restarts")),
    _Column("replays", "Times that past batches were asked for.", attrgetter("stream.replays")),
    _Column("lost_batches", "Batches that nobody will tell any more.", attrgetter("stream.lost")),
)
_DUAL_COUNTERS = (
    _Column("translated_blocks", "Blocks told in our hashes.", attrgetter("dual_keys.translated")),
    _Column(
        "orphan_blocks",
        "Blocks left out: what came before them or something in their hash is unknown.",
        attrgetter("dual_keys.orphans"),
    ),
    _Column("refused_blocks", "Blocks left out because the table was full.", attrgetter("dual_keys.refused")),
)


def feed_families(feeds: Feeds) -> Iterator[Metric]:
    """How each source's events come in, and whether its hashes are ours."""
    rows = [([name, str(rank)], feed) for (name, rank), feed in feeds.items()]
    translated = [(labels, feed) for labels, feed in rows if feed.dual_keys is not None]
    for columns, members in ((_COUNTERS, rows), (_DUAL_COUNTERS, translated)):
        for column in columns:
            counter = CounterMetricFamily(f"beaconry_kv_feed_{column.name}", column.text, labels=_FEED_LABELS)
            for labels, feed in members:
                counter.add_metric(labels, column.read(feed))
            yield counter
    lag = SummaryMetricFamily(
        "beaconry_kv_feed_lag_seconds",
        "From a live batch's time by the engine's clock until it was applied, by ours.",
        labels=_FEED_LABELS,
    )
    known = GaugeMetricFamily(
        "beaconry_kv_feed_dual_key_blocks", "Blocks known by the engine's hash and by ours.", labels=_FEED_LABELS
    )
    agreement = GaugeMetricFamily(
        "beaconry_kv_feed_hash_agreement_ratio", "Of the blocks verified, those hashed as by us.", labels=_FEED_LABELS
    )
    verdict = GaugeMetricFamily(
        "beaconry_kv_feed_self_test", "1 for the self-test's verdict.", labels=[*_FEED_LABELS, "verdict"]
    )
    for labels, feed in rows:
        lag.add_metric(labels, feed.lags, feed.lag_s)
        if feed.dual_keys is not None:
            known.add_metric(labels, feed.dual_keys.blocks)
        if feed.verdict is not None and feed.verdict.share is not None:
            agreement.add_metric(labels, feed.verdict.share)
        for one in Verdict:
            verdict.add_metric([*labels, one.value], int(verdict_of(feed) is one))
    yield from (lag, known, agreement, verdict)


def verdict_of(feed: FeedStatistics) -> Verdict:
    """The self-test's verdict in a word."""
    if feed.verdict is None:
        return Verdict.PENDING
    if feed.dual_keys is not None:
        return Verdict.TRANSLATED
    return Verdict.AGREED if feed.verdict.exact else Verdict.OTHER_SIZE


def cache_families(caches: CachesStatistics) -> Iterator[Metric]:
    """The index of the engines' blocks, and what loading costs."""
    index = caches.exact
    blocks = GaugeMetricFamily("beaconry_kv_index_blocks", "Different blocks, held by anybody.", labels=["tier"])
    for tier, count in index.blocks.items():
        blocks.add_metric([tier.value], count)
    yield blocks
    held = GaugeMetricFamily(
        "beaconry_kv_index_endpoint_blocks", "Blocks that an endpoint holds.", labels=[*_FEED_LABELS, "tier"]
    )
    for source in index.sources:
        for tier, count in source.blocks.items():
            held.add_metric([source.name, str(source.rank), tier.value], count)
    yield held
    windowed = GaugeMetricFamily(
        "beaconry_kv_index_window_blocks", "Blocks of an endpoint's sliding-window groups.", labels=_FEED_LABELS
    )
    for source in index.sources:
        windowed.add_metric([source.name, str(source.rank)], source.windowed)
    yield windowed
    yield GaugeMetricFamily("beaconry_kv_index_bytes", "Memory that the index takes.", index.bytes)
    yield GaugeMetricFamily("beaconry_kv_index_limit_bytes", "Memory that it may take.", index.limit_bytes)
    for name, text, count in (
        ("stored", "Blocks stored, copies included.", index.stored),
        ("removed", "Blocks removed.", index.removed),
        ("unknown_removals", "Removals of blocks that were not there.", index.unknown),
        ("evicted", "Blocks dropped for want of memory.", index.evicted),
        ("holes", "Holders found to miss a block within their prefix.", index.holes),
    ):
        yield CounterMetricFamily(f"beaconry_kv_index_{name}", text, count)
    load = GaugeMetricFamily(
        "beaconry_tier_load_token_seconds",
        "Time to load a cached token from beside the GPU, as learnt.",
        labels=["variant", "tier"],
    )
    for (variant, tier), learnt in caches.loads.items():
        load.add_metric([variant, tier.value], learnt.token_s)
    yield load
    fetch = GaugeMetricFamily(
        "beaconry_kv_fetch_token_seconds",
        "Time to fetch a prompt's token from the engine that computed it, as learnt.",
        labels=["variant"],
    )
    for variant, learnt in caches.fetches.items():
        fetch.add_metric([variant], learnt.token_s)
    yield fetch
