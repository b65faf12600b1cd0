"""What a simulated model answers: pseudo-text that depends on prompt and seed only, and where it stops by itself.

A token is a word of three letters and a blank, so each is valid UTF-8 by itself and the text of k tokens is a prefix of the text
of k + 1. Lengths are log-normal with about the median and mean of a public chat trace (Azure 2023 conversations: 129, 211).
The whole reply is known before its first token, so a step costs nothing for what is said in it.
"""

from array import array
from math import exp
from random import Random
from typing import Final

import xxhash
from msgspec import Struct

from beaconry.engine_model.tokenizer import END_OF_TURN, encode

MEDIAN_TOKENS: Final = 130.0
SPREAD: Final = 0.95
"""Standard deviation of the logarithm of the length."""
WORD_CHARS: Final = 4

_CONSONANTS: Final = "bdfghklmnprstvwz"
_WORDS: Final = tuple(f"{first}{vowel}{last} " for first in _CONSONANTS for vowel in "aeio" for last in "lnrt")


class Limits(Struct, frozen=True, kw_only=True):
    """Where a reply must end, or must not."""

    max_tokens: int
    """At least 1."""
    min_tokens: int = 0
    ignore_eos: bool = False
    stops: tuple[str, ...] = ()
    """Non-empty strings; the one that is complete first ends the reply."""
    keep_stop: bool = False
    """The stop string belongs to what is shown."""


class Reply(Struct, frozen=True, kw_only=True):
    """One reply, whole."""

    words: str
    """The text of all tokens but the end of turn; `words[: WORD_CHARS * k]` after k of them."""
    shown: int
    """How many characters of it the client gets: a stop string is cut off."""
    tokens: int
    """Tokens generated, an end of turn included."""
    finish_reason: str
    """`stop` or `length`."""
    stop_reason: str | None = None
    """The stop string that ended it."""

    def token_ids(self) -> "array[int]":
        """Return the ids of all tokens."""
        ids = encode(self.words)
        if len(ids) < self.tokens:
            ids.append(END_OF_TURN)
        return ids


def make_reply(key: int, limits: Limits) -> Reply:
    """Return the reply of a model to `key`, which stands for prompt, seed and choice."""
    tokens, reason = limits.max_tokens, "length"
    if not limits.ignore_eos:
        natural = round(MEDIAN_TOKENS * exp(SPREAD * Random(key).gauss(0.0, 1.0)))
        natural = max(2, limits.min_tokens + 1, natural)
        if natural <= tokens:
            tokens, reason = natural, "stop"
    text = make_words(key, tokens - (reason == "stop"))
    found = _first_stop(text, limits)
    if found is None:
        return Reply(words=text, shown=len(text), tokens=tokens, finish_reason=reason)
    end, stop = found
    tokens = -(-end // WORD_CHARS)
    return Reply(
        words=text[: WORD_CHARS * tokens],
        shown=end if limits.keep_stop else end - len(stop),
        tokens=tokens,
        finish_reason="stop",
        stop_reason=stop,
    )


def make_words(key: int, count: int) -> str:
    """Return the first `count` words that a model says to `key`."""
    key &= 0xFFFFFFFFFFFFFFFF
    digests = (xxhash.xxh3_128_digest(index.to_bytes(8, "little"), key) for index in range(-(-count // 16)))
    return "".join([_WORDS[byte] for digest in digests for byte in digest][:count])


def _first_stop(text: str, limits: Limits) -> tuple[int, str] | None:
    """Return the end of the stop string that is complete first, and that string; before `min_tokens` none counts."""
    found = []
    for stop in limits.stops:
        start = text.find(stop, max(0, WORD_CHARS * limits.min_tokens - len(stop) + 1))
        if start >= 0:
            found.append((start + len(stop), stop))
    return min(found, default=None)
