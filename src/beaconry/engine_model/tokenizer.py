"""A tokenizer for any text that needs no vocabulary file: a token's id says what it stands for.

    four ASCII characters           their four bytes as a little-endian number
    one to three ASCII characters   the same, the free top byte set to 0x80 + their count; only at the end of an ASCII run
    one other character             0x90000000 + code point
    a special token                 0xF0000000 + its index; written <|name|> in text, as with real tokenizers

Decoding the tokens of a text always gives the text. English has four characters a token, as with real vocabularies; the ids of
ASCII text, as bytes, are the text itself, which makes it fast. Each special token begins a new run, so a reply of any tokens that
`replies.py` makes is tokenized to the same tokens when it comes back in the next turn's prompt.
"""

import re
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from beaconry.values.errors import CallerError

SPECIAL_TOKENS: Final = ("endoftext", "end", "system", "developer", "user", "assistant", "tool", "function", "tools")
END_OF_TURN: Final = 0xF0000000 + SPECIAL_TOKENS.index("end")
"""What the model generates to end its reply; as text it is empty."""

_PIECES: Final = re.compile(
    rf"<\|({'|'.join(SPECIAL_TOKENS)})\|>|([\x00-\x7f]+?)(?=<\||[^\x00-\x7f]|\Z)|(.)", re.DOTALL
)
_SPECIAL_IDS: Final = {name: 0xF0000000 + index for index, name in enumerate(SPECIAL_TOKENS)}


def encode(text: str) -> "array[int]":
    """Return the token ids of a text, an array of type code "I"."""
    tokens = array("I")
    if text.isascii() and "<|" not in text:
        _encode_ascii(text, tokens)
        return tokens
    run = ""
    for special, ascii_run, other in _PIECES.findall(text):
        if ascii_run or (other and other.isascii()):
            run += ascii_run or other
            continue
        _encode_ascii(run, tokens)
        run = ""
        tokens.append(_SPECIAL_IDS[special] if special else 0x90000000 + ord(other))
    _encode_ascii(run, tokens)
    return tokens


def decode(tokens: Iterable[int]) -> str:
    """Return the text of these tokens, special ones written out. CallerError for a number that is no token."""
    return "".join(map(token_text, tokens))


def token_text(token: int) -> str:
    """Return the text of one token."""
    if 0 <= token < 0x80000000:
        return _ascii(token.to_bytes(4, "little"), token)
    top = token >> 24
    if 0x81 <= top <= 0x83:
        return _ascii(token.to_bytes(4, "little")[: top - 0x80], token)
    if 0x90000080 <= token <= 0x9010FFFF:
        return chr(token - 0x90000000)
    index = token - 0xF0000000
    if 0 <= index < len(SPECIAL_TOKENS):
        return f"<|{SPECIAL_TOKENS[index]}|>"
    raise CallerError(f"{token} is not a token of this model", param="tokens")


def render_chat(turns: Sequence[tuple[str, str]], *, tools: str = "", reply: bool = True) -> str:
    """Return the prompt for a conversation of (role, content) turns; with `reply` it asks for the assistant's next one.

    The prompt for a longer conversation starts with the prompt for its beginning followed by the reply and its end of turn, so
    the prefix cache holds all of it. CallerError for an unknown role.
    """
    parts = [f"<|tools|>{tools}<|end|>"] if tools else []
    for role, content in turns:
        if role not in SPECIAL_TOKENS[2:8]:
            raise CallerError(
                f"Unexpected message role {role!r}: use one of {', '.join(SPECIAL_TOKENS[2:8])}", param="messages"
            )
        parts.append(f"<|{role}|>{content}<|end|>")
    if reply:
        parts.append("<|assistant|>")
    return "".join(parts)


def _encode_ascii(run: str, tokens: "array[int]") -> None:
    data = run.encode("ascii")
    whole = len(data) & ~3
    start = len(tokens)
    tokens.frombytes(data[:whole])
    if sys.byteorder == "big":
        swapped = tokens[start:]
        swapped.byteswap()
        tokens[start:] = swapped
    if rest := data[whole:]:
        tokens.append((0x80 + len(rest)) << 24 | int.from_bytes(rest, "little"))


def _ascii(data: bytes, token: int) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise CallerError(f"{token} is not a token of this model", param="tokens") from None
