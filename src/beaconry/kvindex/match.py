"""Who holds how much of one prompt, asked endpoint by endpoint, so that a request in a large fleet costs what it asks for.

The runs that make up a prompt form a path from the root. Whoever holds a block of a run holds all of the run's ancestors, so the holders
of the deepest run hold most, and each run's holders are among those of the run above.
"""

from itertools import islice
from random import Random

from msgspec import Struct

from beaconry.kvindex.shelf import Run

Step = tuple[Run, int, int]
"""A run on a prompt's path, the block of the prompt at which it begins, and how many blocks they share."""


class Match(Struct, frozen=True, gc=False):
    """What one endpoint holds of a prompt, in blocks from its start."""

    blocks: int
    """Believed to be there; those being computed for other requests included."""
    known: int
    """Those and the following ones that were there before."""
    sharers: int = 0
    """Requests in flight there whose prompts share all known blocks, up to the last branch."""


NO_MATCH = Match(0, 0)
"""Nothing of the prompt."""


class Whereabouts:
    """A prompt's path through the tree of runs. Void after the next change of the index."""

    __slots__ = ("_steps",)

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps

    def of(self, name: str) -> Match:
        """What one endpoint holds."""
        known = sharers = 0
        live: int | None = None  # where its live part ends, once it has ended
        for run, position, common in self._steps:
            hold = run.holds.get(name)
            if hold is None:
                break
            if live is None and hold.blocks < common:
                live = position + hold.blocks
            known, sharers = position + min(hold.known, common), hold.pins
            if hold.known < common:
                break
        return Match(known if live is None else live, known, sharers) if known else NO_MATCH

    def everywhere(self) -> dict[str, Match]:
        """What each endpoint holds; those with nothing are absent."""
        return {name: self.of(name) for name in self._steps[0][0].holds} if self._steps else {}

    def holders(self, most: int, rng: Random) -> list[str]:
        """Up to `most` endpoints that hold something, those with the deepest runs first; a part of many equal ones is drawn."""
        names: dict[str, None] = {}
        for run, _, _ in reversed(self._steps):
            room = most - len(names)
            if room <= 0:
                break
            spare = len(run.holds) - most
            start = rng.randrange(spare + 1) if spare > 0 else 0
            names.update(dict.fromkeys(islice(run.holds, start, start + most)))
        return list(names)[:most]
