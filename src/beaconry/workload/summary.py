"""From samples to figures: one maths for bench, simulator and dashboard.

Which requests count: those planned at or after the warm-up, except those cut off when the run was stopped by hand. Failed ones count as
SLO misses and in no latency. Rates are over the span from the first counted request's planned time to the last counted end, so a backlog
at the end lowers them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from beaconry.workload.distribution import Distribution, distribution
from beaconry.workload.sample import INTERRUPTED, Sample, Slo
from beaconry.workload.timeline import Timeline, timeline


class Summary(Struct, frozen=True, kw_only=True):
    """One run in figures. Latencies in seconds from the planned send time, rates per second, shares 0..1."""

    requests: int
    """Counted requests: `succeeded` + `failed`."""
    succeeded: int
    failed: int
    errors: dict[str, int] = {}
    """Failures by kind, most frequent first."""
    error_examples: dict[str, str] = {}
    warming: int = 0
    """Requests left out because they were planned during the warm-up."""
    interrupted: int = 0
    """Requests left out because the run was stopped while they were in flight."""
    span_s: float = 0.0
    ttft_s: Distribution | None = None
    itl_s: Distribution | None = None
    """Gaps between content chunks, over all requests."""
    tpot_s: Distribution | None = None
    """Mean inter-token time of each request."""
    e2e_s: Distribution | None = None
    lag_s: Distribution | None = None
    """How late the client sent. Already inside the latencies; if it is not small, the client was the bottleneck."""
    requests_per_s: float = 0.0
    """Successes."""
    prompt_tokens_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    short_replies: int = 0
    """Successes with fewer tokens than planned: the engine does not honour `ignore_eos`, so its load was lighter than asked for."""
    hit_rate: float | None = None
    """Cached share of the prompt tokens, as engines report; None if none does."""
    ideal_hit_rate: float | None = None
    """The same for one cache without limits that holds each prompt from the moment it is sent."""
    slo: Slo | None = None
    attainment: float | None = None
    """Share of the counted requests that met the SLO."""
    missed: dict[str, int] = {}
    """Successes that missed a target, by target: "ttft", "itl"."""
    goodput: float | None = None
    """Requests per second that met the SLO."""
    endpoints: dict[str, int] = {}
    """Successes per endpoint, where the gateway names it."""
    timeline: Timeline | None = None


def summarise(samples: Sequence[Sample], *, slo: Slo | None = None, warmup_s: float = 0.0) -> Summary:
    """The figures of a run."""
    ended = [sample for sample in samples if sample.error != INTERRUPTED]
    counted = [sample for sample in ended if sample.planned_s >= warmup_s]
    good = [sample for sample in counted if sample.error is None]
    errors = Counter(sample.error for sample in counted if sample.error is not None)
    span_s = max((s.end_s for s in counted), default=0.0) - min((s.planned_s for s in counted), default=0.0)
    per_s = 1.0 / span_s if span_s > 0 else 0.0
    prompt_tokens = sum(sample.prompt_tokens or 0 for sample in good)
    output_tokens = sum(sample.output_tokens or 0 for sample in good)
    met = sum(map(slo.met_by, counted)) if slo else None
    return Summary(
        requests=len(counted),
        succeeded=len(good),
        failed=len(counted) - len(good),
        errors=dict(errors.most_common()),
        error_examples=_examples(counted),
        warming=len(ended) - len(counted),
        interrupted=len(samples) - len(ended),
        span_s=span_s,
        ttft_s=distribution(sample.ttft_s for sample in good if sample.ttft_s is not None),
        itl_s=distribution(gap for sample in good for gap in sample.gaps_s),
        tpot_s=distribution(sample.tpot_s for sample in good if sample.tpot_s is not None),
        e2e_s=distribution(sample.e2e_s for sample in good),
        lag_s=distribution(sample.lag_s for sample in counted),
        requests_per_s=len(good) * per_s,
        prompt_tokens_per_s=prompt_tokens * per_s,
        output_tokens_per_s=output_tokens * per_s,
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(sample.cached_tokens or 0 for sample in good),
        output_tokens=output_tokens,
        short_replies=sum(
            sample.output_tokens is not None and sample.output_tokens < sample.planned_output_tokens for sample in good
        ),
        hit_rate=_share((s.cached_tokens, s.prompt_tokens) for s in good if s.cached_tokens is not None),
        ideal_hit_rate=_share((s.ideal_cached_tokens, s.planned_prompt_tokens) for s in good),
        slo=slo,
        missed=dict(Counter(target for sample in counted for target in slo.missed_by(sample))) if slo else {},
        attainment=met / len(counted) if met is not None and counted else None,
        goodput=met * per_s if met is not None and counted else None,
        endpoints=dict(sorted(Counter(s.endpoint for s in good if s.endpoint is not None).items())),
        timeline=timeline(ended, warmup_s),
    )


def _examples(samples: Iterable[Sample]) -> dict[str, str]:
    """The first failure's detail, for each kind that has one."""
    examples: dict[str, str] = {}
    for sample in samples:
        if sample.error is not None and sample.detail:
            examples.setdefault(sample.error, sample.detail)
    return examples


def _share(pairs: Iterable[tuple[int | None, int | None]]) -> float | None:
    """Sum of the first parts over sum of the second ones; None if there is nothing to divide by."""
    part = whole = 0
    for some, every in pairs:
        part += some or 0
        whole += every or 0
    return part / whole if whole else None
