"""Malformed requests without end: valid ones, broken at random. Case `index` of a `seed` is always the same bytes."""

import json
from collections.abc import Callable
from random import Random

Mutation = Callable[[Random, bytes], bytes]
END = b"\r\n\r\n"

BODIES: tuple[tuple[str, dict[str, object]], ...] = (
    ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}),
    (
        "/v1/chat/completions",
        {
            "model": "m",
            "stream": True,
            "stream_options": {"include_usage": False},
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,AA=="}}]},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "n": 2,
            "cache_salt": "s",
        },
    ),
    ("/v1/completions", {"model": "m", "prompt": "once upon", "max_tokens": 5, "stream": True}),
    ("/v1/completions", {"model": "m", "prompt": [1, 2, 3], "vllm_xargs": {"a": 1}}),
    ("/v1/completions", {"model": "m", "prompt": [[1, 2], [3]], "kv_transfer_params": {"do_remote_prefill": True}}),
    ("/v1/embeddings", {"model": "m", "input": ["a", "b"]}),
    (
        "/v1/responses",
        {"model": "m", "input": [{"role": "user", "content": "x"}], "instructions": "short", "tools": []},
    ),
    ("/v1/rerank", {"model": "m", "query": "q", "documents": ["a"]}),
)
LOOKUPS = (b"GET /v1/models HTTP/1.1", b"HEAD /health HTTP/1.1", b"GET /metrics HTTP/1.1", b"OPTIONS * HTTP/1.1")
JUNK: tuple[object, ...] = (
    None, True, 0, -1, 1.5, 1e308, 2**31, 2**63, 2**64, -(2**63), 10**40, 10**400, "", "m", "\0", "\ud800", "é", "x" * 5000,
    [], {}, [[]], [None], [1, "a"], [[1], "a"], {"a": {}}, [{}], [{"role": 1}], {"include_usage": 1},
)  # fmt: skip
RAW_JUNK = (
    b"NaN", b"Infinity", b"-", b"01", b"1e999", b"1e-999999999999", b"9" * 5000, b'"\xff"', b'"\xc3\x28"', b'"\\q"', b'"\\u12"',
    b'"\\ud83d"', b'"\x00"', b"[" * 200 + b"]" * 200, b"[" * 50_000, b'{"a":' * 900 + b"1" + b"}" * 900, b"tru", b"{,}", b"[1,]",
    b'{"a":1,"a":2}', b"\xef\xbb\xbf1", b"/*c*/1", b"'x'",
)  # fmt: skip
HEADERS = (
    b"content-length: 5", b"content-length: 0", b"content-length: -1", b"content-length: +5", b"content-length: 5, 5",
    b"content-length: 99999999999999999999", b"content-length: " + b"0" * 5000 + b"7", b"content-length:", b"content-length: 0x10",
    b"transfer-encoding: chunked", b"transfer-encoding: gzip, chunked", b"transfer-encoding: chunked, identity",
    b"transfer-encoding: \x0bchunked", b"transfer-encoding : chunked", b"Transfer-Encoding: CHUNKED", b"transfer-encoding: x",
    b"transfer-encoding:", b"te: trailers", b"connection: close", b"connection: upgrade\r\nupgrade: websocket", b"connection: x, , y",
    b"connection: content-length, host", b"upgrade: h2c", b"expect: 100-continue", b"expect: 200-ok", b"host: b", b"host:", b": empty",
    b"no colon", b" folded: x", b"\tx", b"a\x00b: c", b"a: \x00", b"a: b\rc", b"a: b\nc: d", b"\xff: \xff", b"x: " + b"y" * 70_000,
    b"x:y\r\n" * 3000 + b"z: z", b"x-request-id: " + b"q" * 300, b"content-type: multipart/form-data", b"x-data-parallel-rank: 7",
    b"content-encoding: gzip", b"http2-settings: x",
)  # fmt: skip
TARGETS = (
    b"*", b"/", b"", b"//", b"/v1", b"/v1/", b"/v1//x", b"/v1/../sleep", b"/v1/%2e%2e/sleep", b"/v1/chat/completions?a=b#c", b"/\xff",
    b"/v1/models/", b"http://h/v1/models", b"http://", b"http:///", b"ftp://a:b@c:99999/x", b"h:443", b"/a b", b"/\x01", b"/v1/\x00",
    b"/" + b"x" * 70_000, b"/v1/chat/completions;x", b"\\v1", b"/v1/load_lora_adapter", b"?", b"#", b"/v1/models/%00",
)  # fmt: skip
METHODS = (
    b"GET",
    b"HEAD",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"TRACE",
    b"PRI",
    b"post",
    b"",
    b"M-SEARCH",
    b"P\x00ST",
    b"X" * 5000,
    b"SOURCE",
)
VERSIONS = (
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.2",
    b"HTTP/1.",
    b"",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"HTTP/9.9",
    b"RTSP/1.0",
    b"ICE/1.0",
)
CHUNK_SIZES = (
    b"-1", b"0x3", b"+3", b"ffffffffffffffffff", b"FFFFFFFF", b"", b" 3", b"3 ", b"3;a=b", b"3;" + b"e" * 9000, b"3\n", b"g",
    b"00000003", b"2", b"4",
)  # fmt: skip
BYTES = (b"\x00", b"\r", b"\n", b"\r\n", b"\xff", b" ", b"\t", b":", b";", b"\x7f", END)


def post(path: str, body: bytes, *headers: bytes) -> bytes:
    """A POST with a body and these headers besides."""
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"host: x", *headers, b"content-length: %d" % len(body)]
    return b"\r\n".join(lines) + END + body


def valid(rng: Random, tag: str = "") -> bytes:
    """A request that must be answered with success; `tag` marks its body."""
    if rng.random() < 0.1:
        return rng.choice(LOOKUPS[:3]) + b"\r\nhost: x" + END
    path, document = rng.choice(BODIES)
    return post(path, json.dumps({**document, "user": tag}).encode())


# -- mutations of bytes


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _insert(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(BYTES) * rng.choice((1, 1, 1, 40)) + data[at:]


def _cut_out(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randrange(1, 20) :]


def _repeat(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.randrange(1, 200)]
    return data[:at] + piece * rng.choice((2, 3, 50)) + data[at:]


def _shuffle_lines(rng: Random, data: bytes) -> bytes:
    head, _, body = data.partition(END)
    lines = head.split(b"\r\n")
    rng.shuffle(lines)
    return b"\r\n".join(lines) + END + body


def _bare_line_feeds(rng: Random, data: bytes) -> bytes:
    return data.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\r\n", b"\n\r")), rng.choice((1, 2, -1)))


def _header_soup(rng: Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines.insert(rng.randrange(1, 4), rng.choice(HEADERS))
    return b"\r\n".join(lines)


def _request_line(rng: Random, data: bytes) -> bytes:
    parts = [b"POST", b"/v1/chat/completions", b"HTTP/1.1"]
    which = rng.randrange(3)
    parts[which] = rng.choice((METHODS, TARGETS, VERSIONS)[which])
    return rng.choice((b" ", b" ", b" ", b"  ", b"\t")).join(parts) + b"\r\n" + data.partition(b"\r\n")[2]


def _chunked(rng: Random, data: bytes) -> bytes:
    """The body in chunks, one of which may be sized absurdly; sometimes with trailers, sometimes with Content-Length too."""
    head, _, body = data.partition(END)
    if rng.random() < 0.8:
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"content-length"))
    pieces = []
    while body:
        size = rng.randrange(1, 60)
        pieces.append((b"%x" % len(body[:size]), body[:size]))
        body = body[size:]
    if pieces and rng.random() < 0.7:
        at = rng.randrange(len(pieces))
        pieces[at] = (rng.choice(CHUNK_SIZES), pieces[at][1])
    end = rng.choice(
        (
            b"0\r\n\r\n",
            b"0\r\n\r\n",
            b"0\r\nx: y\r\ncontent-length: 9\r\n\r\n",
            b"",
            b"0\r\n",
            b"00\r\n\r\nX",
            b"0\r\n" + b"t: u\r\n" * 20_000,
        )
    )
    return head + b"\r\ntransfer-encoding: chunked" + END + b"".join(b"%b\r\n%b\r\n" % piece for piece in pieces) + end


def _pipeline(rng: Random, data: bytes) -> bytes:
    before = b"".join(valid(rng) for _ in range(rng.choice((0, 1, 1, 3, 20))))
    return (
        before + http_mutated(rng, data) + rng.choice((b"", valid(rng), b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"))
    )


def _noise(rng: Random, data: bytes) -> bytes:
    return rng.randbytes(rng.randrange(1, 2000))


_HTTP: tuple[Mutation, ...] = (
    _truncate, _flip, _flip, _insert, _insert, _cut_out, _repeat, _shuffle_lines, _bare_line_feeds, _header_soup, _header_soup,
    _request_line, _request_line, _chunked, _chunked, _pipeline, _noise,
)  # fmt: skip


def http_mutated(rng: Random, data: bytes) -> bytes:
    """One or two mutations."""
    for _ in range(rng.choice((1, 1, 2))):
        data = rng.choice(_HTTP)(rng, data) or b"\0"
    return data


# -- mutations of documents


def _document(rng: Random, value: object, depth: int = 0) -> bytes:
    """JSON text of a value, in which some values, keys or punctuation are replaced."""
    if rng.random() < 0.04 * (depth > 0):
        return rng.choice(RAW_JUNK)
    if rng.random() < 0.08:
        value = rng.choice(JUNK)
    if isinstance(value, dict):
        items = [(key, _document(rng, item, depth + 1)) for key, item in value.items()]
        if items and rng.random() < 0.1:
            items.append((rng.choice(items)[0], _document(rng, rng.choice(JUNK), depth + 1)))
        if items and rng.random() < 0.05:
            items.pop(rng.randrange(len(items)))
        return b"{" + b",".join(_key(rng, key) + b":" + text for key, text in items) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(_document(rng, item, depth + 1) for item in value) + b"]"
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _key(rng: Random, key: str) -> bytes:
    text = json.dumps(key).encode()
    chance = rng.random()
    if chance < 0.02:
        return rng.choice(
            (b'"\xff"', b"1", b"null", b'"\\ud800"', text[:-1], b'"stream_options"', b'"disaggregated_params"')
        )
    if chance < 0.04:
        return b'"\\u%04x' % ord(key[0]) + text[2:] if key else text
    return text


def json_mutated(rng: Random, tag: str = "") -> bytes:
    """A well-framed request with a broken document."""
    path, document = rng.choice(BODIES)
    body = _document(rng, {**document, "user": tag, rng.choice(("x", "n", "prompt", "stream")): rng.choice(JUNK)})
    if rng.random() < 0.1:
        body = rng.choice((_truncate, _flip, _insert, _cut_out))(rng, body)
    if rng.random() < 0.02:
        body = rng.choice((b"", b"null", b" ", b"\xff\xfe{}", body + body, b"\t" + body + b"\n", body + b"\x0b"))
    return post(rng.choice((path, path, BODIES[rng.randrange(len(BODIES))][0])), body)


def case(seed: int, index: int) -> bytes:
    """Malformed request number `index`: half broken as HTTP, half as JSON."""
    rng = Random(f"{seed}/{index}")
    if index % 2:
        return json_mutated(rng, f"case {index}")
    return http_mutated(rng, valid(rng, f"case {index}"))
