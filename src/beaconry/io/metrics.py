"""The gateway's own metrics page: a snapshot of what router and server count, in the Prometheus text format.

Nothing is counted here, so requests cost this file nothing; rendering takes 25 microseconds per endpoint when somebody asks.
Every label is bounded: models and endpoints come from discovery, outcomes and refusal codes are closed sets. `beaconry_*` is our own
vocabulary; the `llm_d_epp_*` names make dashboards and autoscalers made for llm-d's router work unchanged. Where llm-d has a
dimension that does not exist here (fairness id, priority, namespace), its label has llm-d's default.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from statistics import fmean, stdev

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from beaconry import __version__
from beaconry.io.exposition import Family, Lines, further, labels, number, page, simple
from beaconry.io.flow_metrics import flow_metrics
from beaconry.io.forecast_metrics import forecast_metrics
from beaconry.io.histogram import histogram
from beaconry.io.http_server import ServerStatistics
from beaconry.io.tenant_metrics import tenant_metrics
from beaconry.io.tokenizing import TokenizingStatistics
from beaconry.router.member import State
from beaconry.router.statistics import EndpointStatistics, ModelStatistics, RouterStatistics
from beaconry.values.endpoint import LoadSample
from beaconry.values.kv_events import SourceState
from beaconry.values.outcome import Outcome
from beaconry.values.stage import Stage

FRESH_S = 10.0
"""Older samples do not enter a pool's averages: ten scrapes missed at the default pace."""
_LLM_D_MODEL = ["model_name", "target_model_name", "fairness_id", "priority"]
_ERROR_CODES = {
    Outcome.ENGINE_REFUSED: "BadRequest",
    Outcome.QUEUE_FULL: "InferencePoolResourceExhausted",
    Outcome.DISPLACED: "InferencePoolResourceExhausted",
    Outcome.EVICTED: "InferencePoolResourceExhausted",
    Outcome.QUEUE_EXPIRED: "InferencePoolResourceExhausted",
    Outcome.OBJECTIVE_MISSED: "InferencePoolResourceExhausted",
    Outcome.NO_ENDPOINT: "ServiceUnavailable",
    Outcome.SHUTTING_DOWN: "ServiceUnavailable",
    Outcome.ENGINE_FAILED: "ModelServerError",
    Outcome.ENGINE_TIMEOUT: "ModelServerError",
    Outcome.STREAM_BROKEN: "ModelServerError",
}
"""llm-d's words for our outcomes; a client that left is no error."""


class MetricsPage:
    """Renders the page from fresh snapshots."""

    def __init__(
        self,
        statistics: Callable[[], RouterStatistics],
        server: Callable[[], ServerStatistics],
        tokens: Callable[[], Mapping[str, TokenizingStatistics]],
        *parts: Callable[[], Iterable[Family]],
    ) -> None:
        """`parts` yield further families."""
        self._statistics = statistics
        self._server = server
        self._tokens = tokens
        self._parts = parts

    def slices(self) -> Iterator[bytes]:
        """The page, of one moment: that of the first slice. Making one takes about a millisecond, so others may have a turn in between."""
        return page(self._families())

    def _families(self) -> Iterator[Family]:
        """Take both snapshots and yield what they hold."""
        router, server = self._statistics(), self._server()
        yield from _process(router, server)
        yield _tokens(self._tokens())
        yield from _models(router.models)
        yield from _endpoints(router)
        yield from forecast_metrics(router.predictions)
        yield from flow_metrics(router.flow)
        yield from _llm_d_models(router.models)
        yield from _llm_d_pools(router)
        yield from _llm_d_core(router)
        yield from tenant_metrics(router.tenants)
        for part in self._parts:
            yield from part()


# -- beaconry_*


def _process(router: RouterStatistics, server: ServerStatistics) -> Iterator[Metric]:
    build = GaugeMetricFamily("beaconry_build_info", "Always 1; the version is a label.", labels=["version"])
    build.add_metric([__version__], 1)
    yield build
    yield CounterMetricFamily(
        "beaconry_refused_total", "Requests that reached no model: malformed, too large, unknown model.", router.refused
    )
    refused = CounterMetricFamily(
        "beaconry_http_refused_total",
        "Messages that did not become a request, answered by the HTTP server itself.",
        labels=["status", "code"],
    )
    for (status, code), count in server.refused.items():
        refused.add_metric([str(status), code], count)
    yield refused
    yield CounterMetricFamily(
        "beaconry_retries_total", "Requests sent to another endpoint after a failure.", router.retries
    )
    yield CounterMetricFamily(
        "beaconry_flow_recalled_total",
        "Requests taken back from an engine to the queue, to make way for a higher band.",
        router.recalls,
    )
    plugins = CounterMetricFamily(
        "beaconry_plugin_failures_total",
        "Times a plugin raised, and was passed over for that request.",
        labels=["plugin"],
    )
    for plugin, count in router.plugin_failures.items():
        plugins.add_metric([plugin], count)
    yield plugins
    yield GaugeMetricFamily("beaconry_connections", "Open client connections.", server.connections)
    yield GaugeMetricFamily("beaconry_buffered_bytes", "Request bodies held at present.", server.buffered_bytes)
    yield GaugeMetricFamily(
        "beaconry_draining", "1 while the gateway stops and takes nothing new.", int(router.draining)
    )


def _tokens(models: Mapping[str, TokenizingStatistics]) -> Metric:
    told = CounterMetricFamily(
        "beaconry_tokenized_total",
        "Prompts by where their tokens came from, and why not from the first source.",
        labels=["model", "source", "reason"],
    )
    for model, statistics in models.items():
        for (source, reason), count in statistics.told.items():
            told.add_metric([model, source.value, "" if reason is None else reason.value], count)
    return told


def _models(models: dict[str, ModelStatistics]) -> Iterator[Family]:
    outcomes = CounterMetricFamily(
        "beaconry_requests_total", "Requests that have ended, by how.", labels=["model", "outcome"]
    )
    running = GaugeMetricFamily("beaconry_requests_running", "Requests that have not ended.", labels=["model"])
    for model, statistics in models.items():
        for outcome in Outcome:
            outcomes.add_metric([model, outcome.value], statistics.outcomes.get(outcome, 0))
        running.add_metric([model], statistics.running)
    yield outcomes
    yield running
    plans = CounterMetricFamily(
        "beaconry_disaggregation_decisions_total",
        "First legs by what they compute, and why; of models that have prefill endpoints.",
        labels=["model", "decision", "reason"],
    )
    for model, statistics in models.items():
        for (stage, reason), count in statistics.plans.items():
            plans.add_metric([model, "prefill-decode" if stage is Stage.PREFILL else "whole", reason], count)
    yield plans
    for name, text, read in (
        ("ttft", "From arrival to the first byte of the answer, streams only.", attrgetter("ttft")),
        ("itl", "Mean gap between output tokens, one value per stream.", attrgetter("itl")),
        ("e2e", "From arrival to the end, however the request ended.", attrgetter("e2e")),
    ):
        rows = (([model], read(statistics)) for model, statistics in models.items())
        yield histogram(f"beaconry_request_{name}_seconds", text, ["model"], rows)


class _Column(Struct, frozen=True):
    """One figure that every endpoint has."""

    kind: str
    name: str
    text: str
    read: Callable[[EndpointStatistics], float]


_ENDPOINT_LABELS = ("endpoint", "pool", "model")
_ENDPOINT_COLUMNS = (
    _Column("gauge", "prefilling_requests", "Requests sent here, without first byte.", attrgetter("prefilling")),
    _Column(
        "gauge", "prefill_tokens", "Their prompt tokens, less those believed cached.", attrgetter("prefill_tokens")
    ),
    _Column("gauge", "decoding_requests", "Requests with first byte and without end.", attrgetter("decoding")),
    _Column("gauge", "context_tokens", "Prompt tokens of all requests in flight here.", attrgetter("context_tokens")),
    _Column("counter", "dispatched_total", "Requests sent here.", attrgetter("dispatched")),
    _Column("counter", "failed_total", "Requests that failed by the endpoint's fault.", attrgetter("failed")),
    _Column("counter", "prompt_tokens_total", "Prompt tokens, as the engine reported.", attrgetter("prompt_tokens")),
    _Column("counter", "cached_tokens_total", "Those of them it had in its cache.", attrgetter("cached_tokens")),
    _Column(
        "counter",
        "predicted_cached_tokens_total",
        "What the router had believed cached, of the same requests.",
        attrgetter("predicted_cached_tokens"),
    ),
    _Column("counter", "output_tokens_total", "Output tokens, as the engine reported.", attrgetter("output_tokens")),
)


def _endpoints(router: RouterStatistics) -> Iterator[Lines]:
    rows = [
        (labels(_ENDPOINT_LABELS, (e.endpoint.name, e.endpoint.pool, e.endpoint.model)), e) for e in router.endpoints
    ]
    yield simple(
        "gauge",
        "beaconry_endpoint_state",
        "1 for the state the endpoint is in.",
        ((further(label, "state", one.value), row.state == one.value) for label, row in rows for one in State),
    )
    yield simple(
        "gauge",
        "beaconry_endpoint_kv_events_state",
        "1 for how well the engine's KV events tell what it holds; absent if it tells none.",
        (
            (further(label, "state", one.value), row.kv_state == one.value)
            for label, row in rows
            if row.kv_state is not None
            for one in SourceState
        ),
    )
    for column in _ENDPOINT_COLUMNS:
        figures = ((label, column.read(row)) for label, row in rows)
        yield simple(column.kind, f"beaconry_endpoint_{column.name}", column.text, figures)
    name = "beaconry_endpoint_ttft_seconds"
    ttft = (
        f"{name}_count{label} {number(row.ttft.count)}\n{name}_sum{label} {number(row.ttft.total)}\n"
        for label, row in rows
    )
    yield Lines("summary", name, "From dispatch to the first byte, streams only.", ttft)
    yield from _samples(router, rows)


def _samples(router: RouterStatistics, rows: list[tuple[str, EndpointStatistics]]) -> Iterator[Lines]:
    """What the engines themselves say; nothing of those that do not."""
    columns: tuple[tuple[str, str, Callable[[LoadSample], float | None]], ...] = (
        ("sample_age_seconds", "Since the engine's metrics were last read.", lambda sample: router.at_s - sample.at_s),
        ("engine_running_requests", "Running, as the engine's metrics say.", lambda sample: sample.running),
        ("engine_waiting_requests", "Waiting, as the engine's metrics say.", lambda sample: sample.waiting),
        ("engine_kv_usage_ratio", "KV blocks in use, as the engine's metrics say.", lambda sample: sample.kv_usage),
    )
    for name, text, read in columns:
        figures = ((label, read(row.sample)) for label, row in rows if row.sample is not None)
        known = ((label, value) for label, value in figures if value is not None)
        yield simple("gauge", f"beaconry_endpoint_{name}", text, known)


# -- llm_d_epp_*


def _llm_d_models(models: dict[str, ModelStatistics]) -> Iterator[Family]:
    rows = [([model, model, "default-flow", "0"], statistics) for model, statistics in models.items()]
    total = CounterMetricFamily("llm_d_epp_request_total", "Requests that have reached a model.", labels=_LLM_D_MODEL)
    errors = CounterMetricFamily(
        "llm_d_epp_request_error_total", "Requests that ended in an error.", labels=[*_LLM_D_MODEL, "error_code"]
    )
    running = GaugeMetricFamily("llm_d_epp_request_running", "Requests that have not ended.", labels=_LLM_D_MODEL)
    for values, row in rows:
        total.add_metric(values, row.running + sum(row.outcomes.values()))
        codes = dict.fromkeys(_ERROR_CODES.values(), 0)
        for outcome, code in _ERROR_CODES.items():
            codes[code] += row.outcomes.get(outcome, 0)
        for code, count in codes.items():
            errors.add_metric([*values, code], count)
        running.add_metric(values, row.running)
    yield total
    yield errors
    yield running
    yield histogram(
        "llm_d_epp_request_ttft_seconds",
        "From arrival to the first byte of the answer.",
        [*_LLM_D_MODEL, "streaming"],
        (([*values, "true"], row.ttft) for values, row in rows),
    )
    for name, text, read in (
        ("duration_seconds", "From arrival to the end.", attrgetter("e2e")),
        ("streaming_tpot_seconds", "Time per output token after the first, one value per stream.", attrgetter("itl")),
        (
            "streaming_itl_seconds",
            "Mean gap between output tokens, one value per stream (llm-d: one per gap).",
            attrgetter("itl"),
        ),
        ("input_tokens", "Prompt tokens.", attrgetter("input_tokens")),
        ("output_tokens", "Output tokens.", attrgetter("output_tokens")),
        ("cached_tokens", "Prompt tokens that the engine had in its cache.", attrgetter("cached_tokens")),
    ):
        yield histogram(f"llm_d_epp_request_{name}", text, _LLM_D_MODEL, ((values, read(row)) for values, row in rows))


def _llm_d_pools(router: RouterStatistics) -> Iterator[Family]:
    ready: Counter[str] = Counter()
    fresh: dict[str, list[LoadSample]] = {}
    queue: list[tuple[str, float]] = []
    for row in router.endpoints:
        pool, sample = row.endpoint.pool, row.sample
        ready[pool] += row.state == State.READY.value
        if sample is None or router.at_s - sample.at_s > FRESH_S:
            continue
        fresh.setdefault(pool, []).append(sample)
        if sample.waiting is not None:
            queue.append((labels(("name", "model_server_endpoint"), (pool, row.endpoint.name)), sample.waiting))
    yield simple("gauge", "llm_d_epp_per_endpoint_queue_size", "Requests waiting in the engine.", queue)
    family = GaugeMetricFamily("llm_d_epp_ready_endpoints", "Endpoints that may get requests.", labels=["name"])
    for pool, count in ready.items():
        family.add_metric([pool], count)
    yield family
    for what, read in (
        ("kv_cache_utilization", lambda sample: sample.kv_usage),
        ("queue_size", lambda sample: sample.waiting),
        ("running_requests", lambda sample: sample.running),
    ):
        yield from _mean_and_deviation(what, read, fresh)


def _mean_and_deviation(
    what: str, read: Callable[[LoadSample], float | None], samples: dict[str, list[LoadSample]]
) -> Iterator[Metric]:
    """Over a pool's fresh samples; a pool whose engines do not say is left out."""
    mean = GaugeMetricFamily(f"llm_d_epp_average_{what}", "Mean over the pool's engines.", labels=["name"])
    deviation = GaugeMetricFamily(
        f"llm_d_epp_std_dev_{what}", "Standard deviation over the pool's engines.", labels=["name"]
    )
    for pool, group in samples.items():
        values = [value for value in map(read, group) if value is not None]
        if values:
            mean.add_metric([pool], fmean(values))
            deviation.add_metric([pool], stdev(values) if len(values) > 1 else 0.0)
    yield mean
    yield deviation


def _llm_d_core(router: RouterStatistics) -> Iterator[Family]:
    names = ("status", "target_model_name", "endpoint_name", "namespace", "port")
    attempts: list[tuple[str, float]] = []
    for row in router.endpoints:
        endpoint = row.endpoint
        values = ("success", endpoint.model, endpoint.name, "", str(endpoint.port))
        attempts.append((labels(names, values), row.dispatched))
    for model, statistics in router.models.items():
        failures = statistics.outcomes.get(Outcome.NO_ENDPOINT, 0)
        attempts.append((labels(names, ("failure", model, "", "", "")), failures))
    yield simple("counter", "llm_d_epp_scheduler_attempts_total", "Placements of requests, retries included.", attempts)
    info = GaugeMetricFamily("llm_d_epp_info", "Always 1; the build is in the labels.", labels=["commit", "build_ref"])
    info.add_metric(["", f"beaconry {__version__}"], 1)
    yield info
