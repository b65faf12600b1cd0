"""KV events on their way to the routers: what gets lost is asked for again, so that each index ends as the engine's cache is."""

from random import Random

import pytest

from beaconry.kvindex.exact import ExactIndex
from beaconry.router.facts import KvCleared, KvEvents, KvSourceChanged
from beaconry.sim.conditions import Conditions
from beaconry.sim.flight import Front
from beaconry.sim.heap import NEVER, EventHeap
from beaconry.sim.telling import Telling
from beaconry.values.kv_events import BlockRemoved, BlockStored, SourceState


class Listener:
    """Keeps an index per replica, as the router does."""

    def __init__(self, replicas):
        self.indexes = [ExactIndex() for _ in range(replicas)]
        self.states = [None] * replicas

    def tell(self, front, fact):
        match fact:
            case KvCleared():
                self.indexes[front.number].clear_rank(fact.name, fact.rank)
            case KvEvents():
                self.indexes[front.number].apply(fact.name, fact.rank, fact.events)
            case KvSourceChanged():
                self.states[front.number] = fact.state


def stored(block):
    return BlockStored(block_hashes=(block,), parent_hash=None, token_ids=(), block_tokens=16)


class Rig:
    def __init__(self, loss=0.0, delay_s=0.01, replicas=2):
        self.heap, self.listener = EventHeap(), Listener(replicas)
        fronts = [Front(number, None) for number in range(replicas)]
        conditions = Conditions(kv_events=True, event_delay_s=delay_s, event_loss=loss)
        self.telling = Telling("e", fronts, self.heap, self.listener.tell, conditions, Random(1))
        self.held = set()
        self.telling.connected()
        self.settle()

    def settle(self):
        while self.heap.next_s < NEVER:
            self.heap.step()

    def publish(self, rng, batches):
        for _ in range(batches):
            if self.held and rng.random() < 0.4:
                block = rng.choice(sorted(self.held))
                self.held.discard(block)
                self.telling.publish([BlockRemoved(block_hash=block)])
            else:
                block = rng.randrange(1, 1 << 40)
                self.held.add(block)
                self.telling.publish([stored(block)])
            self.heap.advance(self.heap.now_s + 0.001)
            while self.heap.next_s <= self.heap.now_s:
                self.heap.step()

    def known(self, number):
        return {block for block in self.held if self.listener.indexes[number].match([block])}


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_each_replica_knows_what_the_engine_holds_once_something_came_through(loss):
    rig = Rig(loss)
    rig.publish(Random(2), 400)
    rig.settle()
    last = set(rig.held)
    for number in (0, 1):
        index = rig.listener.indexes[number]
        index.check()
        missing = len(last - rig.known(number))
        assert missing <= (0 if loss == 0 else 8)  # what came after the last batch that was heard
        assert rig.listener.states[number] is SourceState.EXACT


def test_a_gap_is_filled_from_the_publisher_s_memory_when_events_come_again():
    rig = Rig()
    rig.publish(Random(3), 50)
    rig.telling.losing = True
    rig.publish(Random(4), 50)
    rig.settle()
    assert rig.known(0) != rig.held
    rig.telling.losing = False
    rig.publish(Random(5), 1)
    rig.settle()
    assert rig.known(0) == rig.known(1) == rig.held
    assert rig.listener.states == [SourceState.EXACT] * 2


def test_a_restarted_engine_leaves_nothing_behind():
    rig = Rig()
    rig.publish(Random(6), 50)
    rig.settle()
    old, rig.held = set(rig.held), set()
    rig.telling.disconnected()
    assert SourceState.EXACT not in rig.listener.states
    rig.telling.connected()
    rig.publish(Random(7), 20)
    rig.settle()
    assert not {block for block in old if rig.listener.indexes[0].match([block])}
    assert rig.known(0) == rig.held
