"""A source's events are told as they are where its hashes are ours, and in our hashes where they are not."""

from array import array
from random import Random

import pytest
from msgspec import structs

from beaconry.kvindex.exact import ExactIndex, Held
from beaconry.kvindex.reading import KEPT_BLOCKS, Reading
from beaconry.kvindex.self_test import ENOUGH_BLOCKS, KEPT_EVENTS
from beaconry.values.block_hash import DEFAULT_SEED, MASK64, BlockHasher
from beaconry.values.errors import OperatorError
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvBlocks

SIZE = 4
BLOCKS = KvBlocks(block_tokens=SIZE, algorithm="sha256_cbor", seed=DEFAULT_SEED)
OURS = BlockHasher(SIZE, "sha256_cbor")
THEIRS = BlockHasher(SIZE, "sha256", seed="42")


def tokens(blocks, number=0):
    rng = Random(number)
    return array("I", [rng.randrange(1000) for _ in range(SIZE * blocks)])


def stored(prompt, hasher=THEIRS, start=0, end=None):
    """What an engine announces of blocks `start` to `end` of a prompt."""
    hashes = [hash_ & MASK64 for hash_ in hasher.hashes(prompt)]
    end = len(hashes) if end is None else end
    return BlockStored(
        block_hashes=tuple(hashes[start:end]),
        parent_hash=hashes[start - 1] if start else None,
        token_ids=tuple(prompt[start * SIZE : end * SIZE]),
        block_tokens=SIZE,
    )


def keys(prompt):
    return [hash_ & MASK64 for hash_ in OURS.hashes(prompt)]


class Gateway:
    """A reading and what the index makes of it. Events come without tokens where nobody needs them, as from the wire."""

    def __init__(self, blocks=BLOCKS):
        self.reading = Reading(blocks)
        self.index = ExactIndex()

    def hear(self, *events):
        if not self.reading.needs_tokens:
            events = [structs.replace(e, token_ids=()) if isinstance(e, BlockStored) else e for e in events]
        told = self.reading.take(tuple(events))
        if told.clear:
            self.index.clear_rank("a", 0)
        self.index.apply("a", 0, told.events)
        self.reading.check()
        self.index.check()
        return told

    def held(self, prompt):
        return self.index.match(keys(prompt)).get("a", Held(0)).blocks


def test_an_engine_with_our_hashes_is_told_as_it_is_and_soon_without_tokens():
    gateway, prompt = Gateway(), tokens(ENOUGH_BLOCKS + 5)
    told = gateway.hear(stored(prompt, OURS, end=2))
    assert (told.verdict, gateway.held(prompt), gateway.reading.needs_tokens) == (None, 2, True)
    told = gateway.hear(stored(prompt, OURS, 2, ENOUGH_BLOCKS))
    assert (told.verdict.exact, told.clear, gateway.reading.needs_tokens) == (True, False, False)
    assert gateway.hear(stored(prompt, OURS, ENOUGH_BLOCKS)).verdict is None
    assert gateway.held(prompt) == ENOUGH_BLOCKS + 5


def test_an_engine_with_other_hashes_is_found_under_ours_with_all_that_it_said_before_the_verdict():
    gateway, prompt = Gateway(), tokens(ENOUGH_BLOCKS + 5)
    gateway.hear(stored(prompt, end=2))
    assert gateway.held(prompt) == 0
    told = gateway.hear(stored(prompt, start=2, end=ENOUGH_BLOCKS))
    assert told.clear
    assert "algorithm and seed differ. The engine uses sha256 with seed '42'" in told.verdict.warning
    assert gateway.held(prompt) == ENOUGH_BLOCKS
    assert gateway.reading.needs_tokens
    gateway.hear(stored(prompt, start=ENOUGH_BLOCKS))
    assert gateway.held(prompt) == ENOUGH_BLOCKS + 5
    gateway.hear(BlockRemoved(block_hash=THEIRS.hashes(prompt)[-1]))
    assert gateway.held(prompt) == ENOUGH_BLOCKS + 4
    gateway.hear(AllBlocksCleared())
    assert gateway.held(prompt) == 0


def test_what_was_cleared_or_removed_before_the_verdict_does_not_come_back():
    gateway, first, second = Gateway(), tokens(3, 1), tokens(ENOUGH_BLOCKS, 2)
    gateway.hear(stored(first), AllBlocksCleared(), stored(second, end=3))
    gateway.hear(BlockRemoved(block_hash=THEIRS.hashes(second)[2]))
    assert gateway.hear(stored(tokens(ENOUGH_BLOCKS, 3))).clear
    assert (gateway.held(first), gateway.held(second)) == (0, 2)


@pytest.mark.parametrize(("before", "after"), [(OURS, THEIRS), (THEIRS, OURS), (THEIRS, THEIRS)])
def test_a_restarted_engine_is_tested_again_and_its_old_names_mean_nothing(before, after):
    gateway, prompt = Gateway(), tokens(ENOUGH_BLOCKS)
    gateway.hear(stored(prompt, before))
    gateway.reading.restart()
    gateway.index.clear("a")
    assert (gateway.reading.verdict, gateway.reading.needs_tokens) == (None, True)
    gateway.reading.check()
    assert gateway.hear(stored(prompt, after)).verdict.exact is (after is OURS)
    assert gateway.held(prompt) == ENOUGH_BLOCKS


def test_without_evidence_the_test_goes_on_and_events_stay_as_they_are():
    gateway, prompt, fresh = Gateway(), tokens(4), tokens(ENOUGH_BLOCKS, 1)
    orphan = stored(prompt, start=1)
    for _ in range(KEPT_EVENTS + 10):
        told = gateway.hear(orphan)
        assert (told.events, told.verdict) == ((orphan,), None)
    assert gateway.hear(stored(fresh)).clear
    assert gateway.held(fresh) == ENOUGH_BLOCKS


def test_first_blocks_that_all_prompts_share_are_found_however_late_the_verdict():
    gateway, shared = Gateway(), tokens(2)
    gateway.hear(stored(shared))
    prompts = [shared + tokens(1, number) for number in range(1, KEPT_EVENTS)]
    told = [gateway.hear(stored(prompt, start=2)) for prompt in prompts]
    assert [at for at, one in enumerate(told) if one.clear] == [ENOUGH_BLOCKS - 2 - 1]
    assert {gateway.held(prompt) for prompt in prompts} == {3}


def test_what_is_kept_for_a_bad_verdict_is_bounded():
    gateway = Gateway()
    first, fresh = tokens(2), tokens(ENOUGH_BLOCKS, 1)
    again = structs.replace(stored(first), token_ids=())
    gateway.hear(stored(first))
    gateway.reading.take((again, *(BlockRemoved(block_hash=name) for name in again.block_hashes)) * (KEPT_BLOCKS // 4))
    gateway.reading.check()
    assert gateway.hear(stored(fresh)).clear
    assert gateway.held(fresh) == ENOUGH_BLOCKS


def test_a_wrong_block_size_is_told_and_needs_no_tokens():
    gateway = Gateway(structs.replace(BLOCKS, block_tokens=2 * SIZE))
    told = gateway.hear(stored(tokens(ENOUGH_BLOCKS), OURS))
    assert f"the engine's blocks have {SIZE} tokens, ours {2 * SIZE}" in told.verdict.warning
    assert (told.clear, gateway.reading.needs_tokens) == (False, False)


def test_a_block_size_that_is_not_configured_is_the_engines():
    gateway = Gateway(structs.replace(BLOCKS, block_tokens=0))
    assert gateway.hear(BlockRemoved(block_hash=1)).verdict is None
    assert gateway.hear(stored(tokens(ENOUGH_BLOCKS), OURS)).verdict.exact


def test_an_unknown_way_of_hashing_is_refused_at_once():
    with pytest.raises(OperatorError, match="unknown block hash 'md5'"):
        Reading(structs.replace(BLOCKS, algorithm="md5"))


def test_an_adapters_blocks_are_verified_and_translated_once_its_path_is_known():
    adapters = {}
    reading, prompt = Reading(BLOCKS, adapters), tokens(ENOUGH_BLOCKS)
    hashes = tuple(hash_ & MASK64 for hash_ in THEIRS.hashes(prompt, lora=("ad", "/ad")))
    event = BlockStored(block_hashes=hashes, parent_hash=None, token_ids=tuple(prompt), block_tokens=SIZE, lora="ad")
    assert reading.take((event,)).verdict is None
    adapters["ad"] = "/ad"
    told = reading.take((event,))
    assert told.verdict.agreed == 0
    assert [list(one.block_hashes) for one in told.events] == [
        [hash_ & MASK64 for hash_ in OURS.hashes(prompt, lora=("ad", "/ad"))]
    ]
