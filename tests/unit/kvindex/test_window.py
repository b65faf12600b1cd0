"""Models with sliding windows beside full attention: a hit ends where every group has its part, as in vLLM's own search."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.kvindex.exact import ExactIndex, Held
from beaconry.kvindex.window import Window, reach_all
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Tier

SIZE = 4


def stored(*hashes, group=0, window=None, tier=Tier.GPU, size=SIZE):
    return BlockStored(
        block_hashes=hashes,
        parent_hash=None,
        token_ids=(),
        block_tokens=size,
        group=group,
        dense=window is None,
        window=window,
        tier=tier,
    )


def slide(*hashes, group=1, window=9, **fields):
    """Of a group that looks 9 tokens back: two blocks of 4 make a hit."""
    return stored(*hashes, group=group, window=window, **fields)


def held(index, keys):
    return index.match(keys).get("a", Held(0))


def index_of(*events, limit_bytes=1 << 20):
    index = ExactIndex(limit_bytes)
    index.apply("a", 0, events)
    index.check()
    return index


@pytest.mark.parametrize(
    ("tokens", "size", "needed"), [(1, 16, 1), (2, 16, 1), (17, 16, 1), (18, 16, 2), (128, 16, 8), (4096, 16, 256)]
)
def test_a_hit_needs_the_blocks_that_its_last_token_looks_back_to(tokens, size, needed):
    assert Window(tokens, size).needed == needed


def naive_reach(groups, keys, end):
    """The longest prefix before whose end each group has as many blocks as it needs, or all from the start."""
    for length in range(end, -1, -1):
        if all(all(key in blocks for key in keys[max(length - needed, 0) : length]) for needed, blocks in groups):
            return length
    return 0


@given(
    groups=st.lists(st.tuples(st.integers(1, 4), st.sets(st.integers(0, 11), max_size=12)), min_size=1, max_size=3),
    end=st.integers(0, 12),
)
def test_the_reach_of_all_groups_is_the_longest_that_suits_each(groups, end):
    windows = []
    for needed, blocks in groups:
        window = Window(needed * SIZE + 1, SIZE)
        window.store(slide(*blocks))
        windows.append(window)
    assert reach_all(windows, range(12), end) == naive_reach(groups, range(12), end)


def test_a_window_that_has_moved_on_keeps_the_hit_as_long_as_its_last_blocks_are_there():
    index = index_of(stored(1, 2, 3, 4, 5, 6), slide(1, 2, 3, 4, 5, 6))
    assert held(index, [1, 2, 3, 4, 5, 6, 7]) == Held(6)
    index.apply("a", 0, [BlockRemoved(block_hash=one, group=1) for one in (1, 2, 3, 4)])
    assert held(index, [1, 2, 3, 4, 5, 6, 7]) == Held(6)
    assert held(index, [1, 2, 3, 4, 9]) == Held(0)
    index.apply("a", 0, [BlockRemoved(block_hash=6, group=1)])
    assert held(index, [1, 2, 3, 4, 5, 6, 7]) == Held(0)
    assert index.proves("a")


def test_the_beginning_of_a_prompt_is_a_hit_for_a_window_longer_than_it():
    index = index_of(stored(1, 2, 3), slide(1))
    assert held(index, [1, 2, 3]) == Held(1)


def test_several_windows_must_agree_on_one_place():
    index = index_of(stored(1, 2, 3, 4, 5, 6), slide(1, 2, 5, 6), slide(1, 2, 3, 4, group=2))
    assert held(index, [1, 2, 3, 4, 5, 6]) == Held(2)


def test_further_copies_keep_a_block_until_the_last_one_goes():
    index = index_of(stored(1), slide(1), slide(1), BlockRemoved(block_hash=1, group=1))
    assert held(index, [1]) == Held(1)
    index.apply("a", 0, [BlockRemoved(block_hash=1, group=1), BlockRemoved(block_hash=1, group=1)])
    index.check()
    assert held(index, [1]) == Held(0)


def test_what_a_window_has_beside_the_gpu_makes_no_hit():
    index = index_of(stored(1, 2), stored(1, 2, 3, tier=Tier.CPU), slide(1, 2, 3, tier=Tier.CPU))
    assert held(index, [1, 2, 3]) == Held(0)
    index.apply("a", 0, [slide(1, 2, 3)])
    assert held(index, [1, 2, 3]) == Held(2)


@pytest.mark.parametrize("odd", [slide(1, window=0), slide(1, size=0), slide(1, size=8)])
def test_windows_that_cannot_be_followed_leave_nothing_indexed(odd):
    index = index_of(stored(1, 2), slide(1, 2), odd)
    assert (held(index, [1, 2]), index.proves("a")) == (Held(0), False)


def test_a_window_of_other_blocks_than_the_dense_groups_makes_no_hit_in_either_order():
    for events in ([stored(1, 2), slide(1, 2, size=8)], [slide(1, 2, size=8), stored(1, 2)]):
        index = index_of(*events)
        assert (held(index, [1, 2]), index.proves("a")) == (Held(0), False)


def test_a_clear_empties_the_windows_as_well():
    index = index_of(stored(1, 2), slide(1, 2), AllBlocksCleared(), stored(1, 2))
    assert index.statistics().sources[0].windowed == 0
    assert held(index, [1, 2]) == Held(0)
    index.apply("a", 0, [slide(1, 2)])
    assert held(index, [1, 2]) == Held(2)


def test_windows_take_at_most_half_of_the_memory():
    index = index_of(stored(1, 2), slide(*range(1, 400)), limit_bytes=96 * 1000)
    assert held(index, [1, 2]) == Held(2)
    index.apply("a", 0, [slide(*range(400, 600))])
    index.check()
    assert (index.proves("a"), index.statistics().sources[0].windowed) == (False, 0)


def test_events_in_any_order_give_what_the_groups_sets_give():
    """The dense group loses the ends of prompts first, the windows lose anything."""
    rng, index, depth, groups = Random(4), ExactIndex(1 << 20), 0, {1: (2, 9, set()), 2: (1, 5, set())}
    index.apply("a", 0, [slide(99), slide(99, group=2, window=5)])
    for _ in range(2000):
        group = rng.randrange(3)
        if group == 0:
            grows = depth < 10 and (depth == 0 or rng.random() < 0.6)
            event = stored(depth) if grows else BlockRemoved(block_hash=depth - 1)
            depth += 1 if grows else -1
        else:
            _, tokens, blocks = groups[group]
            key = rng.randrange(10)
            event = (
                BlockRemoved(block_hash=key, group=group) if key in blocks else slide(key, group=group, window=tokens)
            )
            blocks ^= {key}
        index.apply("a", 0, [event])
        needs = [(needed, blocks) for needed, _, blocks in groups.values()]
        assert held(index, range(10)).gpu == naive_reach(needs, range(10), depth)
    index.check()
