"""Block hashes: equal to those that vLLM 0.32 announced (recorded), chained, and told apart by LoRA and salt."""

import hashlib
from array import array

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from beaconry.values.block_hash import (
    ALGORITHMS,
    DEFAULT_SEED,
    BlockHasher,
    Extras,
    MediaItem,
    canonical_cbor,
    engine_seed,
    media_tags,
)
from beaconry.values.errors import OperatorError

LOW_64_BITS = (1 << 64) - 1
RECORDED_TOKENS = array("I", range(4, 4 + 7 * 100, 7))
"""The prompt of the recordings: 100 tokens, blocks of 32."""


def low_64_bits(hashes):
    return [value & LOW_64_BITS for value in hashes]


def test_sha256_cbor_hashes_are_those_vllm_announced():
    hasher = BlockHasher(32, "sha256_cbor", seed="0")
    recorded = [17713770042514277482, 15649678369106681170, 2125043128106733098]
    assert low_64_bits(hasher.hashes(RECORDED_TOKENS)) == recorded
    salted = [13762981939400301032, 14665587613367957063, 2515247622917321834]
    assert low_64_bits(hasher.hashes(RECORDED_TOKENS, salt="salt-a")) == salted
    with_lora = [9678224206477687232, 1861323579777411887, 7734630467631938425]
    assert low_64_bits(hasher.hashes(RECORDED_TOKENS, lora=("ad1", "tiny-lora"))) == with_lora


def test_default_sha256_hashes_are_those_vllm_announced():
    hasher = BlockHasher(32, "sha256")
    assert low_64_bits(hasher.hashes(RECORDED_TOKENS)) == [995114372539195884, 2422810939045071523, 6553777510857010255]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equal_prefixes_have_equal_hashes_and_a_change_changes_all_that_follow(algorithm):
    hasher = BlockHasher(4, algorithm)
    tokens = array("I", range(20))
    other = array("I", range(20))
    other[9] += 1
    hashes, others = hasher.hashes(tokens), hasher.hashes(other)
    assert len(hashes) == 5
    assert hashes[:2] == others[:2]
    assert not set(hashes[2:]) & set(others[2:])


SEEDED = [algorithm for algorithm in ALGORITHMS if algorithm != "sglang"]
"""SGLang's hashes know neither seed nor extras."""


@pytest.mark.parametrize("algorithm", SEEDED)
def test_lora_salt_and_seed_tell_prompts_apart(algorithm):
    tokens = array("I", range(8))
    plain = BlockHasher(4, algorithm)
    variants = [
        plain.hashes(tokens),
        plain.hashes(tokens, salt="a"),
        plain.hashes(tokens, salt="b"),
        plain.hashes(tokens, lora=("x", "/x")),
        BlockHasher(4, algorithm, seed="1").hashes(tokens),
    ]
    assert len({value for hashes in variants for value in hashes}) == 10


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(0, 40))
def test_hashes_can_be_extended_as_tokens_come(numbers, cut):
    tokens = array("I", numbers)
    hasher = BlockHasher(4)
    grown = hasher.hashes(tokens[:cut])
    hasher.extend(grown, tokens)
    assert grown == hasher.hashes(tokens)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (None, "f6"),
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (1000, "1903e8"),
        (1_000_000, "1a000f4240"),
        (1_000_000_000_000, "1b000000e8d4a51000"),
        (-1, "20"),
        (-1000, "3903e7"),
        (b"\x01\x02", "420102"),
        ("IETF", "6449455446"),
        ((1, (2, 3)), "82018202 03"),
    ],
)
def test_cbor_follows_the_examples_of_rfc_8949(value, encoded):
    assert canonical_cbor(value) == bytes.fromhex(encoded)


def test_cbor_refuses_what_it_does_not_know():
    with pytest.raises(TypeError):
        canonical_cbor(1.5)
    with pytest.raises(OverflowError):
        canonical_cbor(1 << 64)


def test_an_unknown_algorithm_is_refused_by_name():
    with pytest.raises(OperatorError, match="md5"):
        BlockHasher(16, "md5")


def test_xxhash_cbor_hashes_are_those_of_the_formula_checked_against_vllm():
    hasher = BlockHasher(32, "xxhash_cbor", seed="0")
    recorded = [4681588232131305039, 15749286130504731089, 8278323581252131049]
    assert low_64_bits(hasher.hashes(RECORDED_TOKENS)) == recorded
    assert hasher.hashes(RECORDED_TOKENS)[0] < 1 << 128


def test_sglang_hashes_are_those_sglang_announced():
    hashes = BlockHasher(32, "sglang").hashes(RECORDED_TOKENS)
    assert low_64_bits(hashes) == [8212246562076550692, 10345565191317619977, 6744516286651483565]
    fork = array("I", [*RECORDED_TOKENS[:64], *[9] * 64])
    assert low_64_bits(BlockHasher(32, "sglang").hashes(fork))[2:] == [15311322166401625168, 15887527223973917500]


@given(
    st.sampled_from(["sha256_cbor", "xxhash_cbor"]),
    st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    st.none() | st.tuples(st.tuples(st.just("cache_salt"), st.text(max_size=5))),
)
def test_the_fast_way_to_cbor_gives_the_same_bytes_as_the_plain_one(algorithm, numbers, extra):
    hasher = BlockHasher(4, algorithm)
    parent = hasher.link(None, array("I", [1, 2, 3, 4]))
    width = 32 if algorithm == "sha256_cbor" else 16
    written = canonical_cbor((parent.to_bytes(width, "big"), tuple(numbers), extra))
    digest = hashlib.sha256(written).digest() if width == 32 else xxhash.xxh3_128_digest(written)
    assert hasher.link(parent, array("I", numbers), extra) == int.from_bytes(digest, "big")


def test_python_hash_seed_is_the_seed_as_text_and_without_it_xxhash_cannot_be_reproduced():
    assert engine_seed("sha256", None) == engine_seed("sha256_cbor", None) == DEFAULT_SEED
    assert engine_seed("xxhash", "0") == "0"
    with pytest.raises(OperatorError, match="set the same PYTHONHASHSEED"):
        engine_seed("xxhash_cbor", None)


def test_an_image_enters_the_hash_of_each_block_it_reaches_into():
    image = MediaItem(identifier="abc", offset=6, length=5)
    assert [media_tags([image], start, 4) for start in (0, 4, 8, 12)] == [
        (),
        (("mm", "abc", 2),),
        (("mm", "abc", -2),),
        (),
    ]
    tokens = array("I", range(16))
    hasher = BlockHasher(4, "sha256_cbor")
    plain = hasher.hashes(tokens)
    shown = hasher.hashes(tokens, items=[image])
    other = hasher.hashes(tokens, items=[MediaItem(identifier="abd", offset=6, length=5)])
    assert shown[0] == plain[0] == other[0]
    assert len({*plain[1:], *shown[1:], *other[1:]}) == 9
    tagged = hasher.link(plain[0], tokens[4:8], (("mm", "abc", 2),))
    assert shown[1] == tagged


def test_two_images_in_one_block_are_tagged_in_order_before_the_salt():
    items = (MediaItem(identifier="a", offset=0, length=1), MediaItem(identifier="b", offset=2, length=1))
    hasher = BlockHasher(4, "sha256_cbor")
    tokens = array("I", range(4))
    tags = (("lora", "n", "/p"), ("mm", "a", 0), ("mm", "b", 2), ("cache_salt", "s"))
    assert hasher.hashes(tokens, lora=("n", "/p"), salt="s", items=items) == [hasher.link(None, tokens, tags)]


def test_doubtful_keys_are_said_to_be_so():
    twice = Extras(lora=("same", "same"))
    assert "twice" in BlockHasher(4, "sha256").doubt(twice)
    assert "twice" in BlockHasher(4, "xxhash").doubt(
        Extras(salt="x", items=(MediaItem(identifier="x", offset=0, length=1),))
    )
    assert BlockHasher(4, "sha256").doubt(Extras(lora=("a", "/a"), salt="s")) is None
    assert BlockHasher(4, "sha256_cbor").doubt(twice) is None
    assert "SGLang" in BlockHasher(4, "sglang").doubt(Extras(salt="s"))


def test_a_block_has_at_least_one_token():
    with pytest.raises(OperatorError, match="at least one"):
        BlockHasher(0, "fast")
