"""What waits in the gateway, in our words and in llm-d's.

Bands are labelled by name, as configured, so labels are bounded; tenants are no label at all. llm-d's `fairness_id` has its default, and
its `priority` is the band's name. Its `inference_pool` is the model, and `MODEL/prefill` for requests that wait for a prefill endpoint too.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from beaconry.io.exposition import Family
from beaconry.io.histogram import histogram
from beaconry.router.statistics import BandFigures, FlowStatistics
from beaconry.values.outcome import Outcome
from beaconry.values.stage import Stage

_LABELS = ["model", "band", "stage"]
_LLM_D = ["fairness_id", "priority", "inference_pool", "model_name", "target_model_name"]
_OUTCOMES = {
    Outcome.QUEUE_FULL: "RejectedCapacity",
    Outcome.QUEUE_EXPIRED: "EvictedTTL",
    Outcome.NO_ENDPOINT: "EvictedNoEndpoints",
    Outcome.CLIENT_GONE: "EvictedContextCancelled",
    Outcome.DISPLACED: "EvictedOther",
}
"""llm-d's words for requests that were never dispatched; all others are RejectedOther."""
_STAGES = {Stage.PREFILL: "prefill", Stage.WHOLE: "decode"}
"""llm-d's words for the parts of a pool."""


def flow_metrics(flow: FlowStatistics) -> Iterator[Family]:
    """All families."""
    rows = [([band.model, band.band, band.stage.value], band) for band in flow.bands]
    for name, text in (
        ("requests", "Requests that wait for dispatch."),
        ("tokens", "Their prompt tokens."),
        ("bytes", "Their prompt bytes."),
    ):
        queued = GaugeMetricFamily(f"beaconry_flow_queued_{name}", text, labels=_LABELS)
        for labels, band in rows:
            queued.add_metric(labels, getattr(band, f"queued_{name}"))
        yield queued
    yield histogram(
        "beaconry_flow_wait_seconds",
        "From arrival to dispatch, of dispatched requests.",
        _LABELS,
        ((labels, band.waits) for labels, band in rows),
    )
    dropped = CounterMetricFamily(
        "beaconry_flow_dropped_total", "Requests that ended without dispatch.", labels=[*_LABELS, "outcome"]
    )
    for labels, band in rows:
        for outcome, count in band.dropped.items():
            dropped.add_metric([*labels, outcome.value], count)
    yield dropped
    saturation = GaugeMetricFamily(
        "beaconry_flow_saturation_ratio", "How much of what the engines can use they have.", labels=["model", "stage"]
    )
    for (model, stage), share in flow.saturation.items():
        saturation.add_metric([model, stage.value], share)
    yield saturation
    yield from _llm_d(flow)


def _llm_d(flow: FlowStatistics) -> Iterator[Family]:
    prefix = "llm_d_epp_flow_control"
    size = GaugeMetricFamily(f"{prefix}_queue_size", "Requests that wait.", labels=_LLM_D)
    held = GaugeMetricFamily(f"{prefix}_queue_bytes", "Their prompt bytes.", labels=_LLM_D)
    total = CounterMetricFamily(
        f"{prefix}_requests_total",
        "Requests that left the queue, by how.",
        labels=["outcome", "priority", "inference_pool"],
    )
    for band in flow.bands:
        pool = _pool(band)
        labels = ["default-flow", band.band, pool, band.model, band.model]
        size.add_metric(labels, band.queued_requests)
        held.add_metric(labels, band.queued_bytes)
        counts = {"Dispatched": band.waits.count}
        for outcome, count in band.dropped.items():
            word = _OUTCOMES.get(outcome, "RejectedOther")
            counts[word] = counts.get(word, 0) + count
        for word, count in counts.items():
            total.add_metric([word, band.band, pool], count)
    yield from (size, held, total)
    yield histogram(
        f"{prefix}_request_queue_duration_seconds",
        "From arrival to dispatch.",
        [*_LLM_D, "outcome"],
        (
            (["default-flow", band.band, _pool(band), band.model, band.model, "Dispatched"], band.waits)
            for band in flow.bands
        ),
    )
    saturation = GaugeMetricFamily(
        f"{prefix}_pool_saturation", "1 where the engines can use no more.", labels=["inference_pool", "stage"]
    )
    for model in dict.fromkeys(model for model, _ in flow.saturation):
        shares = {stage: share for (its, stage), share in flow.saturation.items() if its == model}
        saturation.add_metric([model, "effective"], max(shares.values()))
        if Stage.PREFILL in shares:
            for stage, word in _STAGES.items():
                saturation.add_metric([model, word], shares.get(stage, 1.0))
    yield saturation
    for name, share in flow.room.items():
        if name != "tokens":
            yield GaugeMetricFamily(f"{prefix}_global_capacity_utilization_{name}", "Share of the bound in use.", share)


def _pool(band: BandFigures) -> str:
    return f"{band.model}/prefill" if band.stage is Stage.PREFILL else band.model
