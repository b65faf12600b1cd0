"""Portions of events."""

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from beaconry.kvindex.turns import in_turns, size_of
from beaconry.values.kv_events import BlockRemoved, BlockStored


def stored(*hashes):
    return BlockStored(block_hashes=hashes, parent_hash=None, token_ids=(), block_tokens=1)


@given(st.lists(st.integers(0, 30)), st.integers(1, 8))
def test_turns_are_bounded_and_lose_nothing(sizes, blocks):
    numbers = count()
    events = []
    for size in sizes:
        hashes = tuple(next(numbers) for _ in range(size))
        events.append(stored(*hashes) if size else BlockRemoved(block_hash=next(numbers)))
    turns = list(in_turns(events, blocks))
    parts = [event for turn in turns for event in turn]
    seen = [h for e in parts for h in (e.block_hashes if type(e) is BlockStored else (e.block_hash,))]
    assert seen == list(range(next(numbers)))
    for turn in turns:
        assert turn
        assert sum(map(size_of, turn)) <= blocks


def test_a_run_that_is_cut_stays_a_chain():
    run = BlockStored(
        block_hashes=(1, 2, 3),
        parent_hash=9,
        token_ids=(10, 11, 20, 21, 30, 31),
        block_tokens=2,
        extras=(b"a", b"", b"c"),
    )
    (first,), (second,) = in_turns([run], 2)
    assert (first.parent_hash, first.block_hashes, first.token_ids, first.extras) == (
        9,
        (1, 2),
        (10, 11, 20, 21),
        (b"a", b""),
    )
    assert (second.parent_hash, second.block_hashes, second.token_ids, second.extras) == (2, (3,), (30, 31), (b"c",))
