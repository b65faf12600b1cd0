"""The self-test gives one verdict per engine start, from as few events as prove it."""

from array import array

from beaconry.kvindex.agreement import HashSettings
from beaconry.kvindex.self_test import ENOUGH_BLOCKS, KEPT_EVENTS, SelfTest
from beaconry.values.block_hash import DEFAULT_SEED, BlockHasher
from beaconry.values.kv_events import AllBlocksCleared, BlockStored

SETTINGS = HashSettings(algorithm="sha256", seed=DEFAULT_SEED, block_tokens=2)


def prompt(number, blocks, seed=DEFAULT_SEED):
    tokens = array("I", [number] * (2 * blocks))
    hashes = BlockHasher(2, "sha256", seed).hashes(tokens)
    return BlockStored(block_hashes=tuple(hashes), parent_hash=None, token_ids=tuple(tokens), block_tokens=2)


def test_enough_blocks_make_the_verdict_and_it_is_given_once():
    test = SelfTest(SETTINGS)
    assert test.hear([AllBlocksCleared(), prompt(1, ENOUGH_BLOCKS - 1)]) is None
    assert test.hear([]) is None
    verdict = test.hear([prompt(2, 1)])
    assert verdict.exact
    assert test.verdict is verdict
    assert test.hear([prompt(3, ENOUGH_BLOCKS)]) is None


def test_a_strange_engine_is_told_with_its_way_of_hashing():
    test = SelfTest(SETTINGS)
    verdict = test.hear([prompt(1, ENOUGH_BLOCKS, seed="42")])
    assert not verdict.exact
    assert "seed '42'" in verdict.warning


def test_a_strange_engine_whose_prompts_all_begin_alike_is_found_out_after_few_events():
    """The common beginning is announced once; whatever follows it is verified by way of the name the engine gave it."""
    stranger = BlockHasher(2, "sha256", "nobody knows")
    first, *_ = stranger.hashes(array("I", [7, 7]))
    events = [BlockStored(block_hashes=(first,), parent_hash=None, token_ids=(7, 7), block_tokens=2)]
    for number in range(KEPT_EVENTS):
        second = stranger.hashes(array("I", [7, 7, number, number]))[1]
        events.append(
            BlockStored(block_hashes=(second,), parent_hash=first, token_ids=(number, number), block_tokens=2)
        )
    test = SelfTest(SETTINGS)
    heard = next(count for count, event in enumerate(events, 1) if test.hear([event]) is not None)
    assert heard == ENOUGH_BLOCKS
    assert (test.verdict.agreed, test.verdict.blocks, test.verdict.unverifiable) == (0, ENOUGH_BLOCKS, 0)


def test_events_that_cannot_be_verified_end_the_wait_at_a_bound():
    test = SelfTest(SETTINGS)
    orphan = BlockStored(block_hashes=(5,), parent_hash=4, token_ids=(1, 1), block_tokens=2)
    assert test.hear([orphan] * (KEPT_EVENTS - 1)) is None
    verdict = test.hear([orphan] * 10)
    assert (verdict.share, verdict.exact) == (None, False)


def test_events_without_tokens_are_no_evidence():
    test = SelfTest(SETTINGS)
    bare = BlockStored(block_hashes=(5,), parent_hash=None, token_ids=(), block_tokens=2)
    assert test.hear([bare] * KEPT_EVENTS) is None


def test_a_restarted_engine_is_tested_again():
    test = SelfTest(SETTINGS)
    assert test.hear([prompt(1, ENOUGH_BLOCKS)]).exact
    test.restart()
    assert test.verdict is None
    assert not test.hear([prompt(1, ENOUGH_BLOCKS, seed="1")]).exact
