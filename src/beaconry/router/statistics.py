"""What the router has counted: histograms that sort values into buckets by the dozen, and frozen snapshots for metrics, views and tests."""

from bisect import bisect_right

from msgspec import Struct

from beaconry.latency.variant_book import VariantStatistics
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.outcome import Outcome
from beaconry.values.request import Usage
from beaconry.values.stage import Stage
from beaconry.values.tenant import TenantStatistics

WAIT_BOUNDS_S = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
"""llm-d's range of queue waits."""
LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800, 3600)
"""llm-d's request buckets, 5 ms to an hour."""
ITL_BOUNDS_S = (
    0.0005,
    0.00205,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.125,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.8,
    1,
    2,
)
"""llm-d's TPOT buckets."""
TOKEN_BOUNDS = tuple(float(1 << i) for i in range(21))
"""Powers of two to a million tokens."""
AT_ONCE = 64
"""Values that a histogram counts together."""


class Distribution(Struct, frozen=True, kw_only=True):
    """A histogram's content: `counts[i]` values up to `bounds[i]`, one more for those beyond."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """Interpolated within its bucket, None without values."""
        rank, below = q * self.count, 0
        if not self.count:
            return None
        for index, count in enumerate(self.counts):
            if below + count >= rank and count:
                low = self.bounds[index - 1] if index else 0.0
                high = self.bounds[min(index, len(self.bounds) - 1)]
                return low + (high - low) * (rank - below) / count
            below += count
        return self.bounds[-1]


class Histogram:
    """Counts values into buckets. They are kept as they come until there are enough of them that sorting them is cheaper than looking for
    each one's bucket."""

    __slots__ = ("_bounds", "_counts", "_latest", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._latest: list[float] = []
        """Not yet counted; fewer than `AT_ONCE`."""

    def add(self, value: float) -> None:
        """Count one value."""
        latest = self._latest
        latest.append(value)
        if len(latest) == AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        """Count what has come lately."""
        latest, counts, below = self._latest, self._counts, 0
        latest.sort()
        for index, bound in enumerate(self._bounds):
            upto = bisect_right(latest, bound, below)
            counts[index] += upto - below
            below = upto
            if below == len(latest):
                break
        counts[-1] += len(latest) - below
        self._total += sum(latest)
        latest.clear()

    def snapshot(self) -> Distribution:
        """As it is now."""
        self._settle()
        return Distribution(bounds=self._bounds, counts=tuple(self._counts), total=self._total)


class EndpointStatistics(Struct, frozen=True, kw_only=True):
    """One endpoint at one moment."""

    endpoint: Endpoint
    state: str
    """ready | draining | ejected | probing | unhealthy."""
    prefilling: int
    prefill_tokens: int
    decoding: int
    context_tokens: int
    sample: LoadSample | None
    dispatched: int
    """Legs sent here, ever; likewise all below."""
    failed: int
    prompt_tokens: int
    cached_tokens: int
    predicted_cached_tokens: int
    """What the index believed cached, of legs whose engine reported it: beside `cached_tokens` it tells how true the index is."""
    output_tokens: int
    ttft: Distribution
    kv_state: str | None = None
    """exact | degraded | cold: how well its engine's KV events tell what it holds; None if it has none."""
    exact: bool = False
    """Requests are placed by what it really holds; else by what our routing history suggests."""


class ModelStatistics(Struct, frozen=True, kw_only=True):
    """One model's requests so far."""

    outcomes: dict[Outcome, int]
    running: int
    ttft: Distribution
    """Arrival to first byte, streams only."""
    itl: Distribution
    """Mean gap between output tokens, one value per stream."""
    e2e: Distribution
    input_tokens: Distribution
    output_tokens: Distribution
    cached_tokens: Distribution
    plans: dict[tuple[Stage, str], int] = {}
    """First legs by their stage (whole or prefill) and the reason for it; empty where no prefill endpoint serves the model."""


class BandFigures(Struct, frozen=True, kw_only=True):
    """One priority band of one model, of one stage."""

    model: str
    stage: Stage = Stage.WHOLE
    """The first of their legs: those that are to be prefilled elsewhere wait by themselves."""
    band: str
    """Its name; "other" for all that are not configured."""
    queued_requests: int
    queued_tokens: int
    queued_bytes: int
    waits: Distribution
    """Seconds from arrival to dispatch, of those that were dispatched."""
    dropped: dict[Outcome, int]
    """Requests that ended without having been dispatched, by how."""


class FlowStatistics(Struct, frozen=True, kw_only=True):
    """What waits, has waited, and for how much room."""

    bands: tuple[BandFigures, ...] = ()
    saturation: dict[tuple[str, Stage], float] = {}
    """By model, of its endpoints that answer (whole) and that prefill: mean of the predicted wait, as a share of what may wait there, at
    most 1; 1 without endpoints."""
    room: dict[str, float] = {}
    """Shares of the bounds in use, all models together: requests, tokens, bytes."""
    enabled: bool = True


class RouterStatistics(Struct, frozen=True, kw_only=True):
    """Everything the router counts, at one moment."""

    at_s: float
    """That moment, by the router's clock: ages of samples count from here."""
    endpoints: tuple[EndpointStatistics, ...]
    models: dict[str, ModelStatistics]
    tenants: dict[str, TenantStatistics] = {}
    """By name; those configured now."""
    refused: int
    """Requests that never reached a model: malformed, too large, unknown model."""
    retries: int
    recalls: int
    """Legs taken back to the queue for a higher band."""
    in_flight: int
    draining: bool
    predictions: dict[str, VariantStatistics] = {}
    """How right the forecasts have been, by variant."""
    flow: FlowStatistics = FlowStatistics()
    plugin_failures: dict[str, int] = {}
    """How often each plugin ("kind/name") raised, and was passed over."""


class ModelCounters:
    """The counters behind ModelStatistics."""

    __slots__ = ("cached_tokens", "e2e", "input_tokens", "itl", "outcomes", "output_tokens", "plans", "running", "ttft")

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = {}
        self.running = 0
        """Requests admitted and not ended."""
        self.plans: dict[tuple[Stage, str], int] = {}
        """First legs by their stage and the reason for it; empty without prefill endpoints."""
        self.ttft = Histogram(LATENCY_BOUNDS_S)
        self.itl = Histogram(ITL_BOUNDS_S)
        self.e2e = Histogram(LATENCY_BOUNDS_S)
        self.input_tokens = Histogram(TOKEN_BOUNDS)
        self.output_tokens = Histogram(TOKEN_BOUNDS)
        self.cached_tokens = Histogram(TOKEN_BOUNDS)

    def count_usage(self, usage: Usage, decode_s: float) -> None:
        """Count a completed request's tokens, and its mean inter-token time if it was a stream (`decode_s` above 0)."""
        self.input_tokens.add(usage.prompt_tokens)
        self.output_tokens.add(usage.completion_tokens)
        if usage.cached_tokens is not None:
            self.cached_tokens.add(usage.cached_tokens)
        if decode_s > 0 and usage.completion_tokens > 1:
            self.itl.add(decode_s / (usage.completion_tokens - 1))

    def snapshot(self) -> ModelStatistics:
        """As they are now."""
        return ModelStatistics(
            outcomes=dict(self.outcomes),
            running=self.running,
            ttft=self.ttft.snapshot(),
            itl=self.itl.snapshot(),
            e2e=self.e2e.snapshot(),
            input_tokens=self.input_tokens.snapshot(),
            output_tokens=self.output_tokens.snapshot(),
            cached_tokens=self.cached_tokens.snapshot(),
            plans=dict(self.plans),
        )
