"""Metrics by tenant. Only tenants that are configured have any, so clients cannot make labels."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from beaconry.tenancy.reception import ReceptionStatistics
from beaconry.values.outcome import Outcome
from beaconry.values.tenant import LimitKind, TenantStatistics


def key_metrics(reception: ReceptionStatistics) -> Iterator[Metric]:
    """Who was not let in."""
    refused = CounterMetricFamily(
        "beaconry_keys_refused_total", "Requests refused for want of an API key.", labels=["reason"]
    )
    refused.add_metric(["missing"], reception.missing_keys)
    refused.add_metric(["unknown"], reception.unknown_keys)
    yield refused


def tenant_metrics(tenants: Mapping[str, TenantStatistics]) -> Iterator[Metric]:
    """All families; nothing where there are no tenants."""
    if not tenants:
        return
    requests = CounterMetricFamily(
        "beaconry_tenant_requests_total", "Requests that have ended, by how.", labels=["tenant", "outcome"]
    )
    limited = CounterMetricFamily(
        "beaconry_tenant_limited_total",
        "Requests refused, by the limit that was in the way.",
        labels=["tenant", "limit"],
    )
    running = GaugeMetricFamily("beaconry_tenant_requests_running", "Requests that have not ended.", labels=["tenant"])
    tokens = CounterMetricFamily(
        "beaconry_tenant_tokens_total", "Tokens, as engines reported.", labels=["tenant", "direction"]
    )
    for name, tenant in tenants.items():
        for outcome in Outcome:
            requests.add_metric([name, outcome.value], tenant.outcomes.get(outcome, 0))
        for kind in LimitKind:
            limited.add_metric([name, kind.value], tenant.limited.get(kind, 0))
        running.add_metric([name], tenant.running)
        tokens.add_metric([name, "input"], tenant.input_tokens)
        tokens.add_metric([name, "output"], tenant.output_tokens)
    yield from (requests, limited, running, tokens)
