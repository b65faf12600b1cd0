"""The exact index against a dict of counters that does everything the slow way."""

from collections import Counter, defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from beaconry.kvindex.block_table import SHARDS
from beaconry.kvindex.exact import BYTES_PER_BLOCK, ExactIndex, Held
from beaconry.kvindex.prefix_search import reach
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Tier

LOCAL = (Tier.GPU, Tier.CPU, Tier.STORAGE)


def stored(*hashes, **fields):
    return BlockStored(block_hashes=hashes, parent_hash=None, token_ids=(), block_tokens=16, **fields)


def removed(block_hash, **fields):
    return BlockRemoved(block_hash=block_hash, **fields)


def prompt(number, blocks=64):
    """Hashes of a prompt, spread over all 64 bits like digests."""
    rng = Random(number)
    return [rng.getrandbits(64) for _ in range(blocks)]


def prefix_length(keys, counters):
    """How many of the first keys are in any of the counters."""
    length = 0
    while length < len(keys) and any(copies[keys[length]] for copies in counters):
        length += 1
    return length


# -- lookups


def test_each_endpoint_is_matched_up_to_its_first_missing_block():
    index, keys = ExactIndex(), prompt(1)
    for number in range(65):
        index.apply(f"e{number}", 0, [stored(*keys[:number])])
    found = index.match(keys)
    assert found == {f"e{number}": Held(number) for number in range(1, 65)}
    assert index.match(keys[:10])["e64"] == Held(10)
    assert index.match([]) == {}
    assert index.match(prompt(2)) == {}
    index.check()


def test_slower_tiers_continue_where_the_faster_ones_end():
    index, keys = ExactIndex(), prompt(1)
    index.apply(
        "a", 0, [stored(*keys[:10]), stored(*keys[4:20], tier=Tier.CPU), stored(*keys[20:30], tier=Tier.STORAGE)]
    )
    index.apply("b", 0, [stored(*keys[:5], tier=Tier.CPU)])
    index.apply("c", 0, [stored(*keys[5:9], tier=Tier.CPU)])
    assert index.match(keys) == {"a": Held(10, 10, 10), "b": Held(0, 5)}


def test_the_shared_tier_sets_nobody_apart():
    index, keys = ExactIndex(), prompt(1)
    index.apply("a", 0, [stored(*keys[:7], tier=Tier.SHARED)])
    index.apply("b", 0, [stored(*keys[7:9], tier=Tier.SHARED)])
    assert index.match(keys) == {}
    assert index.shared(keys) == 9
    index.clear("b")
    assert index.shared(keys) == 7
    assert index.shared([]) == 0


def test_of_several_ranks_the_best_one_is_named():
    index, keys = ExactIndex(), prompt(1)
    index.apply("a", 0, [stored(*keys[:3])])
    index.apply("a", 3, [stored(*keys[:9])])
    assert index.match(keys) == {"a": Held(9, rank=3)}
    index.clear_rank("a", 3)
    assert index.match(keys) == {"a": Held(3)}
    index.clear("a")
    assert index.match(keys) == {}


def test_signed_and_longer_hashes_are_the_same_blocks():
    index, keys = ExactIndex(), prompt(1)
    index.apply(
        "a", 0, [stored(*[key - (1 << 64) for key in keys[:4]]), stored(*[key + (7 << 64) for key in keys[4:8]])]
    )
    assert index.match(keys) == {"a": Held(8)}
    assert index.match([key | 1 << 200 for key in keys]) == {"a": Held(8)}


def test_a_hole_that_a_probe_meets_cuts_the_prefix_there():
    keys = prompt(1, 1000)
    index = ExactIndex()
    index.apply("a", 0, [stored(*keys)])
    index.apply("a", 0, [removed(key) for at, key in enumerate(keys) if at > 255 and at not in (511, 999)])
    assert index.match(keys)["a"].blocks < 999
    assert index.statistics().holes > 0


@given(st.data())
def test_the_search_finds_what_a_walk_finds_where_nobody_has_holes(data):
    length = data.draw(st.integers(1, 300))
    ends = data.draw(st.lists(st.integers(0, length), max_size=80))
    keys = list(range(length))
    masks = [sum(1 << bit for bit, end in enumerate(ends) if end > at) for at in keys]
    live = data.draw(st.integers(0, (1 << len(ends)) - 1))
    found, holes = reach(keys, masks.__getitem__, live)
    expected = defaultdict(int)
    for bit, end in enumerate(ends):
        if end and live >> bit & 1:
            expected[end] |= 1 << bit
    assert {end: holders for holders, end in found} == expected
    assert [end for _, end in found] == sorted(expected)
    assert holes == 0


@given(st.lists(st.integers(0, 15), min_size=1, max_size=300))
def test_no_prefix_ends_beyond_a_block_that_was_probed_and_missing(masks):
    probed = {}
    found, _ = reach(range(len(masks)), lambda at: probed.setdefault(at, masks[at]), 15)
    seen = 0
    for holders, end in found:
        assert not seen & holders
        seen |= holders
        assert all(held & holders == holders for at, held in probed.items() if at < end)


def test_a_lookup_probes_few_blocks():
    keys = range(2048)
    ends = [*sorted(Random(3).choices(range(1, 2049), k=17)), 2048]
    probes = []

    def probe(at):
        probes.append(at)
        return sum(1 << bit for bit, end in enumerate(ends) if end > at)

    reach(keys, probe, (1 << 18) - 1)
    assert len(probes) < 200


# -- what is indexed


def test_a_block_is_there_until_its_last_copy_is_removed():
    index = ExactIndex()
    index.apply("a", 0, [stored(1), stored(1), stored(1, 2)])
    index.apply("a", 0, [removed(1), removed(1)])
    assert index.match([1]) == {"a": Held(1)}
    index.check()
    index.apply("a", 0, [removed(1)])
    assert index.match([1]) == {}
    index.apply("a", 0, [removed(1), removed(99), removed(99, tier=Tier.CPU)])
    statistics = index.statistics()
    assert (statistics.unknown, statistics.removed, statistics.stored) == (3, 3, 4)
    index.check()


def test_an_engine_with_a_sliding_window_group_is_not_indexed():
    index = ExactIndex()
    index.apply("a", 0, [stored(1, 2, 3)])
    assert index.proves("a")
    index.apply("a", 0, [stored(1, 2, group=1, dense=False), stored(4)])
    assert not index.proves("a")
    assert index.match([1, 2, 3]) == {}
    index.apply("a", 0, [AllBlocksCleared(), stored(1, 2, 3), removed(1)])
    assert index.match([2]) == {}
    assert index.statistics().sources[0].hybrid
    index.check()
    index.clear("a")
    index.apply("a", 0, [stored(1)])
    assert index.proves("a")


def test_of_several_dense_groups_the_first_one_counts():
    index = ExactIndex()
    index.apply("a", 0, [stored(1, 2, group=1), stored(1, 2, group=2), removed(1, group=2)])
    assert index.match([1, 2]) == {"a": Held(2)}
    index.apply("a", 0, [removed(2, group=1)])
    assert index.match([1, 2]) == {"a": Held(1)}


def test_the_engines_block_size_is_known_once_it_has_stored():
    index = ExactIndex()
    assert index.block_tokens("a") is None
    index.apply("a", 0, [stored(1), AllBlocksCleared()])
    assert index.block_tokens("a") == 16


# -- leases


def test_a_clear_forgets_everything_and_only_of_that_engine():
    index, keys = ExactIndex(), prompt(1, 2000)
    for name in ("a", "b"):
        index.apply(name, 0, [stored(*keys), stored(*keys[:500], tier=Tier.CPU), stored(*keys[:5])])
    index.apply("a", 0, [AllBlocksCleared(), stored(*keys[:3])])
    assert index.match(keys) == {"a": Held(3), "b": Held(2000)}
    index.check()


def test_retired_leases_are_cleaned_up_and_their_bits_used_again():
    index = ExactIndex()
    for turn in range(50):
        index.apply("a", 0, [stored(*prompt(turn, 1000)), AllBlocksCleared()])
        index.check()
    assert index.statistics().retired > 0
    for turn in range(40):
        index.apply("b", 0, [stored(*prompt(1000 + turn, 1000))])
        index.check()
    statistics = index.statistics()
    assert statistics.retired == 0
    assert statistics.blocks[Tier.GPU] == 40_000
    assert len(index._leases._by_index) <= 52


def test_an_engine_that_clears_all_the_time_uses_no_bits_up():
    index = ExactIndex()
    for turn in range(1000):
        index.apply("a", 0, [stored(*prompt(turn, 20)), stored(*prompt(turn, 5)), AllBlocksCleared()])
    assert len(index._leases._by_index) == 1
    assert index.statistics().blocks[Tier.GPU] == 0
    index.check()


def test_shared_integers_do_not_pile_up():
    index, keys = ExactIndex(), prompt(1, 100)
    rng = Random(5)
    for _ in range(60_000):
        index.apply(f"e{rng.randrange(64)}", 0, [rng.choice((stored, removed))(rng.choice(keys))])
    assert len(index._tables[Tier.GPU].masks) < 10_000
    index.check()


# -- bounds


def test_the_limit_is_kept_and_what_several_endpoints_hold_stays():
    index = ExactIndex(limit_bytes=3000 * BYTES_PER_BLOCK)
    popular = prompt(0, 50)
    index.apply("a", 0, [stored(*popular)])
    index.apply("b", 0, [stored(*popular)])
    for turn in range(1, 100):
        index.apply("ab"[turn % 2], 0, [stored(*prompt(turn, 100))])
        index.check()
    statistics = index.statistics()
    assert statistics.blocks[Tier.GPU] == 3000
    assert statistics.evicted == 50 + 9900 - 3000
    assert index.match(popular) == {"a": Held(50), "b": Held(50)}


def test_slow_tiers_are_evicted_first():
    index, keys = ExactIndex(limit_bytes=100 * BYTES_PER_BLOCK), prompt(1, 150)
    index.apply("a", 0, [stored(*keys[:100], tier=Tier.STORAGE)])
    index.apply("a", 0, [stored(*keys[:90])])
    blocks = index.statistics().blocks
    assert (blocks[Tier.GPU], blocks[Tier.STORAGE]) == (90, 10)


def test_the_reported_size_is_within_the_limit_and_near_the_memory_taken():
    index = ExactIndex()
    empty = index.statistics().bytes
    for turn in range(100):
        index.apply("a", 0, [stored(*prompt(turn, 2000))])
    per_block = (index.statistics().bytes - empty) / 200_000
    assert 50 < per_block < BYTES_PER_BLOCK


def test_shards_are_told_apart_by_the_bits_that_a_dict_does_not_use():
    index = ExactIndex()
    index.apply("a", 0, [stored(*prompt(1, 50_000))])
    sizes = [len(shard) for shard in index._tables[Tier.GPU]._shards]
    assert len(sizes) == SHARDS
    assert max(sizes) < 100


# -- everything at once


class Naive:
    """Copies of each block by (endpoint, rank, tier)."""

    def __init__(self):
        self.copies = defaultdict(Counter)
        self.hybrid = set()

    def match(self, keys):
        found = {}
        for name, rank in {(name, rank) for name, rank, _ in self.copies}:
            tiers = [self.copies[name, rank, tier] for tier in LOCAL]
            ends = [prefix_length(keys, tiers[: n + 1]) for n in range(3)]
            if ends[2]:
                found.setdefault(name, []).append((ends[0], ends[1] - ends[0], ends[2] - ends[1]))
        return found

    def clear(self, name, rank):
        for tier in Tier:
            self.copies.pop((name, rank, tier), None)


CHAINS = [prompt(number, 40) for number in range(4)]
for chain in CHAINS[1:]:
    chain[:15] = CHAINS[0][:15]


class Machine(RuleBasedStateMachine):
    """Engines store beginnings of prompts and drop their ends, as engines do; restarts, clears and repeats at any time."""

    @initialize()
    def begin(self):
        self.index = ExactIndex()
        self.naive = Naive()

    names = st.integers(0, 90).map("e{}".format)
    ranks = st.sampled_from([0, 0, 0, 1])
    tiers = st.sampled_from([Tier.GPU, Tier.GPU, Tier.CPU, Tier.STORAGE, Tier.SHARED])

    @rule(
        name=names, rank=ranks, tier=tiers, chain=st.sampled_from(CHAINS), end=st.integers(1, 40), again=st.booleans()
    )
    def store(self, name, rank, tier, chain, end, again):
        copies = self.naive.copies[name, rank, tier]
        start = 0 if again else prefix_length(chain[:end], [copies])
        for key in chain[start:end]:
            copies[key] += 1
        self.index.apply(name, rank, [stored(*chain[start:end], tier=tier)])

    @rule(name=names, rank=ranks, tier=tiers, chain=st.sampled_from(CHAINS), count=st.integers(1, 40))
    def drop_ends(self, name, rank, tier, chain, count):
        copies = self.naive.copies[name, rank, tier]
        events = []
        for key in reversed(chain):
            others = [other for other in CHAINS if key in other and other is not chain]
            if any(copies[other[15]] for other in others):
                break
            while copies[key] and len(events) < count:
                copies[key] -= 1
                events.append(removed(key, tier=tier))
        self.index.apply(name, rank, events)

    @rule(name=names, rank=ranks)
    def clear(self, name, rank):
        self.naive.clear(name, rank)
        self.index.apply(name, rank, [AllBlocksCleared()])

    @rule(name=names)
    def restart(self, name):
        for rank in (0, 1):
            self.naive.clear(name, rank)
        self.index.clear(name)

    @rule(busy=st.integers(1, 3))
    def pass_over(self, busy):
        self.index.apply("busy", 0, [removed(0)] * 3000 * busy)

    @invariant()
    def equals_the_naive_one(self):
        for chain in CHAINS:
            expected = self.naive.match(chain)
            found = self.index.match(chain)
            assert found.keys() == expected.keys()
            for name, held in found.items():
                assert (held.gpu, held.cpu, held.storage) in expected[name]
                assert held.blocks == max(map(sum, expected[name]))
            holders = [c for (_, _, tier), c in self.naive.copies.items() if tier is Tier.SHARED]
            assert self.index.shared(chain) == prefix_length(chain, holders)
        self.index.check()


Machine.TestCase.settings = settings(max_examples=30, stateful_step_count=25)
TestAgainstTheNaiveOne = Machine.TestCase


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_events_leaves_the_same_blocks_as_counting_them(seed):
    rng = Random(seed)
    index, keys = ExactIndex(), prompt(1, 30)
    counts = defaultdict(Counter)
    for _ in range(4000):
        name, key = f"e{rng.randrange(70)}", rng.choice(keys)
        if rng.random() < 0.01:
            counts.pop(name, None)
            index.apply(name, 0, [AllBlocksCleared()])
        elif rng.random() < 0.5:
            counts[name][key] += 1
            index.apply(name, 0, [stored(key)])
        else:
            counts[name][key] = max(counts[name][key] - 1, 0)
            index.apply(name, 0, [removed(key)])
    index.check()
    for key in keys:
        assert set(index.match([key])) == {name for name, copies in counts.items() if copies[key]}
