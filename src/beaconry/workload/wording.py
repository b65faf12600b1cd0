"""How figures are written, and what a reader of a result has to know before believing it."""

from beaconry.workload.result import Result

LAG_SHARE = 0.1
"""A client lag (p99) above this share of the median TTFT is worth a word: the client then shapes the figures."""
LAG_FLOOR_S = 0.005
"""Timers and schedulers cost this much anyway."""
BUSY_CLIENT = 0.8


def in_short(value: float) -> str:
    """A number with three significant digits, or all digits of its whole part: 0.0123, 4.57, 1,234."""
    size = abs(value)
    if size == 0 or size >= 100 or value == int(value):
        return f"{value:,.0f}"
    digits = 2 if size >= 1 else 3
    return f"{value:.{digits - (size >= 10)}f}" if size >= 0.01 else f"{value:.2g}"


def change_in_short(change: float) -> str:
    """A relative change: +12%, -3%, and as a factor where percents become hard to read: x4.2."""
    return f"{change:+.0%}" if change < 1 else f"x{in_short(1 + change)}"


def remarks(result: Result) -> list[str]:
    """What casts doubt on a result, in plain sentences; empty if nothing does."""
    summary = result.summary
    found = []
    if summary.interrupted:
        found.append(f"stopped by hand: {summary.interrupted} requests were cut off and are not counted")
    if not summary.requests:
        found.append("no request is counted")
    lag, ttft = summary.lag_s, summary.ttft_s
    if lag is not None and ttft is not None and lag.p99 > max(LAG_FLOOR_S, LAG_SHARE * ttft.p50):
        found.append(
            f"the client sent up to {in_short(1000 * lag.p99)} ms late (p99), and latencies contain that:"
            " it was short of CPU or of connections (--max-connections)"
        )
    if result.client_cpu is not None and result.client_cpu > BUSY_CLIENT:
        found.append(
            f"the client was busy {result.client_cpu:.0%} of the time: it may have been the bottleneck; run several with a lower rate"
        )
    if summary.succeeded and summary.hit_rate is None:
        found.append("the server does not report cached tokens, so the hit rate is unknown")
    if summary.short_replies:
        found.append(
            f"{summary.short_replies} answers were shorter than asked for: the server does not honour ignore_eos or max_tokens"
        )
    return found
