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
_X = ord("x")
"""With which all of them begin: a look at one byte spares most headers the comparison with each. (llhttp gives no empty names.)"""
_NONE: frozenset[bytes] = frozenset()


def for_engine(headers: Headers, without: frozenset[bytes] = _NONE) -> bytes:
    """The client's headers as they go to an engine, rendered; framing and internal ones left out, and those that `without` names."""
    parts: list[bytes] = []
    for name, value in headers:
        if name in _REQUEST_DROPPED:
            if name == b"connection" and (named := _named_by_connection(value) - without):
                return for_engine(headers, without | named)
        elif name not in without and (name[0] != _X or not name.startswith(INTERNAL_PREFIXES)):
            parts += (name, b": ", value, b"\r\n")
    return b"".join(parts)


def without_encoding(rendered: bytes) -> bytes:
    """Headers as `for_engine` renders them, less what lets an engine compress its answer."""
    if b"accept-encoding" not in rendered:
        return rendered
    return b"".join(line for line in rendered.splitlines(keepends=True) if not line.startswith(b"accept-encoding:"))


def for_client(headers: Headers, without: frozenset[bytes] = _NONE) -> Headers:
    """An engine's headers as they go to the client."""
    kept: Headers = []
    for header in headers:
        name = header[0]
        if name in _RESPONSE_DROPPED:
            if name == b"connection" and (named := _named_by_connection(header[1]) - without):
                return for_client(headers, without | named)
        elif name not in without and (name[0] != _X or not name.startswith(b"x-beaconry-")):
            kept.append(header)
    return kept


def is_stream(headers: Headers) -> bool:
    """Whether an answer is a stream of events."""
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False


def _named_by_connection(value: bytes) -> frozenset[bytes]:
    """Headers that a `Connection` declares to be hop-by-hop."""
    if value.lower() in (b"keep-alive", b"close"):
        return _NONE
    return frozenset(token.strip().lower() for token in value.split(b","))
