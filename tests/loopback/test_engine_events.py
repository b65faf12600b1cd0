"""The simulated engine tells its KV events as vLLM does, and they add up to its cache."""

import asyncio
import json
import random

import msgspec
import pytest
import zmq

from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine.events import SLICE
from beaconry.io.engine.generation import KvEventsOptions
from beaconry.io.engine.server import serve_engine
from beaconry.io.zmq_events import KvFeeds
from beaconry.kvindex.exact import ExactIndex
from beaconry.router.facts import KvCleared, KvEvents, KvSourceChanged
from beaconry.values.errors import OperatorError
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvSource, SourceState
from beaconry.wire.kv_events import END, Form, decode
from tests.loopback.engine_client import PROMPT, call, on_loop, options, process, running, until

LOW_64 = (1 << 64) - 1
TELLING = KvEventsOptions(port=0, replay_port=0, topic="kv@a@tiny")


class Listener:
    """A plain SUB socket: all messages, as frames."""

    def __init__(self, endpoint, topic=""):
        self._zmq = zmq.Context()
        self.socket = self._zmq.socket(zmq.SUB)
        self.socket.subscribe(topic)
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(endpoint)

    async def message(self):
        found = []

        def arrived():
            try:
                found.append(self.socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return False
            return True

        await until(arrived)
        return found[0]

    async def subscribed(self, publish):
        """The publisher knows of the subscription only some time after the handshake: send until something comes."""

        def heard():
            publish()
            return bool(self.socket.poll(1))

        await until(heard)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._zmq.destroy(linger=0)


class Asker:
    """A DEALER that asks for past batches."""

    def __init__(self, endpoint):
        self._zmq = zmq.Context()
        self.socket = self._zmq.socket(zmq.DEALER)
        self.socket.connect(endpoint)

    def ask(self, first):
        self.socket.send_multipart([b"", first.to_bytes(8, "big")])

    async def answer(self):
        messages = []

        def ended():
            while self.socket.poll(0):
                messages.append(self.socket.recv_multipart())
            return bool(messages) and messages[-1] == [b"", b"", END, b""]

        await until(ended)
        return messages[:-1]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._zmq.destroy(linger=0)


def cache_of(batches):
    """What the events say is cached: hash to copies, by the plainest reading of them."""
    copies = {}
    for batch in batches:
        for event in batch.events:
            if isinstance(event, BlockStored):
                for one in event.block_hashes:
                    copies[one] = copies.get(one, 0) + 1
            elif isinstance(event, BlockRemoved):
                copies[event.block_hash] -= 1
            else:
                copies.clear()
    return {one: count for one, count in copies.items() if count}


def cached_in(engine):
    """What the engine's pool really holds."""
    pool = engine.generation.engine._pool
    copies = {}
    for key in pool._refs:
        low = pool._hash_of.get(key, key) & LOW_64
        copies[low] = copies.get(low, 0) + 1
    return copies


def many_prompts(count, seed=0):
    """Few beginnings with different ends: shared blocks, and more of them than fit."""
    rng = random.Random(seed)
    beginnings = [[rng.randrange(1000, 2000) for _ in range(64)] for _ in range(5)]
    for _ in range(count):
        prompt = rng.choice(beginnings) + [rng.randrange(1000, 2000) for _ in range(rng.randrange(1, 80))]
        yield PROMPT | {"prompt": prompt, "max_tokens": rng.randrange(1, 40)}


@on_loop
async def test_a_step_is_told_as_vllm_tells_it():
    async with running(kv_events=TELLING) as (engine, port):
        sources = (await call(port, "/kv_event_sources")).json
        assert sources["0"]["topic"] == "kv@a@tiny"
        await call(port, "/v1/completions", PROMPT | {"prompt": list(range(40)), "max_tokens": 1})
        with Asker(sources["0"]["replay_endpoint"]) as asker:
            asker.ask(0)
            ((empty, topic, number, payload),) = await asker.answer()
        assert (empty, topic, number) == (b"", b"kv@a@tiny", bytes(8))
        _, (event,), rank = msgspec.msgpack.decode(payload)
        hashes = engine.generation._hasher.hashes(engine.generation._hasher_tokens(range(40)))
        assert rank == 0
        assert event | {"extra_keys": None} == {
            "type": "BlockStored",
            "block_hashes": [one & LOW_64 for one in hashes],
            "parent_block_hash": None,
            "token_ids": list(range(32)),
            "block_size": 16,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": None,
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
