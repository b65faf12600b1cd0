"""The simulated engine tells its KV events as vLLM does, and they add up to its cache."""

import asyncio
import random
import socket
import subprocess
import sys
from array import array
from contextlib import asynccontextmanager

import msgspec
import pytest
import zmq

from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine.events import SLICE
from beaconry.io.engine.options import KvEventsOptions, OffloadOptions
from beaconry.io.engine.server import serve_engine
from beaconry.io.zmq_events import KvFeeds
from beaconry.kvindex.exact import ExactIndex
from beaconry.router.facts import KvCleared, KvEvents, KvSourceChanged
from beaconry.values.block_hash import MASK64, BlockHasher
from beaconry.values.errors import OperatorError
from beaconry.values.kv_events import BlockRemoved, BlockStored, KvSource, SourceState, Tier
from beaconry.wire.kv_events import END, Form, decode
from tests.loopback.engine_client import PROMPT, call, metrics, on_loop, options, process, running, until

TELLING = KvEventsOptions(port=0, replay_port=0, topic="kv@a@tiny")


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
    for key in (*pool._held, *pool._idle):
        low = pool._hash_of.get(key, key) & MASK64
        copies[low] = copies.get(low, 0) + 1
    return copies


def many_prompts(count, seed=0):
    """Few beginnings with different ends: shared blocks, and more of them than fit."""
    rng = random.Random(seed)
    beginnings = [[rng.randrange(1000, 2000) for _ in range(64)] for _ in range(5)]
    for _ in range(count):
        prompt = rng.choice(beginnings) + [rng.randrange(1000, 2000) for _ in range(rng.randrange(1, 80))]
        yield PROMPT | {"prompt": prompt, "max_tokens": rng.randrange(1, 40)}


async def ask_all(endpoint):
    with Asker(endpoint) as asker:
        asker.ask(0)
        return await asker.answer()


@asynccontextmanager
async def heard(source):
    """Our own subscriber, applied to our own index; yields the index and the last state told."""
    index, states = ExactIndex(), []

    def tell(fact):
        match fact:
            case KvEvents():
                index.apply(fact.name, fact.rank, fact.events)
            case KvCleared():
                index.clear_rank(fact.name, fact.rank)
            case KvSourceChanged():
                states.append(fact.state)

    feeds = KvFeeds(tell)
    feeds.watch(source)
    task = asyncio.create_task(feeds.run())
    try:
        yield index, states, feeds
    finally:
        task.cancel()
        await asyncio.wait((task,))
        index.check()


def source_of(engine):
    told = engine.publisher
    return KvSource(name="a", address=told.endpoint, replay=told.replay_endpoint)


def indexed(index):
    """Blocks and further copies of them."""
    (source,) = index.statistics().sources or (None,)
    return (0, 0) if source is None else (sum(source.blocks.values()), source.copies)


@pytest.mark.parametrize("form", list(Form))
@on_loop
async def test_a_step_is_told_as_vllm_tells_it(form):
    telling = KvEventsOptions(port=0, replay_port=0, topic="kv@a@tiny", form=form)
    async with running(kv_events=telling) as (_, port):
        told = (await call(port, "/kv_event_sources")).json["0"]
        assert (told["topic"], told["buffer_steps"], told["publisher"]) == ("kv@a@tiny", 10_000, "zmq")
        prompt = list(range(1000, 1040))
        await call(port, "/v1/completions", PROMPT | {"prompt": prompt, "max_tokens": 1})
        ((empty, topic, number, payload),) = await ask_all(told["replay_endpoint"])
        assert (empty, topic, number) == (b"", b"kv@a@tiny", bytes(8))
        _, (event,), rank = msgspec.msgpack.decode(payload)
        expected = {
            "type": "BlockStored",
            "block_hashes": [one & MASK64 for one in BlockHasher(16).hashes(array("I", prompt))],
            "parent_block_hash": None,
            "token_ids": prompt[:32],
            "block_size": 16,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": [None, None],
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
        assert rank == 0
        assert event == (expected if form is Form.MAPS else list(expected.values()))


@on_loop
async def test_an_engine_that_publishes_nothing_says_so():
    async with running() as (_, port):
        assert (await call(port, "/kv_event_sources")).json == {}


@pytest.mark.parametrize("blocks", [40, 400])
@on_loop
async def test_the_events_add_up_to_the_cache_through_sharing_eviction_and_preemption(blocks):
    settings = EngineSettings(num_blocks=blocks, max_num_seqs=8)
    async with running(settings=settings, max_model_len=500, kv_events=TELLING) as (engine, port):
        bodies = list(many_prompts(60))
        for start in range(0, len(bodies), 12):
            replies = await asyncio.gather(
                *(call(port, "/v1/completions", body) for body in bodies[start : start + 12])
            )
            assert {reply.status for reply in replies} == {200}
        batches = [decode(message[3]) for message in await ask_all(engine.publisher.replay_endpoint)]
        statistics = engine.generation.engine.statistics()
        assert (statistics.evictions > 0, statistics.preemptions > 0) == (blocks == 40, blocks == 40)
        assert cache_of(batches) == cached_in(engine)


@on_loop
async def test_blocks_in_the_hosts_memory_are_told_beside_those_on_the_gpu_and_found_there():
    settings = EngineSettings(num_blocks=40, max_num_seqs=8)
    offload = OffloadOptions(blocks=300, load_s=0.0)
    async with running(settings=settings, max_model_len=500, kv_events=TELLING, offload=offload) as (engine, port):
        for body in many_prompts(40):
            assert (await call(port, "/v1/completions", body)).status == 200
        seen = await metrics(port)
        model = engine.generation.engine
        assert seen["vllm:external_prefix_cache_hits_total",] == model.statistics().loaded_tokens > 0
        assert seen["vllm:prompt_tokens_by_source_total", "external_kv_transfer"] == model.statistics().loaded_tokens
        async with heard(source_of(engine)) as (index, states, _):
            await until(lambda: states[-1:] == [SourceState.EXACT])
            (source,) = index.statistics().sources
            (tier,) = model._pool.tiers
            assert source.blocks[Tier.CPU] == len(tier) > source.blocks[Tier.GPU] > 0


@on_loop
async def test_a_cleared_cache_is_told_with_the_next_step():
    async with running(kv_events=TELLING) as (engine, port):
        for _ in range(2):
            await call(port, "/v1/completions", PROMPT | {"prompt": list(range(1000, 1100)), "max_tokens": 1})
            await call(port, "/reset_prefix_cache", method="POST")
        await call(port, "/v1/completions", PROMPT | {"prompt": list(range(2000, 2040)), "max_tokens": 1})
        batches = [decode(message[3]) for message in await ask_all(engine.publisher.replay_endpoint)]
        assert len(batches) == 3
        assert cache_of(batches) == cached_in(engine)
        assert sum(cached_in(engine).values()) == 2


# -- the replay


@asynccontextmanager
async def with_batches(count, **changes):
    """An engine that has published so many batches of one block."""
    async with running(kv_events=msgspec.structs.replace(TELLING, **changes)) as (engine, port):
        for number in range(count):
            event = BlockStored(block_hashes=(number + 1,), parent_hash=None, token_ids=(), block_tokens=16)
            engine.publisher.publish([event])
        yield engine, port


def numbers(messages):
    return [int.from_bytes(message[2], "big") for message in messages]


@on_loop
async def test_a_replay_begins_where_it_is_asked_to():
    async with with_batches(5) as (engine, _):
        with Asker(engine.publisher.replay_endpoint) as asker:
            for first, expected in ((0, [0, 1, 2, 3, 4]), (3, [3, 4]), (5, []), ((1 << 64) - 1, [])):
                asker.ask(first)
                assert numbers(await asker.answer()) == expected


@on_loop
async def test_only_the_last_batches_are_remembered():
    async with with_batches(7, buffer_steps=3) as (engine, _):
        assert numbers(await ask_all(engine.publisher.replay_endpoint)) == [4, 5, 6]


@on_loop
async def test_questions_that_are_none_are_counted_and_the_next_is_answered():
    async with with_batches(2) as (engine, _):
        with Asker(engine.publisher.replay_endpoint) as asker:
            for question in ([b""], [b"", b"short"], [b"x", bytes(8)], [b"", bytes(8), b"more"], [bytes(8)]):
                asker.socket.send_multipart(question)
            asker.ask(1)
            assert numbers(await asker.answer()) == [1]
        assert engine.publisher.refused == 5


@on_loop
async def test_an_asker_that_never_reads_holds_up_neither_steps_nor_others():
    async with with_batches(20 * SLICE, buffer_steps=20 * SLICE) as (engine, port):
        with Asker(engine.publisher.replay_endpoint) as deaf, Asker(engine.publisher.replay_endpoint) as other:
            deaf.socket.set(zmq.RCVHWM, 1)
            for _ in range(200):
                deaf.ask(0)
            asked = asyncio.create_task(call(port, "/v1/completions", PROMPT | {"max_tokens": 20}))
            other.ask(20 * SLICE - 1)
            assert (await asked).json["usage"]["completion_tokens"] == 20
            assert numbers(await other.answer())[0] == 20 * SLICE - 1


# -- our own subscriber


@on_loop
async def test_our_subscriber_knows_the_cache_live_and_when_it_comes_late():
    settings = EngineSettings(num_blocks=60, max_num_seqs=8)
    async with running(settings=settings, max_model_len=500, kv_events=TELLING) as (engine, port):

        def is_known(index):
            copies = cached_in(engine)
            return indexed(index) == (len(copies), sum(copies.values()) - len(copies))

        async with heard(source_of(engine)) as (early, states, _):
            await until(lambda: SourceState.EXACT in states)
            await asyncio.gather(*(call(port, "/v1/completions", body) for body in many_prompts(30)))
            await until(lambda: is_known(early))
            assert states[-1] is SourceState.EXACT
            async with heard(source_of(engine)) as (late, late_states, _):
                await until(lambda: late_states[-1:] == [SourceState.EXACT] and is_known(late))
                await asyncio.gather(*(call(port, "/v1/completions", body) for body in many_prompts(10, seed=1)))
                await until(lambda: is_known(early) and is_known(late))


@on_loop
async def test_a_restarted_engine_leaves_no_ghosts():
    prompt = PROMPT | {"prompt": list(range(1000, 1200)), "max_tokens": 1}
    keys = [one & MASK64 for one in BlockHasher(16).hashes(array("I", prompt["prompt"]))]
    async with process("--kv-events-port", "0", "--kv-replay-port", "0") as (child, port):
        told = (await call(port, "/kv_event_sources")).json["0"]
        source = KvSource(name="a", address=told["endpoint"], replay=told["replay_endpoint"])
        ports = [address.rpartition(":")[2] for address in (source.address, source.replay)]
        async with heard(source) as (index, states, _):
            for _ in range(3):
                await call(port, "/v1/completions", prompt)
                prompt = prompt | {"prompt": [*prompt["prompt"], *range(1000, 1050)]}
            await until(lambda: index.match(keys).get("a") is not None and index.match(keys)["a"].gpu == len(keys))
            child.kill()
            child.wait()
            flags = ("--kv-events-port", ports[0], "--kv-replay-port", ports[1])
            async with process(*flags) as (_, new_port):
                await until(lambda: not index.match(keys))
                other = PROMPT | {"prompt": list(range(3000, 3032)), "max_tokens": 1}
                await call(new_port, "/v1/completions", other)
                await until(lambda: indexed(index) == (2, 0) and states[-1] is SourceState.EXACT)


# -- options


@on_loop
async def test_a_taken_port_is_told_and_nothing_is_left_open():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        for ports in ({"port": number}, {"port": 0, "replay_port": number}):
            with pytest.raises(OperatorError, match=f"cannot listen on 127.0.0.1:{number}"):
                await serve_engine(options(kv_events=KvEventsOptions(**ports)), "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--kv-replay-port", "0"], "add --kv-events-port"),
        (["--kv-events-port", "0", "--kv-events-buffer-steps", "0"], "at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(flags, reason):
    run = subprocess.run(
        [sys.executable, "-m", "beaconry", "engine", *flags], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert reason in run.stderr
