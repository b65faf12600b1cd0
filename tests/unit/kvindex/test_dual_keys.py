"""An engine with hashes of its own is indexed under ours all the same."""

from array import array
from random import Random

import msgspec
import pytest

from beaconry.kvindex.dual_keys import DualKeys
from beaconry.kvindex.exact import ExactIndex, Held
from beaconry.values.block_hash import MASK64, BlockHasher
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Tier

SIZE = 4
THEIRS = BlockHasher(SIZE, "sha256_cbor", seed="random")
OURS = BlockHasher(SIZE, "sha256", seed="ours")


def tokens(count, seed=0):
    rng = Random(seed)
    return array("I", [rng.randrange(1000) for _ in range(count)])


def stored(prompt, start=0, end=None, **fields):
    """What an engine announces of blocks `start` to `end` of a prompt."""
    hashes = [h & MASK64 for h in THEIRS.hashes(prompt)]
    end = len(hashes) if end is None else end
    return BlockStored(
        block_hashes=tuple(hashes[start:end]),
        parent_hash=hashes[start - 1] if start else None,
        token_ids=tuple(prompt[start * SIZE : end * SIZE]),
        block_tokens=SIZE,
        **fields,
    )


def keys(prompt, **extras):
    return OURS.hashes(prompt, **extras)


def removed(event, index, **fields):
    return BlockRemoved(block_hash=event.block_hashes[index], **fields)


def test_blocks_are_found_under_our_hashes():
    dual, index, prompt = DualKeys(OURS), ExactIndex(), tokens(40)
    index.apply("a", 0, dual.translate([stored(prompt, 0, 6), stored(prompt, 6, 9)]))
    assert index.match(keys(prompt)) == {"a": Held(9)}
    index.apply("a", 0, dual.translate([removed(stored(prompt), 8)]))
    assert index.match(keys(prompt)) == {"a": Held(8)}
    dual.check()


def test_what_follows_an_unknown_block_is_left_out():
    dual, prompt = DualKeys(OURS), tokens(40)
    assert dual.translate([stored(prompt, 2), removed(stored(prompt), 5)]) == ()
    assert dual.statistics().orphans == 8
    (again,) = dual.translate([stored(prompt)])
    assert list(again.block_hashes) == [key & MASK64 for key in keys(prompt)]


def test_blocks_without_tokens_are_told_if_they_are_known():
    dual, prompt = DualKeys(OURS), tokens(12)
    offloaded = msgspec.structs.replace(stored(prompt, tier=Tier.CPU), token_ids=(), block_tokens=0, parent_hash=None)
    assert dual.translate([offloaded]) == ()
    index = ExactIndex()
    index.apply("a", 0, dual.translate([stored(prompt), offloaded, *[removed(stored(prompt), at) for at in range(3)]]))
    assert index.match(keys(prompt)) == {"a": Held(0, 3)}
    assert dual.statistics().blocks == 3
    index.apply("a", 0, dual.translate([removed(stored(prompt), at, tier=Tier.CPU) for at in range(3)]))
    assert index.match(keys(prompt)) == {}
    assert dual.statistics().blocks == 0


def test_salt_and_adapter_enter_our_hashes():
    dual, prompt = DualKeys(OURS, {"ad": "/path"}), tokens(8)
    told = dual.translate([stored(prompt, lora="ad", extras=tuple(map(msgspec.msgpack.encode, (["ad", "s"], ["ad"]))))])
    assert list(told[0].block_hashes) == [key & MASK64 for key in keys(prompt, lora=("ad", "/path"), salt="s")]
    assert DualKeys(OURS).translate([stored(prompt, lora="ad", extras=(b"\x91\xa2ad",) * 2)]) == ()


def test_a_clear_and_a_sliding_window_are_passed_on():
    dual, prompt = DualKeys(OURS), tokens(8)
    window = stored(prompt, dense=False, group=1)
    assert dual.translate([stored(prompt), window, AllBlocksCleared()])[1:] == (window, AllBlocksCleared())
    assert dual.statistics().blocks == 0


def test_a_full_table_takes_nothing_new_and_forgets_nothing():
    dual, index, prompt = DualKeys(OURS, limit=3), ExactIndex(), tokens(20)
    index.apply("a", 0, dual.translate([stored(prompt)]))
    assert index.match(keys(prompt)) == {"a": Held(3)}
    assert dual.statistics().refused == 2
    dual.check()
    index.apply("a", 0, dual.translate([removed(stored(prompt), 2)]))
    assert index.match(keys(prompt)) == {"a": Held(2)}


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_events_gives_what_an_engine_with_our_hashes_would(seed):
    """Oracle: the same events published with our hashes in the first place."""
    rng = Random(seed)
    prompts = [tokens(4 * 8) + tokens(4 * 4, seed=number) for number in range(3)]
    dual, translated, direct = DualKeys(OURS), ExactIndex(), ExactIndex()
    held = {}
    for _ in range(400):
        number = rng.randrange(3)
        event, ours = stored(prompts[number]), tuple(keys(prompts[number]))
        if rng.random() < 0.5:
            start = rng.choice([at for at in range(12) if at == 0 or held.get(ours[at - 1])])
            events = [stored(prompts[number], start)]
            plain = [msgspec.structs.replace(events[0], block_hashes=ours[start:])]
            for key in ours[start:]:
                held[key] = held.get(key, 0) + 1
        elif rng.random() < 0.03:
            events = plain = [AllBlocksCleared()]
            held.clear()
        else:
            at = max((at for at in range(12) if held.get(ours[at])), default=None)
            if at is None:
                continue
            held[ours[at]] -= 1
            events, plain = [removed(event, at)], [BlockRemoved(block_hash=ours[at])]
        translated.apply("a", 0, dual.translate(events))
        direct.apply("a", 0, plain)
        dual.check()
        for prompt in prompts:
            assert translated.match(keys(prompt)) == direct.match(keys(prompt))


def test_a_block_met_first_beside_the_gpu_is_left_out_since_its_salt_is_not_told():
    dual, prompt = DualKeys(OURS), tokens(8)
    copied = stored(prompt, tier=Tier.CPU)
    assert dual.translate([copied]) == ()
    dual.translate([stored(prompt)])
    assert [event.tier for event in dual.translate([copied])] == [Tier.CPU]


def test_the_index_of_an_engine_with_other_hashes_does_not_follow_its_windows():
    dual, index, prompt = DualKeys(OURS), ExactIndex(), tokens(8)
    index.apply("a", 0, dual.translate([stored(prompt), stored(prompt, dense=False, window=9, group=1)]))
    assert not index.proves("a")
