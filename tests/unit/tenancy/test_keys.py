"""API keys: found by their hash, and by nothing else."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.tenancy.keys import KeyRing, hash_of, key_of
from beaconry.values.errors import OperatorError


def ring(**keys):
    return KeyRing(
        {name: [hash_of(key) for key in held] for name, held in keys.items()}, {n: n for n in keys}, "t.yaml"
    )


def test_a_key_is_256_bits_of_chance_behind_a_prefix():
    assert key_of(bytes(range(32))) == "bk-" + bytes(range(32)).hex()
    with pytest.raises(ValueError, match="32 bytes"):
        key_of(b"short")


def test_a_hash_is_what_sha256sum_prints():
    assert hash_of("a key") == "sha256:" + hashlib.sha256(b"a key").hexdigest()


def test_several_keys_may_have_one_owner():
    keys = ring(acme=["old", "new"], other=["theirs"])
    assert [keys.owner(key) for key in (b"old", b"new", b"theirs")] == ["acme", "acme", "other"]


@given(st.binary(max_size=80))
def test_no_other_bytes_are_a_key(key: bytes):
    assert ring(acme=["the key"]).owner(key) == ("acme" if key == b"the key" else None)


def test_a_hash_that_shares_only_its_first_half_is_another_key():
    digest = hashlib.sha256(b"key").digest()
    near = "sha256:" + (digest[:31] + bytes([digest[31] ^ 1])).hex()
    assert KeyRing({"acme": [near]}, {"acme": "acme"}, "t.yaml").owner(b"key") is None


@pytest.mark.parametrize("keys", [{"a": ["k", "k"]}, {"a": ["k"], "b": ["k"]}])
def test_a_key_that_stands_twice_is_refused_with_both_places(keys):
    with pytest.raises(OperatorError, match=r"t\.yaml: tenants\.\w\.keys: sha256:\w{7}\.\.\. stands under a already"):
        ring(**keys)
