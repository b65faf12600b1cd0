"""The clock of virtual time: what happens when, in a total order. Equal times happen in the order in which they were entered."""

import heapq
from collections.abc import Callable
from typing import Any

NEVER = float("inf")


class EventHeap:
    """Functions to be called at their times. `now_s` is the time of the last one called, and never runs backwards."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._entries: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._entered = 0
        """Entries ever made: the number breaks ties."""

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, at_s: float, happen: Callable[..., None], *args: Any) -> None:
        """Call `happen(*args)` at `at_s`, or now if that is past."""
        self._entered += 1
        heapq.heappush(self._entries, (at_s, self._entered, happen, args))

    @property
    def next_s(self) -> float:
        """When the next one is due; NEVER if there is none."""
        return self._entries[0][0] if self._entries else NEVER

    @property
    def happened(self) -> int:
        """How many have been called."""
        return self._entered - len(self._entries)

    def advance(self, to_s: float) -> None:
        """Move the clock without calling anything: nothing may be due before."""
        self.now_s = max(self.now_s, to_s)

    def step(self) -> None:
        """Call the next one."""
        at_s, _, happen, args = heapq.heappop(self._entries)
        self.now_s = max(self.now_s, at_s)
        happen(*args)
