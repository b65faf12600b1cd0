"""The KV-event feed against a real ZeroMQ publisher: one like vLLM's, and ones that are slow, lie or die."""

import asyncio
import logging
from array import array
from contextlib import asynccontextmanager
from random import Random

import pytest
import uvloop
import zmq
from msgspec import structs

from beaconry.config.kv_feed import KvFeed
from beaconry.io.zmq_events import KvFeeds
from beaconry.kvindex.exact import ExactIndex, Held
from beaconry.kvindex.turns import size_of
from beaconry.router.facts import KvCleared, KvEvents, KvSourceChanged
from beaconry.values.block_hash import MASK64, BlockHasher
from beaconry.values.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvBatch,
    KvBlocks,
    KvSource,
    SourceState,
)
from beaconry.wire.kv_events import END, Form, encode, encode_frames

LIMITS = KvFeed(replay_pause_s=0.01, reconnect_s=0.02, reconnect_max_s=0.05)
IMPATIENT = structs.replace(LIMITS, replay_idle_s=0.1, replay_attempts=2, retry_s=0.1)
"""For publishers that do not answer."""
WITHIN_S = 20.0
"""Far more than anything takes: only a failure waits that long."""


def stored(*hashes):
    return BlockStored(block_hashes=hashes, parent_hash=None, token_ids=(), block_tokens=16)


class Publisher:
    """PUB and ROUTER, as in vLLM's `ZmqEventPublisher`. Faults are attributes."""

    def __init__(self, *, ports=(0, 0), form=Form.MAPS, topic="kv@engine@m"):
        self.context = zmq.Context()
        self.pub = self.context.socket(zmq.PUB)
        self.router = self.context.socket(zmq.ROUTER)
        self.pub.set(zmq.LINGER, 0)
        self.router.set(zmq.LINGER, 0)
        self.ports = tuple(self._bind(sock, port) for sock, port in zip((self.pub, self.router), ports, strict=True))
        self.form = form
        self.topic = topic
        self.log = []
        self.asked = []
        self.answers = True
        self.end = True
        self.answer_frames = 3
        self.started_s = asyncio.get_running_loop().time()
        self.task = asyncio.create_task(self._serve())

    @staticmethod
    def _bind(sock, port):
        sock.bind(f"tcp://127.0.0.1:{port}")
        return int(sock.get(zmq.LAST_ENDPOINT).rsplit(b":", 1)[1])

    def source(self, name="a", **fields):
        pub, router = (f"tcp://127.0.0.1:{port}" for port in self.ports)
        return KvSource(**{"name": name, "address": pub, "replay": router, **fields})

    def publish(self, *events, heard=True, payload=None):
        ts = self.started_s + 1e-3 * len(self.log)
        self.log.append(payload or encode(KvBatch(ts=ts, events=events, rank=0), self.form))
        if heard:
            self.pub.send_multipart(encode_frames(self.topic, len(self.log) - 1, self.log[-1]))

    async def _serve(self):
        while True:
            await asyncio.sleep(0.002)
            while self.router.poll(0):
                client, _, first = self.router.recv_multipart()
                self.asked.append(int.from_bytes(first, "big"))
                if self.answers:
                    for number in range(self.asked[-1], len(self.log)):
                        self._reply(client, self.topic.encode(), number.to_bytes(8, "big"), self.log[number])
                    if self.end:
                        self._reply(client, b"", END, b"")

    def _reply(self, client, *frames):
        self.router.send_multipart([client, b"", *frames[-self.answer_frames :]])

    async def close(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.context.destroy(linger=0)


class Listener:
    """What the router would do with the facts."""

    def __init__(self):
        self.index = ExactIndex()
        self.states = {}
        self.facts = []
        self.woken = asyncio.Event()

    def tell(self, fact):
        self.facts.append(fact)
        match fact:
            case KvEvents():
                self.index.apply(fact.name, fact.rank, fact.events)
            case KvCleared():
                self.index.clear_rank(fact.name, fact.rank)
            case KvSourceChanged():
                self.states[fact.name, fact.rank] = (fact.state, fact.reason)
        self.woken.set()

    def state(self, name="a", rank=0):
        return self.states.get((name, rank), (None, ""))[0]

    def reason(self, name="a", rank=0):
        return self.states.get((name, rank), (None, ""))[1]

    async def until(self, condition):
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                self.woken.clear()
                try:
                    async with asyncio.timeout(0.05):
                        await self.woken.wait()
                except TimeoutError:
                    continue
        self.index.check()

    async def until_exact(self, name="a", rank=0):
        await self.until(lambda: self.state(name, rank) is SourceState.EXACT)

    async def until_held(self, keys, **blocks):
        expected = {name: Held(count) for name, count in blocks.items()}
        await self.until(lambda: self.index.match(keys) == expected)


@asynccontextmanager
async def listening(*sources, limits=LIMITS):
    listener = Listener()
    feeds = KvFeeds(lambda fact: listener.tell(fact), limits)  # noqa: PLW0108 - a test may replace `tell`
    listener.feeds = feeds
    for source in sources:
        feeds.watch(source)
    task = asyncio.create_task(feeds.run())
    try:
        yield listener
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@asynccontextmanager
async def publishing(**options):
    publisher = Publisher(**options)
    try:
        yield publisher
    finally:
        await publisher.close()


def run(scenario):
    uvloop.run(scenario())


KEYS = [Random(at).getrandbits(64) for at in range(3000)]


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("answer_frames", [3, 2])
def test_what_an_engine_did_before_and_after_we_came_is_known(form, answer_frames):
    async def scenario():
        async with publishing(form=form) as engine:
            engine.answer_frames = answer_frames
            engine.publish(stored(*KEYS[:3]))
            async with listening(engine.source()) as listener:
                await listener.until_exact()
                assert listener.index.match(KEYS) == {"a": Held(3)}
                engine.publish(stored(*KEYS[3:5]), BlockRemoved(block_hash=KEYS[4]))
                await listener.until_held(KEYS, a=4)
                engine.publish(AllBlocksCleared())
                await listener.until_held(KEYS)
                assert listener.state() is SourceState.EXACT

    run(scenario)


def test_lost_messages_are_fetched():
    async def scenario():
        async with publishing() as engine, listening(engine.source()) as listener:
            await listener.until_exact()
            for at in range(20):
                engine.publish(stored(KEYS[at]), heard=at % 5 == 4)
            await listener.until_held(KEYS, a=20)
            await listener.until_exact()
            assert listener.feeds.statistics()["a", 0].stream.lost == 0

    run(scenario)


@pytest.mark.parametrize("speaks", [True, False])
def test_a_restarted_engine_leaves_no_ghost_blocks(speaks):
    async def scenario():
        async with publishing() as engine, listening(engine.source(), engine.source("b", rank=3)) as listener:
            await listener.until_exact("b", 3)
            await listener.until_exact()
            for at in range(5):
                engine.publish(stored(KEYS[at]))
            await listener.until(lambda: len(listener.index.match(KEYS)) == 2)
            await engine.close()
            await listener.until(lambda: listener.state() is SourceState.DEGRADED)
            async with publishing(ports=engine.ports) as fresh:
                for at in range(8 * speaks):
                    fresh.publish(stored(KEYS[at + 1]), heard=False)
                await listener.until(lambda: not listener.index.match(KEYS) and listener.state() is SourceState.EXACT)
                fresh.publish(stored(KEYS[0]))
                await listener.until(lambda: listener.index.match(KEYS).get("a") == Held(9 if speaks else 1))

    run(scenario)


def test_an_engine_restarted_with_other_hashes_is_found_under_ours_and_back_again(caplog):
    tokens = array("I", range(16 * 20))

    def hashes(seed):
        return tuple(hash_ & MASK64 for hash_ in BlockHasher(16, "sha256", seed).hashes(tokens))

    def announced(seed):
        return BlockStored(block_hashes=hashes(seed), parent_hash=None, token_ids=tuple(tokens), block_tokens=16)

    async def scenario():
        engine = Publisher()
        source = engine.source(blocks=KvBlocks(block_tokens=16, algorithm="sha256", seed="0"))
        async with listening(source) as listener:
            await listener.until_exact()
            for seed, exact in (("0", True), ("42", False), ("42", False), ("0", True)):
                engine.publish(announced(seed))
                await listener.until_held(hashes("0"), a=20)
                figures = listener.feeds.statistics()["a", 0]
                assert (figures.verdict.exact, figures.dual_keys is None) == (exact, exact)
                await engine.close()
                await listener.until(lambda: listener.state() is SourceState.DEGRADED)
                engine = Publisher(ports=engine.ports)
                await listener.until(lambda: listener.state() is SourceState.EXACT)
                assert listener.index.match(hashes("0")) == {}
                assert listener.feeds.statistics()["a", 0].verdict is None
            await engine.close()

    with caplog.at_level(logging.WARNING, "beaconry.io.zmq_events"):
        run(scenario)
    said = [record.getMessage() for record in caplog.records if "block hashes" in record.getMessage()]
    assert len(said) == 1
    assert "the seed differs" in said[0]


def test_an_engine_without_replay_is_heard_all_the_same():
    async def scenario():
        async with publishing() as engine, listening(engine.source(replay=None)) as listener:
            async with asyncio.timeout(WITHIN_S):
                while not listener.index.match(KEYS[:1]):
                    engine.publish(stored(KEYS[0]))
                    await asyncio.sleep(0.01)
            assert listener.state() in (SourceState.EXACT, SourceState.DEGRADED)
            await engine.close()
            async with publishing(ports=engine.ports):
                await listener.until(lambda: not listener.index.match(KEYS))

    run(scenario)


def test_only_the_wanted_topic_is_heard():
    async def scenario():
        async with publishing(topic="kv@other@m") as engine, listening(engine.source(topic="kv@engine")) as listener:
            await listener.until_exact()
            messages = listener.feeds.statistics()["a", 0].messages
            engine.publish(stored(KEYS[0]))
            engine.publish(stored(KEYS[1]))
            engine.topic = "kv@engine@m"
            engine.publish(stored(KEYS[2]))
            await listener.until_held(KEYS, a=3)
            await listener.until_exact()
            # heard: the third. Asked for then, and so answered: all three, and the end
            assert listener.feeds.statistics()["a", 0].messages == messages + 5

    run(scenario)


def test_many_blocks_come_in_turns():
    async def scenario():
        async with publishing() as engine, listening(engine.source()) as listener:
            await listener.until_exact()
            engine.publish(stored(*KEYS))
            await listener.until_held(KEYS, a=len(KEYS))
            sizes = [len(fact.events[0].block_hashes) for fact in listener.facts if isinstance(fact, KvEvents)]
            assert sum(sizes) == len(KEYS)
            assert max(sizes) == LIMITS.turn_blocks

    run(scenario)


def test_a_long_message_is_one_message_whatever_it_takes_to_read_it():
    async def scenario():
        async with publishing() as engine, listening(engine.source()) as listener:
            await listener.until_exact()
            before = listener.feeds.statistics()["a", 0].messages
            engine.publish(*(stored(key) for key in KEYS[:1000]))
            await listener.until_held(KEYS[:1000], a=1000)
            statistics = listener.feeds.statistics()["a", 0]
            assert (statistics.messages - before, statistics.malformed) == (1, 0)
            assert statistics.stream.state is SourceState.EXACT

    run(scenario)


def test_the_event_loop_goes_round_between_turns():
    async def scenario():
        async with publishing() as engine:
            for at in range(30):
                engine.publish(stored(*KEYS[100 * at : 100 * at + 100]))
            sources = [engine.source(f"e{number}") for number in range(5)]
            async with listening(*sources) as listener:
                most = in_round = 0

                def tick():
                    nonlocal in_round
                    in_round = 0
                    asyncio.get_running_loop().call_soon(tick)

                def counted(fact):
                    nonlocal in_round, most
                    in_round += sum(map(size_of, fact.events)) if isinstance(fact, KvEvents) else 0
                    most = max(most, in_round)
                    Listener.tell(listener, fact)

                listener.tell = counted
                tick()
                await listener.until(lambda: set(listener.index.match(KEYS).values()) == {Held(3000)})
                assert len(listener.index.match(KEYS)) == 5
            assert 0 < most < 2 * LIMITS.turn_blocks

    run(scenario)


# -- bad company


def test_malformed_messages_are_counted_and_dropped(caplog):
    async def scenario():
        async with publishing() as engine, listening(engine.source()) as listener:
            await listener.until_exact()
            engine.pub.send_multipart([b"alone"])
            engine.pub.send_multipart([b"", b"short", b"x"])
            engine.publish(payload=b"\xc1 not msgpack")
            engine.publish(stored(KEYS[0]))
            await listener.until_held(KEYS, a=1)
            await listener.until(lambda: "nothing is known of the batches before 1" in listener.reason())
            assert listener.feeds.statistics()["a", 0].malformed >= 4
            engine.publish(AllBlocksCleared())
            await listener.until_exact()

    with caplog.at_level(logging.WARNING):
        run(scenario)
    assert "malformed message number 1 dropped" in caplog.text


def test_a_publisher_that_does_not_answer_is_asked_again_later():
    async def scenario():
        async with publishing() as engine:
            engine.answers = False
            async with listening(engine.source(), limits=IMPATIENT) as listener:
                await listener.until(lambda: "no replay: " in listener.reason())
                engine.publish(stored(KEYS[0]), heard=False)
                engine.answers = True
                await listener.until_held(KEYS, a=1)
                await listener.until_exact()

    run(scenario)


def test_an_answer_without_end_holds_nobody_up():
    async def scenario():
        async with publishing() as liar, publishing() as engine:
            liar.end = False
            liar.publish(stored(KEYS[0]))
            engine.publish(stored(KEYS[0]))
            limits = structs.replace(IMPATIENT, replays_at_once=1)
            async with listening(liar.source("liar"), engine.source("b"), limits=limits) as listener:
                await listener.until_held(KEYS, liar=1, b=1)
                await listener.until(lambda: "does not answer within" in listener.reason("liar"))

    run(scenario)


def test_a_message_beyond_the_limit_disconnects_its_publisher_and_no_other():
    async def scenario():
        limits = structs.replace(IMPATIENT, message_bytes=10_000)
        async with (
            publishing() as big,
            publishing() as engine,
            listening(big.source("big"), engine.source("b"), limits=limits) as listener,
        ):
            await listener.until_exact("big")
            await listener.until_exact("b")
            big.publish(stored(*KEYS))
            await listener.until(lambda: listener.state("big") is not SourceState.EXACT)
            engine.publish(stored(KEYS[0]))
            await listener.until_held(KEYS, b=1)

    run(scenario)


def test_a_dead_address_costs_nothing():
    async def scenario():
        async with publishing() as engine:
            dead = KvSource(name="dead", address="tcp://127.0.0.1:1", replay="tcp://127.0.0.1:1")
            async with listening(dead, engine.source()) as listener:
                await listener.until_exact()
                assert (listener.state("dead"), listener.reason("dead")) == (SourceState.COLD, "nothing heard yet")

    run(scenario)


def test_an_address_that_is_none_is_said():
    async def scenario():
        async with listening(KvSource(name="a", address="nonsense")) as listener:
            await listener.until(lambda: listener.reason().startswith("nonsense: "))

    run(scenario)


def test_a_replay_address_that_is_none_is_said_and_what_is_published_counts_all_the_same():
    async def scenario():
        async with publishing() as engine, listening(engine.source(replay="nonsense"), limits=IMPATIENT) as listener:
            await listener.until(lambda: "cannot ask nonsense: " in listener.reason())
            assert listener.state() is not SourceState.EXACT
            while not listener.index.match(KEYS[:1]):
                engine.publish(stored(KEYS[0]))
                await asyncio.sleep(0.01)

    run(scenario)


def test_watching_begins_and_ends_at_any_time():
    async def scenario():
        async with publishing() as engine, listening() as listener:
            feeds = listener.feeds
            feeds.watch(engine.source())
            await listener.until_exact()
            feeds.watch(engine.source())
            engine.publish(stored(*KEYS[:2]))
            await listener.until_held(KEYS, a=2)
            feeds.watch(engine.source(tokens=True))
            await listener.until(lambda: sum(isinstance(fact, KvCleared) for fact in listener.facts) == 2)
            await listener.until_held(KEYS, a=2)
            feeds.unwatch("a")
            assert feeds.statistics() == {}
            engine.publish(stored(*KEYS[2:5]))
            await asyncio.sleep(0.05)
            assert listener.index.match(KEYS) == {"a": Held(2)}

    run(scenario)
