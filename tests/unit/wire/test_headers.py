"""Hop-by-hop and internal headers stay where they belong."""

import pytest

from beaconry.wire.headers import for_client, for_engine, without_encoding


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"transfer-encoding",
        b"content-length",
        b"host",
        b"expect",
        b"x-llm-d-inference-objective",
        b"x-beaconry-debug",
        b"x-gateway-destination-endpoint",
        b"x-prefiller-host-port",
        b"x-encoder-hosts-ports",
        b"x-data-parallel-rank",
        b"x-data-parallel-host-port",
        b"x-kv-cache-source-host-port",
        b"x-vllm-priority",
        b"epp-profile",
        b"x-slo-ttft-ms",
        b"te",
        b"upgrade",
    ],
)
def test_headers_that_frame_or_steer_do_not_reach_an_engine(name: bytes):
    assert for_engine([(b"accept", b"*/*"), (name, b"1")]) == b"accept: */*\r\n"


def test_headers_named_by_connection_are_dropped():
    headers = [(b"connection", b"Keep-Alive, X-Hop"), (b"x-hop", b"1"), (b"x-stay", b"2")]
    assert for_engine(headers) == b"x-stay: 2\r\n"
    assert for_client(headers) == [(b"x-stay", b"2")]


def test_an_engine_cannot_speak_in_our_name():
    assert for_client([(b"x-beaconry-endpoint", b"evil"), (b"content-type", b"a"), (b"content-length", b"1")]) == [
        (b"content-type", b"a")
    ]


def test_an_answer_that_is_to_be_read_is_not_asked_for_compressed():
    rendered = for_engine([(b"accept", b"*/*"), (b"accept-encoding", b"gzip"), (b"x-a", b"accept-encoding: br")])
    assert without_encoding(rendered) == b"accept: */*\r\nx-a: accept-encoding: br\r\n"
    assert without_encoding(b"x-a: 1\r\n") == b"x-a: 1\r\n"
