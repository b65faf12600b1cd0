"""Which HTTP headers may pass the gateway, in each direction."""

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, section 7.6.1, and the unofficial Proxy-Connection."""
_REQUEST_DROPPED = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"epp-profile", b"prefer", b"http2-settings"}
_RESPONSE_DROPPED = HOP_BY_HOP | {b"content-length"}
INTERNAL_PREFIXES = (
    b"x-beaconry-",
    b"x-llm-d-",
    b"x-gateway-",
    b"x-slo-",
    b"x-prefiller-",
    b"x-encoder-",
    b"x-data-parallel-",
    b"x-kv-cache-source-",
    b"x-vllm-",
)
"""Headers by which routers steer engines and sidecars: from a client they could choose a peer, a rank or a priority."""


def for_engine(headers: Headers, without: frozenset[bytes] = frozenset()) -> bytes:
    """The client's headers as they go to an engine, rendered; framing and internal ones left out, and those that `without` names."""
    dropped = _REQUEST_DROPPED | _named_by_connection(headers) | without
    return b"".join(
        [
            b"%b: %b\r\n" % header
            for header in headers
            if header[0] not in dropped and not header[0].startswith(INTERNAL_PREFIXES)
        ]
    )


def without_encoding(rendered: bytes) -> bytes:
    """Headers as `for_engine` renders them, less what lets an engine compress its answer."""
    if b"accept-encoding" not in rendered:
        return rendered
    return b"".join(line for line in rendered.splitlines(keepends=True) if not line.startswith(b"accept-encoding:"))


def for_client(headers: Headers) -> Headers:
    """An engine's headers as they go to the client."""
    dropped = _RESPONSE_DROPPED | _named_by_connection(headers)
    return [header for header in headers if header[0] not in dropped and not header[0].startswith(b"x-beaconry-")]


def is_stream(headers: Headers) -> bool:
    """Whether an answer is a stream of events."""
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Headers that `Connection` declares to be hop-by-hop."""
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            return frozenset(token.strip().lower() for token in value.split(b","))
    return frozenset()
