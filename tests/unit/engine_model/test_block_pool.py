"""Facts about the block pool that the comparison with the naive engine meets rarely or never."""

import pytest

from beaconry.engine_model.block_pool import BlockPool
from beaconry.engine_model.sequence import Content, Sequence
from beaconry.values.errors import InternalError
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored


def holding(pool, hashes, blocks=None):
    """A sequence that holds `blocks` blocks, those with hashes published."""
    sequence = Sequence("s", 1, 1, Content(hashes=hashes))
    count = len(hashes) if blocks is None else blocks
    pool.allocate(count)
    sequence.private_blocks = count
    pool.publish(sequence, count)
    return sequence


def test_the_tail_of_a_released_sequence_is_evicted_first():
    pool = BlockPool(4, 1, record_events=True)
    pool.release(holding(pool, [10, 11, 12, 13]))
    pool.take_events()
    pool.allocate(2)
    assert pool.take_events() == [BlockRemoved(block_hash=13), BlockRemoved(block_hash=12)]
    assert pool.match([10, 11, 12, 13], 4) == [10, 11]


def test_blank_blocks_are_used_before_any_cached_one_is_evicted():
    pool = BlockPool(4, 1)
    pool.release(holding(pool, [10, 11]))
    pool.release(holding(pool, [], blocks=2))
    pool.allocate(2)
    assert pool.match([10, 11], 2) == [10, 11]
    assert pool.evictions == 0


def test_a_block_in_use_is_never_evicted():
    pool = BlockPool(3, 1)
    first = holding(pool, [10])
    pool.release(holding(pool, [11, 12]))
    last = holding(pool, [], blocks=2)
    assert pool.match([10], 1) == [10]
    assert pool.match([11], 1) == []
    pool.check([first, last])


def test_sharing_an_idle_block_takes_it_from_the_free_ones():
    pool = BlockPool(2, 1)
    pool.release(holding(pool, [10]))
    assert pool.free == 2
    assert pool.count_held([10]) == 0
    pool.share([10])
    assert pool.free == 1
    assert pool.count_held([10]) == 1


def test_equal_blocks_of_two_sequences_are_announced_and_removed_each_for_itself():
    pool = BlockPool(2, 1, record_events=True)
    first, second = holding(pool, [10]), holding(pool, [10])
    pool.check([first, second])
    pool.release(first)
    pool.release(second)
    assert [type(event) for event in pool.take_events()] == [BlockStored, BlockStored]
    pool.allocate(1)
    assert len(pool.match([10], 1)) == 1
    pool.allocate(1)
    assert pool.match([10], 1) == []
    assert pool.take_events() == [BlockRemoved(block_hash=10), BlockRemoved(block_hash=10)]


def test_a_third_equal_block_queues_behind_the_copy_that_outlived_the_first():
    pool = BlockPool(3, 1)
    first, second = holding(pool, [10]), holding(pool, [10])
    pool.release(first)
    filler = holding(pool, [], blocks=2)  # the blank one, and the first copy's
    assert pool.match([10], 1) == second.table
    pool.release(filler)
    third = holding(pool, [10])
    assert pool.match([10], 1) == second.table != third.table
    pool.check([second, third])


def test_events_name_parent_tokens_lora_and_the_salt_of_a_first_block():
    pool = BlockPool(4, 2, record_events=True)
    sequence = Sequence("s", 1, 1, Content(hashes=[7, 8], tokens=[1, 2, 3, 4, 5], lora="ad", salt="x"))
    pool.allocate(2)
    sequence.private_blocks = 2
    pool.publish(sequence, 1)
    pool.publish(sequence, 2)
    assert pool.take_events() == [
        BlockStored(block_hashes=(7,), parent_hash=None, token_ids=(1, 2), block_tokens=2, lora="ad", salt="x"),
        BlockStored(block_hashes=(8,), parent_hash=7, token_ids=(3, 4), block_tokens=2, lora="ad", salt=None),
    ]
    assert pool.take_events() == []


def test_the_cache_can_be_cleared_only_while_nobody_holds_a_block():
    pool = BlockPool(2, 1, record_events=True)
    sequence = holding(pool, [10])
    assert not pool.clear()
    pool.release(sequence)
    assert pool.clear()
    assert pool.match([10], 1) == []
    assert pool.take_events()[-1] == AllBlocksCleared()
    assert pool.free == 2


def test_without_caching_nothing_is_ever_shared():
    pool = BlockPool(2, 1, caching=False)
    sequence = holding(pool, [10])
    assert sequence.private_blocks == 1
    assert pool.match([10], 1) == []


def test_a_copy_goes_its_own_way_and_records_no_events():
    pool = BlockPool(2, 1, record_events=True)
    pool.release(holding(pool, [10]))
    pool.release(holding(pool, [10]))
    other = pool.copy()
    other.allocate(2)
    assert other.take_events() == []
    assert other.match([10], 1) == []
    assert pool.match([10], 1) == [10]


def test_check_finds_a_lost_block():
    pool = BlockPool(2, 1)
    pool.blank -= 1
    with pytest.raises(InternalError, match="blocks are conserved"):
        pool.check([])
