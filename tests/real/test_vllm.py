"""Real vLLM engines on the CPU, started from a plan: what their events say is what they have, and what we predict is what they report.

It needs an interpreter that has vLLM: `make real` installs one, or name it in BEACONRY_VLLM_PYTHON.
"""

import asyncio
import os
import random
import signal
from array import array
from contextlib import asynccontextmanager

import pytest

from beaconry.config.loading import load_yaml
from beaconry.io.children.supervisor import ProcessCrashed, ProcessReady, ProcessStarted, Supervisor, free_ports
from beaconry.io.zmq_events import KvFeeds
from beaconry.kvindex.exact import ExactIndex
from beaconry.manifests.model_service import ModelService
from beaconry.manifests.processes import count_ports, plan_processes
from beaconry.router.facts import KvCleared, KvEvents, KvSourceChanged
from beaconry.values.block_hash import MASK64, BlockHasher
from beaconry.values.kv_events import BlockStored, SourceState
from tests.loopback.engine_client import call
from tests.real.vllm import BLOCK, BLOCKS, START_WITHIN_S, spec

pytestmark = pytest.mark.real

SETTLE_WITHIN_S = 20.0
REQUESTS = 120


class Fleet:
    """Two engines that run, and what their events tell."""

    def __init__(self, processes):
        self.processes = {process.name: process for process in processes}
        self.index = ExactIndex()
        self.stored = []
        """(endpoint, event) of all blocks stored."""
        self.states = {}
        self.ready = dict.fromkeys(self.processes, 0)
        """How often each engine has become ready."""
        self.pids = {}
        self.crashes = []
        blocks = processes[0].endpoint.kv_blocks
        self.hasher = BlockHasher(blocks.block_tokens, blocks.algorithm, blocks.seed)

    def take(self, fact):
        match fact:
            case KvEvents():
                self.index.apply(fact.name, fact.rank, fact.events)
                self.stored += [(fact.name, event) for event in fact.events if isinstance(event, BlockStored)]
            case KvCleared():
                self.index.clear_rank(fact.name, fact.rank)
            case KvSourceChanged():
                self.states[fact.name] = fact.state

    def seen(self, event):
        if isinstance(event, ProcessStarted):
            self.pids[event.name] = event.pid
        elif isinstance(event, ProcessReady):
            self.ready[event.name] += 1
        elif isinstance(event, ProcessCrashed):
            self.crashes.append(event)

    def keys(self, tokens, salt=None):
        return [one & MASK64 for one in self.hasher.hashes(array("I", tokens), salt=salt)]

    def held(self, name, keys):
        found = self.index.match(keys).get(name)
        return 0 if found is None else found.gpu

    async def complete(self, name, tokens, **more):
        """One request; returns the cached tokens it reports, and its output."""
        body = {
            "model": "tiny",
            "prompt": tokens,
            "ignore_eos": True,
            "return_token_ids": True,
            "temperature": 0,
        } | more
        reply = await call(
            self.processes[name].port, "/v1/completions", body, headers=["content-type: application/json"]
        )
        assert reply.status == 200, reply.body
        details = reply.json["usage"]["prompt_tokens_details"]
        return details["cached_tokens"], reply.json["choices"][0]["token_ids"]


async def until(condition, within_s=SETTLE_WITHIN_S):
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(directory):
    service = load_yaml(spec(directory), ModelService, "tiny.yaml")
    ports = free_ports(count_ports(service), "127.0.0.1", random.Random())
    processes = plan_processes(service, ports, "python")
    fleet = Fleet(processes)
    supervisor = Supervisor(processes, environment=os.environ, on_event=fleet.seen)
    feeds = KvFeeds(fleet.take)
    for process in processes:
        (source,) = process.endpoint.kv_sources
        feeds.watch(source_with_tokens(source))
    listening = asyncio.create_task(feeds.run())
    keeping = asyncio.create_task(supervisor.run())
    try:
        await until(lambda: all(fleet.ready.values()) or fleet.crashes, START_WITHIN_S)
        assert not fleet.crashes, fleet.crashes
        await until(lambda: set(fleet.states.values()) == {SourceState.EXACT})
        yield fleet
    finally:
        supervisor.stop(10.0)
        await keeping
        listening.cancel()
        await asyncio.wait((listening,))
        fleet.index.check()


def source_with_tokens(source):
    return type(source)(name=source.name, address=source.address, replay=source.replay, tokens=True)


async def converse(fleet, name, rng):
    """Conversations with one engine that share beginnings and go on with what it said; (predicted, reported) cached tokens of each."""
    pairs = []
    beginnings = [[rng.randrange(256) for _ in range(BLOCK * 4 + 7)] for _ in range(4)]
    histories = [[*rng.choice(beginnings), number] for number in range(12)]
    for number in range(REQUESTS):
        turn = rng.randrange(len(histories))
        tokens = [*histories[turn], *(rng.randrange(256) for _ in range(rng.randrange(1, 60)))]
        salt = "salted" if number % 10 == 9 else None
        keys = fleet.keys(tokens, salt)
        predicted = min(fleet.held(name, keys), (len(tokens) - 1) // BLOCK) * BLOCK
        more = {} if salt is None else {"cache_salt": salt}
        reported, output = await fleet.complete(name, tokens, max_tokens=rng.randrange(1, 40), **more)
        pairs.append((predicted, reported))
        histories[turn] = [*tokens, *output] if len(tokens) < 800 else histories[turn][:200]
        computed = fleet.keys([*tokens, *output[:-1]], salt)
        await until(lambda computed=computed: fleet.held(name, computed) == len(computed))
    return pairs


def named_as_we_would(fleet):
    """How many blocks of plain prompts the engines announced, and how many of them we name the same."""
    whole, total, same = {}, 0, 0
    for name, event in fleet.stored:
        if event.extras or (event.parent_hash is not None and (name, event.parent_hash) not in whole):
            continue  # salted, or after a salted block
        parent = None if event.parent_hash is None else whole[name, event.parent_hash]
        for index, block_hash in enumerate(event.block_hashes):
            tokens = array("I", event.token_ids[index * BLOCK : (index + 1) * BLOCK])
            parent = fleet.hasher.link(parent, tokens)
            whole[name, block_hash] = parent
            total += 1
            same += parent & MASK64 == block_hash
    return total, same


def test_events_name_blocks_as_we_do_predictions_come_true_and_a_restart_leaves_no_ghosts(tmp_path):
    async def run():
        async with running(tmp_path / "tiny") as fleet:
            names = list(fleet.processes)

            conversations = (converse(fleet, name, random.Random(seed)) for seed, name in enumerate(names))
            found = [pair for pairs in await asyncio.gather(*conversations) for pair in pairs]
            total, same = named_as_we_would(fleet)
            right = sum(predicted == reported for predicted, reported in found)
            hits = sum(reported > 0 for _, reported in found)
            statistics = fleet.index.statistics()
            print(
                f"{len(found)} requests, {hits} with hits, {right} predicted exactly; {same}/{total} hashes equal; {statistics}"
            )
            assert len(found) == 2 * REQUESTS
            assert total > 2 * BLOCKS
            assert same == total
            assert hits > REQUESTS
            assert statistics.removed > BLOCKS, "blocks were evicted"
            assert right >= 0.99 * len(found)

            victim, other = names
            tokens = list(range(200))
            for name in names:
                await fleet.complete(name, tokens, max_tokens=1)
            keys = fleet.keys(tokens)
            await until(lambda: {fleet.held(name, keys) for name in names} == {len(keys)})
            os.kill(fleet.pids[victim], signal.SIGKILL)
            await until(lambda: fleet.ready[victim] == 2, START_WITHIN_S)
            await until(lambda: fleet.held(victim, keys) == 0 and fleet.states[victim] is SourceState.EXACT)
            assert fleet.held(other, keys) == len(keys)
            reported, _ = await fleet.complete(victim, tokens[:100], max_tokens=1)
            assert reported == 0
            await until(lambda: fleet.held(victim, keys) == 3)
            (known,) = (one for one in fleet.index.statistics().sources if one.name == victim)
            assert sum(known.blocks.values()) == 3
            reported, _ = await fleet.complete(victim, tokens, max_tokens=1)
            assert reported == 3 * BLOCK

    asyncio.run(run())
