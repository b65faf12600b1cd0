"""How long do streams wait while somebody reads the gateway's metrics?

A router with so many endpoints and four models, whose page is made in one process: CPU time of the whole page, of its longest slice (which
is what a stream may wait for), and of `prometheus_client` writing the same families, without making them.

    python -m benchmarks.metrics_page
"""

import time
from collections.abc import Callable
from statistics import median

from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from beaconry.apps.assemble import make_router
from beaconry.config.gateway import GatewayConfig
from beaconry.io.http_server import ServerStatistics
from beaconry.io.metrics import MetricsPage
from beaconry.router.facts import EndpointSeen, LoadSampled
from beaconry.values.endpoint import Endpoint, LoadSample
from benchmarks import report

ENDPOINTS = (16, 256, 1000)
MODELS = 4


class Figures(Struct, frozen=True, kw_only=True):
    """One size, in milliseconds of CPU time."""

    endpoints: int
    lines: int
    page_ms: float
    longest_slice_ms: float
    library_ms: float


class _Families(Collector):
    """Families that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def page_of(endpoints: int) -> MetricsPage:
    """The page of a gateway with so many endpoints."""
    router = make_router(GatewayConfig())
    for i in range(endpoints):
        name = f"engine-{i}"
        router.handle(EndpointSeen(Endpoint(name=name, host="h", port=1, model=f"model-{i % MODELS}")), 0.0)
        router.handle(LoadSampled(name, LoadSample(at_s=0.5, running=3, waiting=1, kv_usage=0.5)), 0.5)
    server = ServerStatistics(connections=0, buffered_bytes=0, refused={})
    return MetricsPage(lambda: router.statistics(1.0), lambda: server, dict)


def milliseconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return 1e3 * (time.process_time() - began)


def measure(endpoints: int, rounds: int) -> Figures:
    """Medians."""
    page = page_of(endpoints)
    text = b"".join(page.slices()).decode()
    registry = CollectorRegistry()
    registry.register(_Families(list(text_string_to_metric_families(text))))
    whole, longest, library = [], [], []
    for _ in range(rounds):
        slices = page.slices()
        each = [milliseconds(lambda: next(slices, None)) for _ in range(1 + len(text) // 1000)]  # noqa: B023 used at once
        whole.append(sum(each))
        longest.append(max(each))
        library.append(milliseconds(lambda: generate_latest(registry)))
    return Figures(
        endpoints=endpoints,
        lines=text.count("\n"),
        page_ms=median(whole),
        longest_slice_ms=median(longest),
        library_ms=median(library),
    )


def main() -> None:
    args = report.options(__doc__.splitlines()[0]).parse_args()
    figures = [measure(endpoints, 3 if args.smoke else 15) for endpoints in ENDPOINTS[: 2 if args.smoke else None]]
    columns = ("endpoints", "lines", "page, ms", "longest slice", "prometheus_client, ms")
    rows = [(f.endpoints, f.lines, f.page_ms, f.longest_slice_ms, f.library_ms) for f in figures]
    report.table("A page of metrics, CPU time", columns, rows)
    report.save(args.json, figures)


if __name__ == "__main__":
    main()
