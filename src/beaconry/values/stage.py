"""Which part of a request a leg computes."""

from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """A request runs as one leg, or as a prefill leg and then a decode leg that fetches the prompt's KV from where the first one ran."""

    WHOLE = "whole"
    PREFILL = "prefill"
    """The prompt only. The engine keeps its KV for a decode leg to fetch; the client sees nothing of the answer."""
    DECODE = "decode"
    """The answer, from a prompt computed elsewhere."""

    __hash__ = str.__hash__  # an enum's own is a Python function


WHOLE: Final = Stage.WHOLE
PREFILL: Final = Stage.PREFILL
DECODE: Final = Stage.DECODE
"""For what asks several times per request: until Python 3.12 to look a member up in its enum costs as much as a few function calls."""
