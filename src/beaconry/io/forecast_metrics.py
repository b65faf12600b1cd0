"""How right the forecasts have been, as metrics: error, coverage and drift of each predictor, whom the router believes, and step times."""

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter

from msgspec import structs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from beaconry.latency.track_record import Accuracy
from beaconry.latency.variant_book import VariantStatistics
from beaconry.values.candidate import Source

_LABELS = ["variant", "source", "quantity"]
_COLUMNS: tuple[tuple[str, str, Callable[[Accuracy], float | None]], ...] = (
    ("error_mean_ratio", "Mean of |predicted / actual - 1| over the latest predictions.", attrgetter("mape")),
    (
        "error_median_ratio",
        "Median of |predicted / actual - 1| over the latest predictions.",
        attrgetter("median_error"),
    ),
    ("coverage_ratio", "Share of outcomes below the upper end of the predicted range.", attrgetter("coverage")),
    ("drift_ratio", "Actual over predicted time of late, less 1.", attrgetter("drift")),
)


def forecast_metrics(variants: Mapping[str, VariantStatistics]) -> Iterator[Metric]:
    """All families; variants come from discovery, so their number is bounded."""
    total = CounterMetricFamily(
        "beaconry_predictions_total", "Predictions that have been held against their outcome.", labels=_LABELS
    )
    for labels, accuracy in _rows(variants):
        total.add_metric(labels, accuracy.outcomes)
    yield total
    for name, text, read in _COLUMNS:
        family = GaugeMetricFamily(f"beaconry_prediction_{name}", text, labels=_LABELS)
        for labels, accuracy in _rows(variants):
            value = read(accuracy)
            if value is not None and accuracy.outcomes:
                family.add_metric(labels, value)
        yield family
    believed = GaugeMetricFamily(
        "beaconry_prediction_source", "1 for the predictor that is believed at present.", labels=["variant", "source"]
    )
    fallbacks = CounterMetricFamily(
        "beaconry_prediction_fallbacks_total", "Times a predictor was given up for a simpler one.", labels=["variant"]
    )
    steps = GaugeMetricFamily(
        "beaconry_step_time", "Learnt step times: seconds per unit of each term.", labels=["variant", "term"]
    )
    for variant, statistics in variants.items():
        for source in Source:
            believed.add_metric([variant, source.value], int(statistics.source is source))
        fallbacks.add_metric([variant], statistics.fallbacks)
        for term, value in structs.asdict(statistics.steps).items():
            steps.add_metric([variant, term], value)
    yield believed
    yield fallbacks
    yield steps


def _rows(variants: Mapping[str, VariantStatistics]) -> Iterator[tuple[list[str], Accuracy]]:
    for variant, statistics in variants.items():
        for (source, quantity), accuracy in statistics.accuracy.items():
            yield [variant, source.value, quantity.value], accuracy
