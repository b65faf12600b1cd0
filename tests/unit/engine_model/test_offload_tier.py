"""A tier beside the GPU keeps what was used last, and an engine loads from it what it would else compute."""

from collections import OrderedDict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.offload_tier import OffloadTier, run_of
from beaconry.engine_model.sequence import Content, Phase, Sequence
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.kvindex.exact import ExactIndex, Held
from beaconry.values.errors import OperatorError
from beaconry.values.kv_events import BlockRemoved, BlockStored, Tier

SETTINGS = EngineSettings(num_blocks=8, block_tokens=4, max_num_seqs=4, max_num_batched_tokens=64)
STEP = LinearStepTime(fixed_s=0.0, prefill_tps=100.0)
LOAD_S = 0.001
"""Of a block, whose computing takes 40 times as long."""


def prompt(number, blocks):
    return [1000 * number + index for index in range(1, blocks + 1)]


def served(engine, hashes, *, name=None, prompt_tokens=None, output_tokens=1):
    """Run one sequence alone; returns it and how long it took."""
    tokens = 4 * len(hashes) + 1 if prompt_tokens is None else prompt_tokens
    sequence = Sequence(name or str(hashes), tokens, output_tokens, Content(hashes=hashes))
    engine.submit(sequence, 0.0)
    spent_s = 0.0
    while (duration_s := engine.begin_step(spent_s)) is not None:
        spent_s += duration_s
        engine.finish_step(spent_s)
        engine.check()
    assert sequence.phase is Phase.FINISHED
    return sequence, spent_s


def test_what_was_used_longest_ago_makes_room_and_of_a_prompt_its_end_first():
    tier = OffloadTier(4, LOAD_S)
    assert tier.keep([1, 2, 3]) == ([1, 2, 3], [])
    assert tier.keep([10]) == ([10], [])
    assert tier.keep([20]) == ([20], [3])
    assert tier.keep([1, 2]) == ([], [])
    assert tier.keep([30]) == ([30], [10])


def test_what_does_not_fit_as_a_whole_is_not_copied():
    tier = OffloadTier(2, LOAD_S)
    tier.keep([1])
    assert tier.keep([1, 2, 3]) == ([], [])
    assert (1 in tier, 2 in tier, len(tier)) == (True, False, 1)


def test_a_shared_store_that_is_full_keeps_what_it_has():
    store = OffloadTier(2, LOAD_S, Tier.SHARED)
    assert store.keep([1, 2]) == ([1, 2], [])
    assert store.keep([5]) == ([], [])
    assert (len(store), 1 in store, 5 in store) == (2, True, False)


@given(
    runs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), max_size=30),
    capacity=st.integers(1, 8),
)
def test_it_keeps_what_a_naive_lru_keeps(runs, capacity):
    tier, naive = OffloadTier(capacity, LOAD_S), OrderedDict()
    for number, blocks in runs:
        hashes = prompt(number, blocks)
        fits = len(hashes) <= capacity
        new, gone = tier.keep(hashes)
        before = set(naive)
        for one in reversed(hashes):
            if one in naive:
                naive.move_to_end(one)
            elif fits:
                naive[one] = None
        for one in reversed([one for one in hashes if one in naive]):
            naive.move_to_end(one)
        while len(naive) > capacity:
            naive.popitem(last=False)
        assert {one for one in range(10_000) if one in tier} == set(naive)
        assert (set(new), set(gone)) == (set(naive) - before, before - set(naive))
        tier.check()


@pytest.mark.parametrize(("blocks", "load_s", "kind"), [(0, 0.1, Tier.CPU), (1, -0.1, Tier.CPU), (1, 0.1, Tier.GPU)])
def test_a_tier_that_makes_no_sense_is_refused(blocks, load_s, kind):
    with pytest.raises(OperatorError, match="an offloading tier"):
        OffloadTier(blocks, load_s, kind)


def test_a_run_goes_on_over_several_tiers_and_each_block_comes_from_the_fastest():
    cpu, store = OffloadTier(9, 1.0), OffloadTier(9, 10.0, Tier.SHARED)
    cpu.keep([1, 2])
    store.keep([2, 3])
    assert run_of((cpu, store), [1, 2, 3, 4], 0, 9) == (3, 12.0)
    assert run_of((cpu, store), [1, 2, 3, 4], 1, 2) == (1, 1.0)
    assert run_of((cpu, store), [4], 0, 1) == (0, 0.0)
    assert run_of((), [1], 0, 1) == (0, 0.0)


def test_an_evicted_prompt_is_loaded_instead_of_computed():
    tier = OffloadTier(100, LOAD_S)
    engine = Engine(SETTINGS, STEP, tiers=(tier,))
    hashes = prompt(1, 6)
    _, computed_s = served(engine, hashes, name="first")
    served(engine, prompt(2, 7))
    again, loaded_s = served(engine, hashes, name="again")
    assert (again.cached_tokens, again.prompt_tokens) == (24, 25)
    assert computed_s == pytest.approx(0.25)
    assert loaded_s == pytest.approx(6 * LOAD_S + 0.01)
    assert engine.statistics().loaded_tokens == 24
    assert engine.statistics().prefix_hits == 0


def test_what_is_on_the_gpu_is_not_loaded_and_the_last_token_is_always_computed():
    engine = Engine(SETTINGS, STEP, tiers=(OffloadTier(100, LOAD_S),))
    hashes = prompt(1, 3)
    served(engine, hashes, name="first", prompt_tokens=12)
    again, spent_s = served(engine, hashes, name="again", prompt_tokens=12)
    assert again.cached_tokens == 8
    assert spent_s == pytest.approx(0.04)
    assert engine.statistics().loaded_tokens == 0


def test_blocks_of_the_reply_are_copied_only_as_part_of_the_next_prompt():
    tier = OffloadTier(100, LOAD_S)
    engine = Engine(SETTINGS, STEP, tiers=(tier,))
    served(engine, prompt(1, 4), prompt_tokens=8, output_tokens=9)
    assert len(tier) == 2
    served(engine, prompt(1, 4), name="next turn", prompt_tokens=17)
    assert len(tier) == 4


def test_its_events_tell_an_index_what_gpu_and_tier_hold():
    engine = Engine(SETTINGS, STEP, record_events=True, tiers=(OffloadTier(9, LOAD_S),))
    index = ExactIndex()
    rng = Random(1)
    for number in range(60):
        hashes = prompt(rng.randrange(4), rng.randrange(1, 7))
        served(engine, hashes, name=str(number))
        events = engine.take_events()
        assert {event.tier for event in events if not isinstance(event, BlockStored)} <= {Tier.GPU, Tier.CPU}
        index.apply("a", 0, events)
        index.check()
        for other in range(4):
            wanted = prompt(other, 6)
            keys = engine._pool.match(wanted, 6)
            loaded, _ = engine._pool.loadable(wanted, len(keys), 6)
            held = index.match(wanted).get("a", Held(0))
            assert (held.gpu, held.cpu) == (len(keys), loaded)
    assert engine.statistics().loaded_tokens > 0


def test_a_tier_s_events_have_one_block_each_and_say_where():
    engine = Engine(SETTINGS, STEP, record_events=True, tiers=(OffloadTier(2, LOAD_S),))
    served(engine, prompt(1, 2))
    served(engine, prompt(2, 1))
    told = [event for event in engine.take_events() if event.tier is Tier.CPU]
    assert told == [
        BlockStored(block_hashes=(1001,), parent_hash=None, token_ids=(), block_tokens=4, tier=Tier.CPU),
        BlockStored(block_hashes=(1002,), parent_hash=1001, token_ids=(), block_tokens=4, tier=Tier.CPU),
        BlockRemoved(block_hash=1002, tier=Tier.CPU),
        BlockStored(block_hashes=(2001,), parent_hash=None, token_ids=(), block_tokens=4, tier=Tier.CPU),
    ]


def test_engines_that_share_a_store_load_what_others_have_computed():
    store = OffloadTier(100, LOAD_S, Tier.SHARED)
    first, second = (Engine(SETTINGS, STEP, tiers=(store,)) for _ in range(2))
    served(first, prompt(1, 5))
    sequence, _ = served(second, prompt(1, 5))
    assert sequence.cached_tokens == 20


def test_a_copy_of_an_engine_has_tiers_of_its_own():
    tier = OffloadTier(100, LOAD_S)
    engine = Engine(SETTINGS, STEP, tiers=(tier,))
    served(engine, prompt(1, 2))
    other = engine.copy()
    served(other, prompt(2, 2))
    assert len(tier) == 2
    assert other._pool.loadable(prompt(1, 2), 0, 2) == (2, 2 * LOAD_S)


def test_without_prefix_caching_nothing_is_copied():
    tier = OffloadTier(100, LOAD_S)
    served(Engine(structs.replace(SETTINGS, prefix_caching=False), STEP, tiers=(tier,)), prompt(1, 2))
    assert len(tier) == 0


def test_clearing_the_cache_clears_the_engine_s_own_tiers_and_not_what_it_shares():
    cpu, store = OffloadTier(9, LOAD_S), OffloadTier(9, LOAD_S, Tier.SHARED)
    engine = Engine(SETTINGS, STEP, tiers=(cpu, store))
    served(engine, prompt(1, 2))
    assert engine.reset_prefix_cache()
    assert (len(cpu), len(store)) == (0, 2)
