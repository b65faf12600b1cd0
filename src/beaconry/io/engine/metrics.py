"""What a simulated engine exposes at /metrics: vLLM's families, names and labels, as far as the simulation can fill them.

Families that would always be zero are left out, except those that routers read.
"""

import time
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from beaconry.engine_model.values import EngineSettings, EngineStatistics
from beaconry.io.engine.loop import EngineLoop
from beaconry.io.engine.observations import Handovers, Histogram, Observations


class EngineMetrics(Collector):
    """One engine's numbers as Prometheus families, read anew at each scrape."""

    def __init__(
        self,
        model: str,
        steps: EngineLoop,
        observations: Observations,
        hash_algorithm: str,
        adapters: int,
        handovers: Handovers | None,
    ) -> None:
        """`adapters`: LoRA adapters that may run at once; 0 if there are none. `handovers`: None for an engine without a part in them."""
        self._adapters = adapters
        self._handovers = handovers
        self._model = model
        self._steps = steps
        self._observations = observations
        self._hash_algorithm = hash_algorithm
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """Return the exposition of one scrape."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the families; called by the registry."""
        engine = self._steps.engine
        statistics = engine.statistics()
        yield from _gauges(self._model, statistics, len(engine.imports))
        yield from _counters(self._model, statistics, self._observations)
        yield _lag_resets(self._steps.lag_resets)
        yield from _histograms(self._model, self._observations.histograms)
        if self._handovers is not None:
            yield from _handovers(self._model, self._handovers)
            yield from _histograms(self._model, self._handovers.histograms)
        yield _cache_config(engine.settings, self._hash_algorithm)
        if self._adapters:
            yield _adapters(engine.adapters(), self._adapters)


def _gauges(model: str, statistics: EngineStatistics, importing: int) -> Iterator[Metric]:
    rows: tuple[tuple[str, str, dict[str, dict[str, float]], float | None], ...] = (
        ("num_requests_running", "Number of requests in model execution batches.", {}, statistics.running),
        ("num_requests_waiting", "Number of requests waiting to be processed.", {}, statistics.waiting),
        (
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            {"reason": {"capacity": statistics.waiting - importing, "deferred": importing}},
            None,
        ),
        (
            "engine_sleep_state",
            "Engine sleep state; awake = 1 means engine is awake.",
            {"sleep_state": {"awake": 1, "weights_offloaded": 0, "discard_all": 0}},
            None,
        ),
        ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", {}, statistics.kv_usage),
    )
    for name, text, labelled, value in rows:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=["engine", "model_name", *labelled])
        if value is not None:
            family.add_metric(["0", model], value)
        for values in labelled.values():
            for label, number in values.items():
                family.add_metric(["0", model, label], number)
        yield family


def _counters(model: str, statistics: EngineStatistics, observations: Observations) -> Iterator[Metric]:
    fetched = statistics.imported_tokens
    hits, loaded = statistics.prefix_hits + statistics.found_tokens, statistics.loaded_tokens + fetched
    queries = statistics.prefix_queries + statistics.found_tokens + fetched
    plain = (
        (
            "prefix_cache_queries",
            "Prefix cache queries, in terms of number of queried tokens.",
            queries,
        ),
        ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", hits),
        (
            "external_prefix_cache_queries",
            "External prefix cache queries, in terms of number of queried tokens.",
            statistics.tier_queries + fetched,
        ),
        (
            "external_prefix_cache_hits",
            "External prefix cache hits, in terms of number of cached tokens.",
            loaded,
        ),
        ("num_preemptions", "Cumulative number of preemption from the engine.", statistics.preemptions),
        ("prompt_tokens", "Number of prefill tokens processed.", statistics.prompt_tokens),
        ("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", hits + loaded),
        ("generation_tokens", "Number of generation tokens processed.", statistics.generation_tokens),
    )
    for name, text, value in plain:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=["engine", "model_name"])
        family.add_metric(["0", model], value)
        yield family
    computed = max(0, queries - hits - loaded)
    sources = {"local_compute": computed, "local_cache_hit": hits, "external_kv_transfer": loaded}
    by_source = CounterMetricFamily(
        "vllm:prompt_tokens_by_source", "Number of prompt tokens by source.", labels=["engine", "model_name", "source"]
    )
    for source, value in sources.items():
        by_source.add_metric(["0", model, source], value)
    yield by_source
    success = CounterMetricFamily(
        "vllm:request_success",
        "Count of successfully processed requests.",
        labels=["engine", "finished_reason", "model_name"],
    )
    for reason, count in observations.finished.items():
        success.add_metric(["0", reason, model], count)
    yield success
    rejections = CounterMetricFamily(
        "vllm:admission_rejections",
        "Number of admission attempts rejected by a queue limit, by reason.",
        labels=["model_name", "reason"],
    )
    rejections.add_metric([model, "max_num_queued_reqs"], observations.rejected)
    yield rejections


def _handovers(model: str, handovers: Handovers) -> Iterator[Metric]:
    rows = (
        (
            "num_failed_transfers",
            "Number of failed NIXL KV Cache transfers.",
            handovers.failed + handovers.failed_notices,
        ),
        ("num_failed_notifications", "Number of failed NIXL KV Cache notifications.", handovers.failed_notices),
        ("num_kv_expired_reqs", "Number of requests that had their KV expire.", handovers.expired),
        (
            "num_notifications_after_expiry",
            "Number of completion notifications for requests that were no longer tracked.",
            handovers.late_releases,
        ),
    )
    for name, text, value in rows:
        family = CounterMetricFamily(f"vllm:nixl_{name}", text, labels=["engine", "model_name"])
        family.add_metric(["0", model], value)
        yield family


def _adapters(names: tuple[set[str], set[str]], most: int) -> Metric:
    running, waiting = (",".join(sorted(group)) for group in names)
    labels = {"max_lora": str(most), "waiting_lora_adapters": waiting, "running_lora_adapters": running}
    family = GaugeMetricFamily("vllm:lora_requests_info", "Running stats on lora requests.", labels=list(labels))
    family.add_metric(list(labels.values()), time.time())
    return family


def _lag_resets(times: int) -> Metric:
    family = CounterMetricFamily("beaconry_sim_lag_resets", "Times the simulated engine fell behind real time.")
    family.add_metric([], times)
    return family


def _histograms(model: str, histograms: Mapping[str, Histogram]) -> Iterator[Metric]:
    for name, histogram in histograms.items():
        family = HistogramMetricFamily(f"vllm:{name}", f"Histogram of {name}.", labels=["engine", "model_name"])
        family.add_metric(["0", model], _cumulated(histogram), histogram.sum)
        yield family


def _cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    """Return (upper bound, values up to it) pairs, +Inf last."""
    bounds = [*(str(float(bound)) for bound in histogram.buckets), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))


def _cache_config(settings: EngineSettings, hash_algorithm: str) -> Metric:
    labels = {
        "block_size": str(settings.block_tokens),
        "cache_dtype": "auto",
        "enable_prefix_caching": str(settings.prefix_caching),
        "engine": "0",
        "kv_cache_size_tokens": str(settings.num_blocks * settings.block_tokens),
        "num_gpu_blocks": str(settings.num_blocks),
        "prefix_caching_hash_algo": hash_algorithm,
    }
    family = GaugeMetricFamily(
        "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", labels=list(labels)
    )
    family.add_metric(list(labels.values()), 1.0)
    return family
