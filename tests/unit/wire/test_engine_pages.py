"""What engines say of themselves, as vLLM 0.32 writes it, and as others do."""

import json

import pytest

from beaconry.values.endpoint import KvEventsAddress
from beaconry.wire.engine_pages import (
    parse_cache_config,
    parse_completion,
    parse_event_sources,
    parse_fetched_tokens,
    parse_models,
    parse_version,
)


def sources(*ranks):
    return json.dumps(dict(enumerate(ranks))).encode()


def source(endpoint, replay=None):
    return {"endpoint": endpoint, "replay_endpoint": replay, "topic": "", "buffer_steps": 10_000}


def test_the_version_and_the_models_are_read():
    assert parse_version(b'{"version": "0.32.0"}') == "0.32.0"
    cards = [
        {"id": "tiny", "object": "model", "root": "/models/tiny", "parent": None, "max_model_len": 4096},
        {"id": "ad1", "root": "/adapters/ad1", "parent": "tiny", "max_model_len": None},
    ]
    models = parse_models(json.dumps({"object": "list", "data": cards}).encode())
    assert models.names == ("tiny", "ad1")
    assert models.adapters == {"ad1": "/adapters/ad1"}


def test_a_completion_tells_clock_and_cached_tokens():
    body = {"created": 5, "choices": [], "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}}
    found = parse_completion(json.dumps(body).encode())
    assert (found.created, found.usage.prompt_tokens, found.cached_tokens) == (5, 9, 4)
    body["usage"]["prompt_tokens_details"] = None
    assert parse_completion(json.dumps(body).encode()).cached_tokens is None


def test_the_cache_settings_are_the_labels_of_their_family():
    page = (
        b"# TYPE vllm:cache_config_info gauge\n"
        b'vllm:cache_config_info{block_size="16",prefix_caching_hash_algo="sha256",odd="a\\"b"} 1.0\n'
    )
    assert parse_cache_config(page) == {"block_size": "16", "prefix_caching_hash_algo": "sha256", "odd": 'a\\"b'}
    assert parse_cache_config(b"vllm:other 1\n") == {}


def test_event_sources_are_addressed_as_seen_from_here():
    one = parse_event_sources(sources(source("tcp://*:5557", "tcp://0.0.0.0:5600")), "10.0.0.7")
    assert one == KvEventsAddress(endpoint="tcp://10.0.0.7:5557", replay="tcp://10.0.0.7:5600")
    two = sources(source("tcp://*:5557", "tcp://*:5600"), source("tcp://*:5558", "tcp://*:5601"))
    assert parse_event_sources(two, "h") == KvEventsAddress(endpoint="tcp://h:5557", replay="tcp://h:5600", ranks=2)
    assert parse_event_sources(sources(source("ipc:///x")), "h").endpoint == "ipc:///x"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"5": {"endpoint": "tcp://*:1"}}',
        sources(source("tcp://*:5557"), source("tcp://*:6000")),
        sources(source("ipc:///a"), source("ipc:///b")),
    ],
)
def test_sources_that_cannot_be_addressed_are_none(body):
    assert parse_event_sources(body, "h") is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"version": 5, "data": 5, "usage": 5, "0": 5}', b"\xff"])
def test_a_page_of_something_else_is_none(body):
    assert parse_version(body) is None
    assert parse_models(body) is None
    assert parse_completion(body) is None
    assert parse_event_sources(body, "h") is None


def test_fetched_tokens_are_those_of_all_ranks_and_of_no_other_source():
    page = (
        b"# HELP vllm:prompt_tokens_by_source_total x\n"
        b'vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 7.0\n'
        b'vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 200.0\n'
        b'vllm:prompt_tokens_by_source_total{engine="1",source="external_kv_transfer"} 1e2 1700000000\n'
    )
    assert parse_fetched_tokens(page) == 300.0


@pytest.mark.parametrize(
    "page", [b"", b"\xff", b'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"} 1x\n']
)
def test_a_page_that_tells_of_nothing_fetched_is_0(page):
    assert parse_fetched_tokens(page) == 0.0
