"""What is left of a tenant's limits as HTTP headers: OpenAI's names, which its client libraries and their users know.

OpenAI counts tokens in and out together; here they are limited apart. `x-ratelimit-*-tokens` tells of the scarcer of the two, since that
is what would stop the client next, and `-input-tokens` and `-output-tokens` tell of each.
"""

from collections.abc import Sequence

from beaconry.values.tenant import Allowance, LimitKind

RATE_LIMIT_PREFIX = b"x-ratelimit-"
Headers = list[tuple[bytes, bytes]]


def rate_limit_headers(allowances: Sequence[Allowance]) -> Headers:
    """Three headers for each limit, and three for the scarcer one of those on tokens."""
    headers = [header for one in allowances for header in _headers(one.kind.value, one)]
    tokens = [one for one in allowances if one.kind in (LimitKind.INPUT_TOKENS, LimitKind.OUTPUT_TOKENS)]
    if tokens:
        headers += _headers("tokens", min(tokens, key=lambda one: one.remaining / one.limit))
    return headers


def duration(seconds: float) -> bytes:
    """As OpenAI writes them: `20ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return b"%dms" % round(1e3 * seconds)
    minutes, rest = divmod(round(seconds, 3), 60)
    return (f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:.4g}s").encode()


def _headers(name: str, one: Allowance) -> Headers:
    kind = name.encode()
    return [
        (b"%blimit-%b" % (RATE_LIMIT_PREFIX, kind), b"%d" % one.limit),
        (b"%bremaining-%b" % (RATE_LIMIT_PREFIX, kind), b"%d" % one.remaining),
        (b"%breset-%b" % (RATE_LIMIT_PREFIX, kind), duration(one.reset_s)),
    ]
