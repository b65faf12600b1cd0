"""Pieces of texts: joined they are the text, and the cache keeps its bound and its count."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from beaconry.values.errors import InternalError
from beaconry.wire.piece_cache import ENTRY_BYTES, PieceCache


@given(st.text(alphabet="ab<>|", max_size=40), st.sampled_from(["<|>", "a", "aa", "<", None]))
def test_pieces_joined_are_the_text_and_all_but_the_first_begin_with_the_marker(text, marker):
    pieces = PieceCache(marker, 1000).cut(text)
    assert "".join(pieces) == text
    assert pieces
    if marker is not None:
        assert all(piece.startswith(marker) for piece in pieces[1:])
        assert all(piece.count(marker, 1) == 0 or marker == "aa" for piece in pieces)


def test_a_piece_too_large_for_the_cache_is_not_kept():
    cache = PieceCache(None, 4000)
    key, _ = cache.get("x")
    cache.put(key, array("I", range(1000)))
    assert cache.get("x") == (key, None)
    assert cache.statistics().pieces == 0


def test_half_a_character_is_a_text_too():
    cache = PieceCache(None, 4000)
    key, tokens = cache.get("\ud800")
    assert tokens is None
    cache.put(key, array("I", [1]))
    assert cache.get("\ud800")[1] == array("I", [1])


class LeastRecentlyUsed(RuleBasedStateMachine):
    """Against a list of pieces in the order of their use."""

    ROOM = 4

    def __init__(self):
        super().__init__()
        self.cache = PieceCache(None, self.ROOM * (ENTRY_BYTES + 4))
        self.used = []

    @rule(piece=st.sampled_from("abcdefg"))
    def ask(self, piece):
        key, tokens = self.cache.get(piece)
        assert (tokens is not None) == (piece in self.used)
        if tokens is None:
            self.cache.put(key, array("I", [ord(piece)]))
            self.cache.put(key, array("I", [ord(piece)]))
        else:
            assert tokens == array("I", [ord(piece)])
            self.used.remove(piece)
        self.used = [*self.used, piece][-self.ROOM :]

    @invariant()
    def counts(self):
        self.cache.check()
        assert self.cache.statistics().pieces == len(self.used)


LeastRecentlyUsed.TestCase.settings = LeastRecentlyUsed.TestCase.settings.__class__(stateful_step_count=30)
TestLeastRecentlyUsed = LeastRecentlyUsed.TestCase


def test_a_lost_byte_is_noticed():
    cache = PieceCache(None, 4000)
    cache.put(1, array("I", [1]))
    cache._bytes += 1
    with pytest.raises(InternalError, match="lost count"):
        cache.check()
