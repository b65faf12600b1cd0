"""The forecasts' part of the metrics page."""

from prometheus_client.core import Metric

from beaconry.io.forecast_metrics import forecast_metrics
from beaconry.latency.track_record import Quantity
from beaconry.latency.variant_book import Raw, VariantBook
from beaconry.values.candidate import Prediction

CLOSED = Prediction(ttft_s=0.2, wait_s=0.0, itl_s=0.04, decode_s=4.0, token_s=1e-4)


def page(books):
    """Values by sample name and labels."""
    families: list[Metric] = list(forecast_metrics({name: book.statistics() for name, book in books.items()}))
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_error_coverage_and_drift_are_told_by_predictor_and_quantity():
    book = VariantBook("v", 0.9)
    for _ in range(50):
        foreseen = book.foresee(Raw(0.1, 0, 0.02, 0.02, 100))
        book.judge_ttft(foreseen, CLOSED, 0.125, teaches=True)
        book.judge_itl(foreseen, CLOSED, 0.02, teaches=True)
    found = page({"v": book})
    assert found["beaconry_predictions_total", "v", "shadow", "ttft"] == 50
    assert found["beaconry_prediction_coverage_ratio", "v", "shadow", Quantity.TTFT.value] > 0.9
    assert found["beaconry_prediction_error_median_ratio", "v", "shadow", "itl"] == 0.0
    assert found["beaconry_prediction_drift_ratio", "v", "shadow", "ttft"] < 0.25
    assert found["beaconry_prediction_source", "v", "shadow"] == 1
    assert found["beaconry_prediction_source", "v", "token-load"] == 0
    assert found["beaconry_prediction_fallbacks_total", "v"] == 0


def test_a_variant_nothing_is_known_of_shows_step_times_and_no_errors():
    found = page({"llama-3.1-8b/h100": VariantBook("llama-3.1-8b/h100", 0.9)})
    assert found["beaconry_step_time", "llama-3.1-8b/h100", "fixed_s"] > 0
    assert found["beaconry_predictions_total", "llama-3.1-8b/h100", "shadow", "ttft"] == 0
    assert not [key for key in found if key[0] == "beaconry_prediction_error_mean_ratio"]
