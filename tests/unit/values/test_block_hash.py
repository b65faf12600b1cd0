"""Block hashes: equal to those that vLLM 0.32 announced (recorded), chained, and told apart by LoRA and salt."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.values.block_hash import ALGORITHMS, BlockHasher, canonical_cbor
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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
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
