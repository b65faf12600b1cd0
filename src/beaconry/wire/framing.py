"""What makes a request head one clear request: RFC 9112 beyond what llhttp checks, and the limits.

Two parties that disagree on where a request ends let a client slip a second one past the first of them. So whatever can be read in two
ways is refused.
"""

from math import inf

import httptools

from beaconry.config.gateway import Limits
from beaconry.wire.headers import Headers

Fault = tuple[int, str, str]
"""Status, message and code of a refusal."""
UPGRADE: Fault = (501, "protocol upgrades such as WebSocket are not supported; send plain HTTP/1.1", "upgrade")
_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
LENGTH_DIGITS = 19
"""Of a Content-Length: more are absurd, and Python refuses to read thousands."""


def fault_of_headers(headers: Headers, limits: Limits, *, modern: bool) -> Fault | None:
    """What is wrong with a request's headers (names in lower case); None if nothing is. `modern` is HTTP/1.1."""
    if len(headers) > limits.headers:
        return 431, f"there are more than the {limits.headers} headers this gateway takes", "too_many_headers"
    hosts = 0
    for name, value in headers:
        if name not in _FRAMING:
            continue
        if name == b"host":
            hosts += 1
        elif name == b"content-length" and (len(value) > LENGTH_DIGITS or int(value) > limits.body_bytes):
            return body_too_large(limits)
        elif name == b"transfer-encoding" and not (modern and value.lower() == b"chunked"):
            return 400, "only `Transfer-Encoding: chunked` is understood, and only in HTTP/1.1", "transfer_encoding"
        elif name == b"expect" and value.lower() != b"100-continue":
            return 417, "only `Expect: 100-continue` is understood", "expectation_failed"
    if hosts > 1 or (hosts == 0 and modern):
        return 400, "exactly one Host header is needed", "bad_host"
    return None


def expects_continue(headers: Headers) -> bool:
    """The client waits for a go-ahead before it sends the body."""
    for name, _ in headers:  # noqa: SIM110 for every request, and a generator takes three times as long
        if name == b"expect":
            return True
    return False


def head_bytes(target: bytes, headers: Headers) -> int:
    """The size of request target and headers, roughly as sent."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def headers_too_large(limits: Limits) -> Fault:
    """431."""
    return (
        431,
        f"request line and headers are larger than the {limits.header_bytes} bytes this gateway takes",
        "headers_too_large",
    )


def body_too_large(limits: Limits) -> Fault:
    """413."""
    return 413, f"the request body is larger than the {limits.body_bytes} bytes this gateway takes", "body_too_large"


def body_bytes(headers: Headers) -> float:
    """How long a body its head announces; infinity for a chunked one, which does not say."""
    for name, value in headers:
        if name == b"transfer-encoding":
            return inf
        if name == b"content-length":
            return int(value)
    return 0


def origin_form(target: bytes) -> bytes:
    """`/path?query` of a request target; `http://host/path` is accepted as RFC 9112 demands. ValueError otherwise."""
    if target[:1] == b"/":
        return target
    if target == b"*":
        return target
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError as error:
        raise ValueError("not a URL") from error
    if not url.schema or not url.host:
        raise ValueError("not an absolute URL")
    path = url.path or b"/"
    return bytes(path + b"?" + url.query if url.query else path)
