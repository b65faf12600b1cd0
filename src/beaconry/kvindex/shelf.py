"""A shelf: what one endpoint is believed to hold, in the order in which its engine would drop it.

Runs are shared by all endpoints; a hold is one endpoint's part of a run. Used by `approximate.py` only, which keeps runs and shelves
consistent with each other.
"""

from beaconry.values.errors import InternalError

LOOK_AHEAD = 16
"""Holds looked at from the old end of a shelf; what lies beyond is taken to be like them."""


class Run:
    """A stretch of blocks. `uses` counts the prompts sent through it; `children` the runs that continue it."""

    __slots__ = ("children", "hashes", "holds", "parent", "uses")

    def __init__(self, hashes: tuple[int, ...], parent: "Run | None") -> None:
        self.hashes = hashes
        self.parent = parent
        self.children = 0
        self.holds: dict[str, Hold] = {}
        self.uses = 0


class Hold:
    """The first `known` blocks of `run` on one shelf: `blocks` of them live, `resident` of those known to have been computed.

    `pins`: prompts in flight that go through the run. `tick`: last use, sending included; `seen` <= `tick`: last use that the engine
    has confirmed.
    """

    __slots__ = ("blocks", "known", "newer", "older", "pins", "resident", "run", "seen", "tick")

    def __init__(self, run: Run | None) -> None:
        self.run = run
        self.blocks = 0
        self.known = 0
        self.pins = 0
        self.resident = 0
        self.seen = 0
        self.tick = 0
        self.older = self
        self.newer = self


class Shelf:
    """One endpoint's holds as a ring around `end`: `end.newer` is the oldest, `end.older` the last one used.

    `oldest_live`: the oldest hold with live blocks, or `end`; everything newer is wholly live, everything older not at all.
    `blocks`, `known`: sums over the holds; `pinned`: the sum of `known` over those with pins.
    """

    __slots__ = (
        "blocks",
        "capacity",
        "end",
        "known",
        "learnt",
        "life",
        "name",
        "oldest_live",
        "pinned",
        "reported",
        "tick",
    )

    def __init__(self, name: str, life: int) -> None:
        self.name = name
        self.life = life
        self.end = self.oldest_live = Hold(None)
        self.blocks = 0
        self.known = 0
        self.pinned = 0
        self.capacity = float("inf")
        self.learnt = False  # a report has shown a limit
        self.reported = 0.0  # what the engine's metrics said last
        self.tick = 0

    def near_end(self, hold: Hold) -> bool:
        """Whether the shelf is full and `hold` among the live ones to be dropped next, up to a tenth of the capacity."""
        if self.blocks < 0.9 * self.capacity:
            return False
        left, candidate = 0.1 * self.capacity, self.oldest_live
        for _ in range(LOOK_AHEAD):
            if candidate is hold:
                return candidate.run is not None
            left -= candidate.blocks
            if left < 0:
                return False
            candidate = candidate.newer
        return False

    def use(self, hold: Hold, size: int) -> None:
        """Make `hold` the most recently used one, live over `size` blocks. It may be new."""
        if hold is self.oldest_live:
            self.oldest_live = hold.newer
        hold.older.newer, hold.newer.older = hold.newer, hold.older
        self.blocks += size - hold.blocks
        self.known += size - hold.known
        if hold.pins:
            self.pinned += size - hold.known
        hold.blocks = hold.known = size
        hold.tick = self.tick
        self.link(hold, self.end.older)
        if self.oldest_live is self.end:
            self.oldest_live = hold

    def link(self, hold: Hold, older: Hold) -> None:
        """Place `hold` directly on the more recent side of `older`."""
        hold.older = older
        hold.newer = older.newer
        older.newer.older = hold
        older.newer = hold

    def fade(self, excess: int) -> int:
        """Turn up to `excess` of the oldest live blocks into known ones; returns how many."""
        hold = self.oldest_live
        blocks = min(hold.blocks, excess)
        self.blocks -= blocks
        hold.blocks -= blocks
        hold.resident = min(hold.resident, hold.blocks)
        if not hold.blocks:
            self.oldest_live = hold.newer
        return blocks

    def check(self) -> int:
        """Raise InternalError if an invariant does not hold; returns the number of holds."""
        holds, blocks, known, pinned, hold, live = 0, 0, 0, 0, self.end.newer, False
        while (run := hold.run) is not None:
            holds, blocks, known = holds + 1, blocks + hold.blocks, known + hold.known
            pinned += hold.known if hold.pins else 0
            require(run.holds.get(self.name) is hold, "a hold is on a shelf but not on its run")
            require(0 < hold.known <= len(run.hashes), "a hold's length is wrong")
            require(0 <= hold.resident <= hold.blocks <= hold.known, "a hold's parts are wrong")
            require(hold.newer.run is None or hold.newer.tick >= hold.tick, "a shelf is out of order")
            require(not live or hold.blocks == hold.known, "a newer hold is less live")
            require((hold.blocks > 0) == (live or hold is self.oldest_live), "the oldest live hold is another one")
            live = hold.blocks > 0
            if run.parent is not None:
                above = run.parent.holds.get(self.name)
                require(above is not None and above.known == len(run.parent.hashes), "an ancestor is missing")
                require(above is not None and above.tick >= hold.tick, "an ancestor was used before its child")
            hold = hold.newer
        require((blocks, known, pinned) == (self.blocks, self.known, self.pinned), "a shelf's blocks do not add up")
        return holds


def require(holds: bool, what: str) -> None:
    """Raise InternalError unless it holds."""
    if not holds:
        raise InternalError(f"prefix index: {what}")
