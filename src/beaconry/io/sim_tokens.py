"""Tokens of the simulated engine's models: its tokenizer is ours, so no file is needed."""

from array import array
from concurrent.futures import Executor

from beaconry.engine_model.tokenizer import encode
from beaconry.io.engine.requests import chat_text
from beaconry.io.local_tokens import LocalTokens
from beaconry.values.errors import CallerError
from beaconry.wire.piece_cache import PieceCache
from beaconry.wire.tokens import Chat, NoTokensError, Reason, Text

MARKER = "<|end|>"
"""The end of a turn. Each special token begins a run of its own, so texts may be cut at any of them."""


def sim_tokens(executor: Executor, *, cache_bytes: int = 134_217_728) -> LocalTokens:
    """The tokens that a simulated engine will see."""
    return LocalTokens(_prompt, encode, executor, PieceCache(MARKER, cache_bytes), (array("I"), array("I")))


def _prompt(ask: Text | Chat, body: bytes) -> str:
    if isinstance(ask, Text):
        return ask.text
    try:
        return chat_text(body)
    except CallerError as error:
        raise NoTokensError(Reason.INVALID, error.message) from None
