"""The metrics page: complete, well-formed, named by the rules, and true to the snapshot."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from beaconry.io.http_server import ServerStatistics
from beaconry.io.metrics import FRESH_S, MetricsPage
from beaconry.router.member import State
from beaconry.router.statistics import (
    LATENCY_BOUNDS_S,
    TOKEN_BOUNDS,
    WAIT_BOUNDS_S,
    BandFigures,
    EndpointStatistics,
    FlowStatistics,
    Histogram,
    ModelStatistics,
    RouterStatistics,
)
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.outcome import Outcome
from beaconry.values.stage import Stage


def distribution(bounds=LATENCY_BOUNDS_S, *values):
    histogram = Histogram(bounds)
    for value in values:
        histogram.add(value)
    return histogram.snapshot()


def model(**fields):
    blank = {
        "outcomes": {},
        "running": 0,
        "ttft": distribution(),
        "itl": distribution(),
        "e2e": distribution(),
        "input_tokens": distribution(TOKEN_BOUNDS),
        "output_tokens": distribution(TOKEN_BOUNDS),
        "cached_tokens": distribution(TOKEN_BOUNDS),
    }
    return ModelStatistics(**(blank | fields))


def endpoint(name="e0", *, pool="default", port=8000, **fields):
    blank = {
        "endpoint": Endpoint(name=name, host="127.0.0.1", port=port, model="m", pool=pool),
        "state": State.READY.value,
        "prefilling": 0,
        "prefill_tokens": 0,
        "decoding": 0,
        "context_tokens": 0,
        "sample": None,
        "dispatched": 0,
        "failed": 0,
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "predicted_cached_tokens": 0,
        "output_tokens": 0,
        "ttft": distribution(),
    }
    return EndpointStatistics(**(blank | fields))


def render(*endpoints, models=None, server=None, at_s=100.0, **fields):
    blank = {"refused": 0, "retries": 0, "recalls": 0, "in_flight": 0, "draining": False}
    router = RouterStatistics(at_s=at_s, endpoints=endpoints, models=models or {}, **(blank | fields))
    server = server or ServerStatistics(connections=0, buffered_bytes=0, refused={})
    return b"".join(MetricsPage(lambda: router, lambda: server, dict).slices()).decode()


def parse(text):
    """Samples by name and labels, as Prometheus would see them; no series twice."""
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def value(samples, metric, /, **labels):
    return samples[metric, frozenset(labels.items())]


def present(samples, name):
    return [labels for key, labels in samples if key == name]


FULL = (
    endpoint("e0", sample=LoadSample(at_s=99.0, running=3, waiting=2, kv_usage=0.5), dispatched=7, port=8001),
    endpoint("e1", pool="other", state=State.EJECTED.value, ttft=distribution(LATENCY_BOUNDS_S, 0.2, 0.3)),
)
MODEL = {"model_name": "m", "target_model_name": "m", "fairness_id": "default-flow", "priority": "0"}


def full_page():
    outcomes = {Outcome.COMPLETED: 5, Outcome.ENGINE_FAILED: 2, Outcome.ENGINE_TIMEOUT: 1, Outcome.CLIENT_GONE: 4}
    e2e = distribution(LATENCY_BOUNDS_S, 0.1, 0.2, 9.0)
    server = ServerStatistics(connections=3, buffered_bytes=4096, refused={(400, "malformed_http"): 2})
    return render(
        *FULL,
        models={"m": model(outcomes=outcomes, running=2, e2e=e2e)},
        server=server,
        refused=6,
        retries=1,
        recalls=2,
    )


def test_every_line_is_understood_by_a_prometheus_parser_and_no_series_comes_twice():
    assert len(parse(full_page())) > 200


def test_an_empty_gateway_has_a_page():
    assert value(parse(render()), "beaconry_retries_total") == 0


def test_counts_are_the_snapshots():
    samples = parse(full_page())
    assert value(samples, "beaconry_requests_total", model="m", outcome="engine-failed") == 2
    assert value(samples, "beaconry_requests_running", model="m") == 2
    assert value(samples, "beaconry_refused_total") == 6
    assert value(samples, "beaconry_http_refused_total", status="400", code="malformed_http") == 2
    assert value(samples, "beaconry_retries_total") == 1
    assert value(samples, "beaconry_connections") == 3
    assert value(samples, "beaconry_buffered_bytes") == 4096
    assert value(samples, "beaconry_draining") == 0
    assert value(samples, "beaconry_endpoint_dispatched_total", endpoint="e0", pool="default", model="m") == 7


def test_outcomes_that_have_not_happened_are_zero_so_that_rates_begin_with_the_first():
    samples = parse(render(models={"m": model()}))
    assert all(value(samples, "beaconry_requests_total", model="m", outcome=outcome.value) == 0 for outcome in Outcome)


def test_buckets_are_cumulative_and_end_with_the_count():
    samples = parse(full_page())
    buckets = {dict(labels)["le"]: labels for labels in present(samples, "beaconry_request_e2e_seconds_bucket")}
    counts = [samples["beaconry_request_e2e_seconds_bucket", labels] for labels in buckets.values()]
    assert counts == sorted(counts)
    assert len(counts) == len(LATENCY_BOUNDS_S) + 1
    assert samples["beaconry_request_e2e_seconds_bucket", buckets["0.25"]] == 2
    assert samples["beaconry_request_e2e_seconds_bucket", buckets["+Inf"]] == 3
    assert value(samples, "beaconry_request_e2e_seconds_count", model="m") == 3
    assert value(samples, "beaconry_request_e2e_seconds_sum", model="m") == pytest.approx(9.3)


def test_an_endpoint_is_in_exactly_one_state():
    samples = parse(full_page())
    for name, state in (("e0", "ready"), ("e1", "ejected")):
        states = {dict(labels)["state"]: labels for labels in present(samples, "beaconry_endpoint_state")}
        assert states.keys() == set(State)
        pool = "default" if name == "e0" else "other"
        ones = [
            one for one in State
            if value(samples, "beaconry_endpoint_state", endpoint=name, pool=pool, model="m", state=one.value)
        ]  # fmt: skip
        assert ones == [state]


def test_an_endpoints_ttft_is_a_sum_and_a_count():
    samples = parse(full_page())
    labels = {"endpoint": "e1", "pool": "other", "model": "m"}
    assert value(samples, "beaconry_endpoint_ttft_seconds_count", **labels) == 2
    assert value(samples, "beaconry_endpoint_ttft_seconds_sum", **labels) == pytest.approx(0.5)


def test_what_an_engine_does_not_say_is_absent_rather_than_zero():
    samples = parse(full_page())
    of_e0 = frozenset({"endpoint": "e0", "pool": "default", "model": "m"}.items())
    assert present(samples, "beaconry_endpoint_sample_age_seconds") == [of_e0]
    assert samples["beaconry_endpoint_sample_age_seconds", of_e0] == 1.0
    assert present(samples, "beaconry_endpoint_engine_kv_usage_ratio") == [of_e0]


def test_llm_d_names_count_requests_on_arrival_and_errors_by_code():
    samples = parse(full_page())
    assert value(samples, "llm_d_epp_request_total", **MODEL) == 14
    assert value(samples, "llm_d_epp_request_running", **MODEL) == 2
    assert value(samples, "llm_d_epp_request_error_total", **MODEL, error_code="ModelServerError") == 3
    assert value(samples, "llm_d_epp_request_error_total", **MODEL, error_code="ServiceUnavailable") == 0
    assert value(samples, "llm_d_epp_request_duration_seconds_count", **MODEL) == 3
    assert value(samples, "llm_d_epp_request_ttft_seconds_count", **MODEL, streaming="true") == 0
    attempt = {"target_model_name": "m", "namespace": ""}
    name = "llm_d_epp_scheduler_attempts_total"
    assert value(samples, name, status="success", endpoint_name="e0", port="8001", **attempt) == 7
    assert value(samples, name, status="failure", endpoint_name="", port="", **attempt) == 0


def test_the_llm_d_names_that_autoscalers_and_dashboards_read_are_there():
    names = {family.name for family in text_string_to_metric_families(full_page())}
    request = ["duration_seconds", "ttft_seconds", "streaming_tpot_seconds", "streaming_itl_seconds"]
    request += ["input_tokens", "output_tokens", "cached_tokens", "running"]
    pool = ["kv_cache_utilization", "queue_size", "running_requests"]
    expected = {"request", "request_error", "ready_endpoints", "per_endpoint_queue_size", "scheduler_attempts", "info"}
    expected |= {f"request_{name}" for name in request}
    expected |= {f"{what}_{name}" for what in ("average", "std_dev") for name in pool}
    assert {f"llm_d_epp_{name}" for name in expected} <= names


def test_pool_figures_are_over_fresh_samples_only():
    samples = parse(
        render(
            endpoint("a", sample=LoadSample(at_s=100.0, running=1, waiting=2, kv_usage=0.2)),
            endpoint("b", sample=LoadSample(at_s=100.0 - FRESH_S, running=3, waiting=4)),
            endpoint("old", sample=LoadSample(at_s=99.0 - FRESH_S, running=90, waiting=90, kv_usage=0.9)),
            endpoint("mute", state=State.UNHEALTHY.value),
            endpoint("alone", pool="p2", state=State.DRAINING.value, sample=LoadSample(at_s=100.0, waiting=5)),
        )
    )
    assert value(samples, "llm_d_epp_average_queue_size", name="default") == 3.0
    assert value(samples, "llm_d_epp_std_dev_queue_size", name="default") == pytest.approx(2**0.5)
    assert value(samples, "llm_d_epp_average_running_requests", name="default") == 2.0
    assert value(samples, "llm_d_epp_average_kv_cache_utilization", name="default") == 0.2
    assert value(samples, "llm_d_epp_std_dev_kv_cache_utilization", name="default") == 0.0
    assert value(samples, "llm_d_epp_ready_endpoints", name="default") == 3
    assert value(samples, "llm_d_epp_ready_endpoints", name="p2") == 0
    assert value(samples, "llm_d_epp_average_queue_size", name="p2") == 5.0
    assert present(samples, "llm_d_epp_average_running_requests") == [frozenset({("name", "default")})]
    assert {dict(labels)["model_server_endpoint"] for labels in present(samples, "llm_d_epp_per_endpoint_queue_size")} == {
        "a", "b", "alone"
    }  # fmt: skip


def test_names_that_need_escaping_survive():
    samples = parse(render(models={'a "b"\\\nc': model(running=1)}))
    assert value(samples, "beaconry_requests_running", model='a "b"\\\nc') == 1


def test_a_page_is_of_the_moment_it_is_rendered():
    running = iter([1, 2])
    server = ServerStatistics(connections=0, buffered_bytes=0, refused={})

    def statistics():
        return RouterStatistics(
            at_s=0.0, endpoints=(), models={"m": model(running=next(running))}, refused=0, retries=0, recalls=0, in_flight=0, draining=False
        )  # fmt: skip

    page = MetricsPage(statistics, lambda: server, dict)
    seen = [value(parse(b"".join(page.slices()).decode()), "beaconry_requests_running", model="m") for _ in range(2)]
    assert seen == [1, 2]


def test_names_follow_the_rules_of_promtool():
    families = list(text_string_to_metric_families(full_page()))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        name = family.name + "_total" if family.type == "counter" else family.name
        assert re.fullmatch(r"(beaconry|llm_d_epp)(_[a-z0-9]+)+", name), name
        assert family.documentation.endswith("."), name
        assert family.type in ("counter", "gauge", "histogram", "summary"), name
        if family.type != "counter":
            assert not name.endswith(("_total", "_count", "_sum", "_bucket")), name
        words = name.split("_")
        assert not {"counter", "gauge", "histogram", "summary"} & set(words), name
        assert not {"ms", "milliseconds", "minutes", "kb", "kilobytes", "percent", "sec", "s"} & set(words), name
        if family.type in ("histogram", "summary"):
            assert words[-1] in ("seconds", "tokens"), name
        for sample in family.samples:
            assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in sample.labels), name


def test_the_number_of_series_grows_by_endpoints_and_models_only():
    def lines(endpoints, models):
        rows = [
            endpoint(f"e{i}", sample=LoadSample(at_s=100.0, running=1, waiting=1, kv_usage=0.1))
            for i in range(endpoints)
        ]
        return len(parse(render(*rows, models={f"m{i}": model() for i in range(models)})))

    base = lines(1, 1)
    assert lines(3, 1) - base == 2 * (lines(2, 1) - base)
    assert lines(1, 3) - base == 2 * (lines(1, 2) - base)
    assert lines(2, 1) - base < 30


def test_decisions_about_legs_are_told_by_reason():
    plans = {(Stage.PREFILL, "uncached-prompt"): 7, (Stage.WHOLE, "short-prompt"): 3}
    samples = parse(render(models={"m": model(plans=plans), "other": model()}))
    name = "beaconry_disaggregation_decisions_total"
    assert value(samples, name, model="m", decision="prefill-decode", reason="uncached-prompt") == 7
    assert value(samples, name, model="m", decision="whole", reason="short-prompt") == 3


def test_what_waits_for_prefill_endpoints_is_told_apart():
    waits, pools = distribution(WAIT_BOUNDS_S), (Stage.WHOLE, Stage.PREFILL)
    bands = tuple(
        BandFigures(
            model="m", stage=stage, band="default", queued_requests=number, queued_tokens=0, queued_bytes=0, waits=waits, dropped={}
        )
        for number, stage in enumerate(pools)
    )  # fmt: skip
    samples = parse(render(flow=FlowStatistics(bands=bands, saturation={("m", pools[0]): 0.25, ("m", pools[1]): 0.75})))
    assert value(samples, "beaconry_flow_queued_requests", model="m", band="default", stage="prefill") == 1
    llm_d = {"fairness_id": "default-flow", "priority": "default", "model_name": "m", "target_model_name": "m"}
    assert value(samples, "llm_d_epp_flow_control_queue_size", **llm_d, inference_pool="m/prefill") == 1
    for stage, share in (("prefill", 0.75), ("decode", 0.25), ("effective", 0.75)):
        assert value(samples, "llm_d_epp_flow_control_pool_saturation", inference_pool="m", stage=stage) == share


def test_what_waits_is_told_by_band_and_in_llm_ds_words():
    band = BandFigures(
        model="m", band="batch", queued_requests=3, queued_tokens=900, queued_bytes=3600,
        waits=distribution(WAIT_BOUNDS_S, 0.2, 0.3), dropped={Outcome.QUEUE_FULL: 4, Outcome.RATE_LIMITED: 1},
    )  # fmt: skip
    flow = FlowStatistics(
        bands=(band,), saturation={("m", Stage.WHOLE): 0.5}, room={"requests": 0.25, "tokens": 0.0, "bytes": 0.5}
    )
    samples = parse(render(flow=flow))
    assert value(samples, "beaconry_flow_queued_requests", model="m", band="batch", stage="whole") == 3
    assert value(samples, "beaconry_flow_queued_tokens", model="m", band="batch", stage="whole") == 900
    assert value(samples, "beaconry_flow_wait_seconds_count", model="m", band="batch", stage="whole") == 2
    assert (
        value(samples, "beaconry_flow_dropped_total", model="m", band="batch", stage="whole", outcome="queue-full") == 4
    )
    assert value(samples, "beaconry_flow_saturation_ratio", model="m", stage="whole") == 0.5
    llm_d = {"fairness_id": "default-flow", "priority": "batch", "inference_pool": "m"}
    models = {"model_name": "m", "target_model_name": "m"}
    assert value(samples, "llm_d_epp_flow_control_queue_size", **llm_d, **models) == 3
    for outcome, count in (("Dispatched", 2), ("RejectedCapacity", 4), ("RejectedOther", 1)):
        labels = {"outcome": outcome, "priority": "batch", "inference_pool": "m"}
        assert value(samples, "llm_d_epp_flow_control_requests_total", **labels) == count
    assert value(samples, "llm_d_epp_flow_control_pool_saturation", inference_pool="m", stage="effective") == 0.5
    assert value(samples, "llm_d_epp_flow_control_global_capacity_utilization_bytes") == 0.5
