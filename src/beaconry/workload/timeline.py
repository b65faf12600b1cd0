"""A run over time: what was asked, what came back and how fast, in buckets of equal length."""

from collections.abc import Sequence

from msgspec import Struct

from beaconry.workload.distribution import quantile
from beaconry.workload.sample import Sample

MOST_BUCKETS = 120
FEWEST_BUCKETS = 20
SAMPLES_PER_BUCKET = 5
"""Fewer make percentiles of noise, so runs of few requests have longer buckets."""
ROUND_LENGTHS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class Timeline(Struct, frozen=True, kw_only=True):
    """Series of one number per bucket: bucket i begins `i * bucket_s` after the start of the run, warm-up included."""

    bucket_s: float
    warmup_s: float
    planned_per_s: tuple[float, ...]
    """Requests by planned time."""
    output_tokens_per_s: tuple[float, ...]
    """Each reply's tokens, spread evenly from its first content to its end."""
    errors: tuple[int, ...]
    """Failures by planned time."""
    ttft_p50_s: tuple[float | None, ...]
    """Of the requests planned in the bucket; None if none succeeded."""
    ttft_p90_s: tuple[float | None, ...]


def timeline(samples: Sequence[Sample], warmup_s: float = 0.0) -> Timeline | None:
    """The series of a run; None without samples."""
    if not samples:
        return None
    end_s = max(sample.end_s for sample in samples)
    most = max(FEWEST_BUCKETS, min(MOST_BUCKETS, len(samples) // SAMPLES_PER_BUCKET))
    bucket_s = next((length for length in ROUND_LENGTHS_S if end_s / length <= most), end_s / most)
    buckets = int(end_s / bucket_s) + 1
    planned, errors, tokens = [0] * buckets, [0] * buckets, [0.0] * buckets
    ttfts: list[list[float]] = [[] for _ in range(buckets)]
    for sample in samples:
        bucket = int(sample.planned_s / bucket_s)
        planned[bucket] += 1
        if sample.error is not None:
            errors[bucket] += 1
        elif sample.ttft_s is not None:
            ttfts[bucket].append(sample.ttft_s)
            _spread(tokens, sample, bucket_s)
    for values in ttfts:
        values.sort()
    return Timeline(
        bucket_s=bucket_s,
        warmup_s=warmup_s,
        planned_per_s=tuple(number / bucket_s for number in planned),
        output_tokens_per_s=tuple(number / bucket_s for number in tokens),
        errors=tuple(errors),
        ttft_p50_s=tuple(quantile(values, 0.5) if values else None for values in ttfts),
        ttft_p90_s=tuple(quantile(values, 0.9) if values else None for values in ttfts),
    )


def _spread(tokens: list[float], sample: Sample, bucket_s: float) -> None:
    """Add the sample's output tokens to the buckets its reply covers, in proportion."""
    if sample.first_s is None or not sample.output_tokens:
        return
    start, end = sample.first_s / bucket_s, sample.end_s / bucket_s
    first, last = int(start), int(end)
    if first == last:
        tokens[first] += sample.output_tokens
        return
    per_bucket = sample.output_tokens / (end - start)
    for bucket in range(first, last + 1):
        tokens[bucket] += per_bucket * (min(end, bucket + 1) - max(start, bucket))
