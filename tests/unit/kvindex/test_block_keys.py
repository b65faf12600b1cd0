"""Block keys: always those of hashing from the start, while only what is new is hashed."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from beaconry.kvindex.block_keys import ENTRY_BYTES, STRIDE, BlockKeys
from beaconry.values.block_hash import MASK64, BlockHasher, Extras, MediaItem

SIZE = 2
SPAN = STRIDE * SIZE
"""Tokens of one stride."""


def naive(hasher, tokens, extras):
    found = hasher.hashes(tokens, lora=extras.lora, salt=extras.salt, items=extras.items)
    return [hash_ & MASK64 for hash_ in found]


def prompt(*parts):
    """Each part a number and how often it is repeated."""
    return array("I", [number for number, times in parts for _ in range(times)])


EXTRAS = st.builds(
    Extras,
    lora=st.sampled_from([None, ("a", "/a"), ("b", "/b")]),
    salt=st.sampled_from([None, "s"]),
    items=st.sampled_from(
        [
            (),
            (MediaItem(identifier="x", offset=3, length=2),),
            (MediaItem(identifier="y", offset=3, length=SPAN),),
            (MediaItem(identifier="x", offset=SPAN + 1, length=4),),
        ]
    ),
)
PROMPTS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, SPAN + 3)), max_size=5).map(lambda parts: prompt(*parts))


@given(st.lists(st.tuples(PROMPTS, EXTRAS), max_size=8), st.integers(1, 12))
def test_keys_are_those_of_hashing_from_the_start_whatever_was_asked_before(requests, entries):
    hasher = BlockHasher(SIZE, "sha256_cbor")
    block_keys = BlockKeys(hasher, limit_bytes=entries * ENTRY_BYTES)
    for tokens, extras in requests:
        assert list(block_keys.keys(tokens, extras)) == naive(hasher, tokens, extras)
        block_keys.check()


def test_a_growing_conversation_hashes_its_new_blocks_and_the_unfinished_stride_only():
    block_keys = BlockKeys(BlockHasher(SIZE, "sha256"))
    tokens = prompt((1, 10 * SPAN))
    block_keys.keys(tokens)
    assert block_keys.statistics().blocks_hashed == 10 * STRIDE
    block_keys.keys(tokens + prompt((2, 3 * SIZE)))
    assert block_keys.statistics().blocks_hashed == 10 * STRIDE + 3
    assert block_keys.statistics().blocks_known == 10 * STRIDE


def test_the_memo_keeps_its_bound_and_drops_the_longest_unused_first():
    block_keys = BlockKeys(BlockHasher(SIZE, "fast"), limit_bytes=4 * ENTRY_BYTES)
    old, kept = prompt((1, 2 * SPAN)), prompt((2, 2 * SPAN))
    block_keys.keys(old)
    block_keys.keys(kept)
    block_keys.keys(prompt((3, SPAN)))  # drops the end of the oldest prompt, not its beginning
    assert block_keys.statistics().bytes == 4 * ENTRY_BYTES
    hashed = block_keys.statistics().blocks_hashed
    block_keys.keys(kept)
    block_keys.keys(old[:SPAN])
    assert block_keys.statistics().blocks_hashed == hashed


def test_hashing_pauses_after_each_stride_that_is_new():
    block_keys = BlockKeys(BlockHasher(SIZE, "fast"))
    tokens = prompt((1, 3 * SPAN + SIZE))
    found = array("Q")
    assert len(list(block_keys.walk(found, tokens))) == 3
    assert list(found) == list(block_keys.keys(tokens))
    assert list(block_keys.walk(array("Q"), tokens)) == []
