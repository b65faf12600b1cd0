"""The self-test against recorded events of real engines: our hashes agree, and where they cannot, the warning says why."""

from array import array

import msgspec
import pytest

from beaconry.kvindex.agreement import HashSettings, agreement
from beaconry.values.block_hash import DEFAULT_SEED, MASK64, BlockHasher
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Tier
from beaconry.wire.kv_events import decode, parse_frames
from tests.unit.wire.recordings import recorded

CBOR = HashSettings(algorithm="sha256_cbor", seed="0", block_tokens=32)
DEFAULT = HashSettings(algorithm="sha256", seed=DEFAULT_SEED, block_tokens=32)
ADAPTERS = {"ad1": "tiny-lora"}


def events_of(name):
    """All events of a recording."""
    return [event for frames in recorded(name) for event in decode(parse_frames(frames)[1], tokens=True).events]


def changed(settings, **fields):
    return msgspec.structs.replace(settings, **fields)


@pytest.mark.parametrize(
    ("name", "settings", "blocks"),
    [
        ("vllm032_sha256_cbor_u64", CBOR, 56),
        ("vllm032_sha256_cbor_bytes", changed(CBOR, seed="42"), 53),
        ("vllm032_sha256_default", DEFAULT, 53),
        ("vllm032_dp2_ranks", changed(DEFAULT, seed="0"), 4),
        ("sglang0523", changed(DEFAULT, algorithm="sglang"), 5),
    ],
)
def test_all_blocks_that_real_engines_announced_agree(name, settings, blocks):
    result = agreement(events_of(name), settings, ADAPTERS)
    assert (result.blocks, result.agreed, result.unverifiable, result.warning) == (blocks, blocks, 0, "")
    assert result.exact
    assert result.share == 1.0


@pytest.mark.parametrize(
    ("name", "configured", "engine", "cause"),
    [
        ("vllm032_sha256_cbor_u64", DEFAULT, CBOR, "algorithm and seed differ"),
        ("vllm032_sha256_cbor_u64", changed(CBOR, seed=DEFAULT_SEED), CBOR, "the seed differs: PYTHONHASHSEED"),
        ("vllm032_sha256_default", changed(DEFAULT, algorithm="xxhash"), DEFAULT, "the algorithm differs"),
        ("sglang0523", DEFAULT, changed(DEFAULT, algorithm="sglang"), "the algorithm differs. The engine uses sglang:"),
    ],
)
def test_a_wrong_way_of_hashing_is_named_together_with_the_right_one(name, configured, engine, cause):
    result = agreement(events_of(name), configured, ADAPTERS)
    assert result.agreed == 0 < result.blocks
    assert result.engine == engine
    assert cause in result.warning
    assert engine.told in result.warning
    assert not result.exact


def test_an_engine_that_seeds_itself_at_random_is_found_out_as_a_stranger():
    hashes = BlockHasher(4, "xxhash", seed="nobody knows").hashes(array("I", range(8)))
    event = BlockStored(block_hashes=tuple(hashes), parent_hash=None, token_ids=tuple(range(8)), block_tokens=4)
    result = agreement([event], changed(DEFAULT, block_tokens=4))
    assert (result.agreed, result.engine) == (0, None)
    assert "PYTHONHASHSEED" in result.warning
    assert "dual-key" in result.warning


def test_another_block_size_is_warned_of_although_the_hashes_agree():
    result = agreement(events_of("vllm032_sha256_default"), changed(DEFAULT, block_tokens=16))
    assert (result.share, result.block_tokens, result.exact) == (1.0, 32, False)
    assert "--block-size 16" in result.warning


def test_an_adapter_whose_path_is_unknown_is_left_out_and_a_wrong_path_is_warned_of():
    events = events_of("vllm032_sha256_cbor_u64")
    assert agreement(events, CBOR).unverifiable == 3
    assert agreement(events, CBOR).exact
    wrong = agreement(events, CBOR, {"ad1": "elsewhere"})
    assert "path of an adapter" in wrong.warning
    # the first of its three blocks differs, and the others follow it
    assert wrong.blocks - wrong.agreed == 3


def test_blocks_whose_beginning_was_not_seen_cannot_be_verified():
    events = [event for event in events_of("vllm032_sha256_default") if isinstance(event, BlockStored)]
    orphans = [event for event in events if event.parent_hash is not None]
    result = agreement(orphans, DEFAULT)
    assert (result.blocks, result.share, result.warning) == (0, None, "")
    assert result.unverifiable > 0
    assert not result.exact


def test_events_without_tokens_or_of_sliding_windows_say_nothing():
    hashes = tuple(BlockHasher(4, "sha256").hashes(array("I", range(8))))
    tokens = tuple(range(8))
    events = [
        AllBlocksCleared(),
        BlockRemoved(block_hash=1),
        BlockStored(block_hashes=hashes, parent_hash=None, token_ids=(), block_tokens=0),
        BlockStored(block_hashes=hashes, parent_hash=None, token_ids=tokens, block_tokens=4, dense=False),
        BlockStored(block_hashes=hashes[:1], parent_hash=None, token_ids=tokens, block_tokens=4),
    ]
    assert agreement(events, DEFAULT).block_tokens is None


def test_copies_in_other_tiers_say_nothing_since_their_events_leave_out_salts_and_images():
    salted = BlockHasher(4, "sha256").hashes(array("I", range(4)), salt="s")
    event = BlockStored(
        block_hashes=tuple(salted), parent_hash=None, token_ids=tuple(range(4)), block_tokens=4, tier=Tier.CPU
    )
    assert agreement([event], DEFAULT).block_tokens is None


def test_images_salts_and_embeddings_are_tagged_again_before_they_are_hashed():
    tokens = array("I", range(8))
    hasher = BlockHasher(4, "sha256_cbor", "0")
    first = hasher.link(None, tokens[:4], (("mm", "img", 1), ("cache_salt", "s"), ("prompt_embeds", b"\x01")))
    second = hasher.link(first, tokens[4:], (("mm", "img", -3),))
    bare = ([["img", 1], "s", b"\x01"], [["img", -3]])
    event = BlockStored(
        block_hashes=(first & MASK64, second & MASK64),
        parent_hash=None,
        token_ids=tuple(tokens),
        block_tokens=4,
        extras=tuple(map(msgspec.msgpack.encode, bare)),
    )
    assert agreement([event], changed(CBOR, block_tokens=4)).exact
    odd = msgspec.structs.replace(event, extras=(b"\xc1", b""))
    assert agreement([odd], changed(CBOR, block_tokens=4)).unverifiable == 2


def test_events_of_the_simulated_engine_agree_as_it_makes_them():
    hasher = BlockHasher(4, "fast")
    tokens = array("I", range(8))
    hashes = tuple(hasher.hashes(tokens, salt="s", lora=("a", "/a")))
    event = BlockStored(
        block_hashes=hashes, parent_hash=None, token_ids=tuple(tokens), block_tokens=4, lora="a", salt="s"
    )
    settings = HashSettings(algorithm="fast", seed=DEFAULT_SEED, block_tokens=4)
    assert agreement([event], settings, {"a": "/a"}).exact
