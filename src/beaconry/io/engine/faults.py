"""Faults on request: what a test wants a simulated engine to do wrong.

Two ways in, one JSON object: the request header `x-beaconry-fault` for that request alone, or `POST /fault` for the engine;
`DELETE /fault` ends the latter. Fields and defaults are `Fault`'s.

    {"kind": "error", "status": 500, "for_s": 10}   answer generation requests with this status
    {"kind": "slow", "delay_s": 2}                  hold generation requests back before they reach the engine
    {"kind": "reset", "after_tokens": 3}            drop the connection after so many tokens (0: at once)
    {"kind": "hang"}                                by header: never answer; by /fault: the whole engine stands still
    {"kind": "crash", "after_tokens": 3}            end the process after so many tokens (0: at once)

Without `for_s` a fault of the engine lasts until it is deleted or replaced.
"""

from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Struct

from beaconry.values.errors import CallerError

FAULT_HEADER: Final = b"x-beaconry-fault"


class Kind(StrEnum):
    """What goes wrong."""

    ERROR = "error"
    SLOW = "slow"
    RESET = "reset"
    HANG = "hang"
    CRASH = "crash"


class Fault(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault, as asked for."""

    kind: Kind
    status: int = 500
    delay_s: float = 1.0
    after_tokens: int = 0
    for_s: float | None = None


class EngineFault:
    """The fault of the whole engine, if there is one.

    Attributes:
        fault: the one set last; None if there is none.

    `_until_s` is when it ends, never before it was set.

    """

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self._until_s = 0.0

    def set(self, fault: Fault | None, now_s: float) -> None:
        """Replace the fault."""
        self.fault = fault
        self._until_s = now_s + fault.for_s if fault is not None and fault.for_s is not None else float("inf")

    def at(self, now_s: float) -> Fault | None:
        """Return the fault that holds now."""
        if self.fault is not None and now_s >= self._until_s:
            self.fault = None
        return self.fault


def parse_fault(data: bytes) -> Fault:
    """Return the fault of a header or body. CallerError if it is none."""
    try:
        return msgspec.json.decode(data, type=Fault)
    except msgspec.MsgspecError as error:
        raise CallerError(f"not a fault: {error}", param="fault") from None
