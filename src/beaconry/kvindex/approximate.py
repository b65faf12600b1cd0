"""Which endpoint holds which prompt prefix, as far as our own routing and the engines' reported cached tokens tell.

The one idea: prompts form a tree of *runs* (stretches of blocks within which no prompt has branched yet), and every endpoint has
a *shelf*: the runs it is believed to hold, in the order in which its engine would drop them (least recently used first, the end
of a prompt before its beginning, as vLLM frees them). Hashes are chained, so two stretches are equal if their last hashes are:
a lookup costs a few steps per branch of the prompt, not per block.

A shelf has a live part, as long as the engine's cache is believed to be, and a tail of what it held before. The tail is not believed
to be cached; it says where a prompt comes home to, so that each endpoint keeps its own share of the prompts even when they do not
all fit.

The capacity is learnt, not configured. An engine that reports fewer cached tokens than were believed resident has dropped
that run, and so everything that it used less recently: the shelf shrinks to what is left. Hits near a full shelf's end, and once it
has shrunk every drop on belief alone, let it grow again. A restarted engine, which holds nothing, halves its shelf with each report.

Two orders matter. Requests that wait in an engine's queue do not keep their blocks there, but will bring them back: so being
sent counts as a use for the shelf's order, and only a leg's end, when the engine surely had the blocks, counts as evidence.

What is believed is a lower bound for conversations: an engine caches its replies too, which the router never sees.

Invariants, verified by `check()`: a hold is never empty nor longer than its run; whoever holds a block of a run holds all of the
run's ancestors; a shelf's `blocks` is the sum of its holds; along a prompt, ticks never rise.
"""

from collections.abc import Sequence
from math import ceil

from msgspec import Struct

from beaconry.kvindex.match import Match, Step, Whereabouts
from beaconry.kvindex.shelf import LOOK_AHEAD, Hold, Run, Shelf, require

_BLOCK_BYTES = 48
"""A hash in a run: the integer and its place in a tuple."""
_RUN_BYTES = 420
_HOLD_BYTES = 190
_REUSE_CLASSES = 6
"""Runs are classed by how often they were used: 1, 2, 3-4, 5-8, 9-16, more."""
_REUSE_MEMORY = 1000.0
"""Observations per class after which old ones count half."""
_PROBE = 0.02
"""Share of the blocks dropped on belief alone by which a shelf grows: belief errs towards too much, which reports correct."""
_TOLERANCE = 0.05
"""Share of a prompt that a report may fall short without meaning anything: token counts are estimates."""
_SPARE = 1 / 4096
"""Share of the limit that is freed at once when it is reached."""
_SLICE = 1 / 64
"""Share of the fullest shelf that goes before the fullest one is looked for again."""
_KNOWN = 3.0
"""Length of a shelf with its tail, in capacities: working sets further beyond the cache gain little from affinity."""


class Placement(Struct, frozen=True, gc=False):
    """A prompt sent to an endpoint: hand it back when the leg is over."""

    endpoint: str
    prefix: tuple[int, ...]
    resident: int
    """Blocks believed to be computed there at that time: what the engine should report as cached."""
    seen: int
    """When those were last surely there, on the shelf's count of uses."""
    near_end: bool
    """They were among the next to be dropped, so finding them says that the shelf is not too long."""
    life: int
    """Which life of the endpoint it belongs to: news from before a restart are void."""


class IndexStatistics(Struct, frozen=True, kw_only=True, gc=False):
    """A snapshot of the index for metrics and tests."""

    runs: int
    bytes: int
    blocks: dict[str, int]
    """Believed blocks per endpoint."""
    capacity: dict[str, float]
    """Learnt capacity per endpoint in blocks; infinite until the engine has shown a limit."""
    confirmed: int
    """Reports that agreed with the belief."""
    missed: int
    """Reports of fewer cached blocks than believed."""


class ApproximateIndex:
    """Runs, shelves and what was learnt of reuse. Sizes are in blocks of the request side; `limit_bytes` bounds the memory."""

    def __init__(self, limit_bytes: int = 256 << 20) -> None:
        self._limit = limit_bytes
        self._starts: dict[int, Run] = {}  # first hash of a run -> run: hashes are chained, so this is the whole tree
        self._shelves: dict[str, Shelf] = {}
        self._bytes = 0  # estimate of what runs and holds occupy
        self._reused = [1.0] * _REUSE_CLASSES  # runs of each class that were used once more
        self._dropped = [1.0] * _REUSE_CLASSES  # runs of each class that were dropped by their last holder
        self._confirmed = 0
        self._missed = 0
        self._lives = 0  # shelves ever made

    def find(self, prefix: tuple[int, ...]) -> Whereabouts:
        """Who holds how much of `prefix`: one walk down the tree, and then a question per endpoint. Void after the next change."""
        steps: list[Step] = []
        position, length = 0, len(prefix)
        parent: Run | None = None
        while position < length:
            run = self._starts.get(prefix[position])
            if run is None or run.parent is not parent:
                break
            common = _common(run.hashes, prefix, position)
            steps.append((run, position, common))
            if common < len(run.hashes):
                break
            parent = run
            position += common
        return Whereabouts(steps)

    def match(self, prefix: tuple[int, ...]) -> dict[str, Match]:
        """What each endpoint holds of `prefix`; endpoints that have never seen any of it are absent."""
        return self.find(prefix).everywhere()

    def displaced(self, name: str, new_blocks: int) -> float:
        """Blocks expected to be computed again because `new_blocks` more on this endpoint make it drop others.

        Of what would be dropped first, each run counts by the chance that a run used as often is used again, unless another
        endpoint holds it too."""
        shelf = self._shelves.get(name)
        if shelf is None:
            return 0.0
        over = min(shelf.blocks + new_blocks - shelf.capacity, shelf.blocks)
        if over <= 0:
            return 0.0
        hold, seen, lost = shelf.oldest_live, 0.0, 0.0
        for _ in range(LOOK_AHEAD):
            run = hold.run
            if run is None or seen >= over:
                break
            blocks = min(hold.blocks, over - seen)
            seen += blocks
            if len(run.holds) == 1:
                lost += blocks * self._reuse(run)
            hold = hold.newer
        return lost * over / seen if seen else 0.0

    def routed(self, name: str, prefix: tuple[int, ...]) -> Placement:
        """A leg with this prompt was sent: from now on its blocks count as being there."""
        shelf = self._shelf(name)
        path = self._path(prefix)
        resident, last = 0, shelf.end
        for run in path:
            hold = run.holds.get(name)
            if hold is None or not hold.resident:
                break
            resident, last = resident + hold.resident, hold
            if hold.resident < len(run.hashes):
                break
        placement = Placement(name, prefix, resident, last.seen, shelf.near_end(last), shelf.life)
        for run in path:
            if run.uses:
                self._count(self._reused, run)
            run.uses += 1
        self._touch(shelf, path, confirmed=False)
        for run in path:
            if (pinned := run.holds.get(name)) is not None:
                if not pinned.pins:
                    shelf.pinned += pinned.known
                pinned.pins += 1
        self._keep_within_limit()
        return placement

    def confirmed(self, placement: Placement, cached: float | None) -> None:
        """The leg ended well, and the engine reports that it found `cached` blocks of its prompt.

        None if the engine does not report it; then the blocks count as computed and nothing is learnt.
        """
        shelf = self._shelves.get(placement.endpoint)
        if shelf is None or shelf.life != placement.life:
            return
        path = self._path(placement.prefix)
        self._unpin(shelf, path)
        if cached is not None and placement.resident:
            if cached + 1 + _TOLERANCE * placement.resident < placement.resident:
                self._missed += 1
                self._shrink(shelf, placement.seen)
            else:
                self._confirmed += 1
                if placement.near_end:
                    shelf.capacity *= 1 + _PROBE
        self._touch(shelf, self._path(placement.prefix), confirmed=True)
        self._keep_within_limit()

    def abandoned(self, placement: Placement, kept: int = 0) -> None:
        """The leg did not get as far as its first token: what only it would have put there is not there, but for the first `kept` blocks,
        which are believed to be and will come to be known by the next leg that uses them."""
        shelf = self._shelves.get(placement.endpoint)
        if shelf is None or shelf.life != placement.life:
            return
        self._path(placement.prefix[:kept])  # so that a run ends there
        path = self._path(placement.prefix)
        self._unpin(shelf, path)
        left = sum(len(run.hashes) for run in path)
        for run in reversed(path):
            hold = run.holds.get(shelf.name)
            if hold is not None and left > kept and not run.children and hold.resident < hold.known:
                self._cut(shelf, hold, hold.known - hold.resident)
            elif not run.holds:
                self._remove(run)
            else:
                break  # the rest is shared with other prompts, or computed
            left -= len(run.hashes)

    def pinned(self, name: str) -> int:
        """Blocks of the prompts in flight at an endpoint, each counted once, however many of them share it."""
        shelf = self._shelves.get(name)
        return 0 if shelf is None else shelf.pinned

    def sized(self, name: str, blocks: float) -> None:
        """What the engine's metrics say of its capacity, in blocks of the request side: where learning begins.

        Said again it changes nothing. A clearly different figure rescales what was learnt: mostly the estimate of tokens per block has
        moved, and where the engine really has another memory now, reports will tell.
        """
        shelf = self._shelf(name)
        if abs(blocks - shelf.reported) <= _TOLERANCE * shelf.reported:
            return
        shelf.capacity = shelf.capacity * blocks / shelf.reported if shelf.learnt and shelf.reported else blocks
        shelf.reported = blocks
        self._fit(shelf)

    def forget(self, name: str) -> None:
        """The endpoint is gone or was restarted: it holds nothing, and its capacity is unknown."""
        shelf = self._shelves.pop(name, None)
        if shelf is not None:
            while (hold := shelf.end.newer) is not shelf.end:
                self._cut(shelf, hold, hold.known)

    def statistics(self) -> IndexStatistics:
        """Sizes and counters now."""
        return IndexStatistics(
            runs=len(self._starts),
            bytes=self._bytes,
            blocks={name: shelf.blocks for name, shelf in self._shelves.items()},
            capacity={name: shelf.capacity for name, shelf in self._shelves.items()},
            confirmed=self._confirmed,
            missed=self._missed,
        )

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold. O(everything)."""
        held = sum(shelf.check() for shelf in self._shelves.values())
        size = held * _HOLD_BYTES
        for first, run in self._starts.items():
            size += _RUN_BYTES + _BLOCK_BYTES * len(run.hashes)
            require(first == run.hashes[0] and bool(run.holds), "a run that nobody holds")
            require(
                run.children == sum(other.parent is run for other in self._starts.values()), "children do not add up"
            )
        require(size == self._bytes, "bytes do not add up")

    def _shelf(self, name: str) -> Shelf:
        shelf = self._shelves.get(name)
        if shelf is None:
            self._lives += 1
            shelf = self._shelves[name] = Shelf(name, self._lives)
        return shelf

    def _path(self, prefix: Sequence[int]) -> list[Run]:
        """The runs that make up `prefix` exactly, made or split where needed."""
        path: list[Run] = []
        position, parent = 0, None
        while position < len(prefix):
            run = self._starts.get(prefix[position])
            if run is None:
                run = self._add(tuple(prefix[position:]), parent)
            elif run.parent is not parent:
                break  # two different prefixes with the same hash: leave the rest out
            elif (common := _common(run.hashes, prefix, position)) < len(run.hashes):
                run = self._split(run, common)
            path.append(run)
            position += len(run.hashes)
            parent = run
        return path

    def _add(self, hashes: tuple[int, ...], parent: Run | None) -> Run:
        run = self._starts[hashes[0]] = Run(hashes, parent)
        if parent is not None:
            parent.children += 1
        self._bytes += _RUN_BYTES + _BLOCK_BYTES * len(hashes)
        return run

    def _split(self, lower: Run, at: int) -> Run:
        """Part `lower` before block `at`; returns the new upper run, which takes the first part of every hold."""
        upper = Run(lower.hashes[:at], lower.parent)
        upper.children, upper.uses = 1, lower.uses
        lower.hashes, lower.parent = lower.hashes[at:], upper
        self._starts[upper.hashes[0]] = upper
        self._starts[lower.hashes[0]] = lower
        self._bytes += _RUN_BYTES
        for name, hold in list(lower.holds.items()):
            if hold.known <= at:
                hold.run = upper
                upper.holds[name] = hold
                del lower.holds[name]
                continue
            first = upper.holds[name] = Hold(upper)
            first.blocks, first.known, first.resident = min(hold.blocks, at), at, min(hold.resident, at)
            first.tick, first.seen, first.pins = hold.tick, hold.seen, hold.pins
            hold.blocks, hold.known = max(hold.blocks - at, 0), hold.known - at
            hold.resident = max(hold.resident - at, 0)
            shelf = self._shelves[name]
            shelf.link(first, hold)
            if hold is shelf.oldest_live and not hold.blocks:
                shelf.oldest_live = first
            self._bytes += _HOLD_BYTES
        if not lower.holds:
            self._remove(lower)
        return upper

    def _unpin(self, shelf: Shelf, path: list[Run]) -> None:
        for run in path:
            hold = run.holds.get(shelf.name)
            if hold is not None and hold.pins:
                hold.pins -= 1
                if not hold.pins:
                    shelf.pinned -= hold.known

    def _touch(self, shelf: Shelf, path: list[Run], *, confirmed: bool) -> None:
        """Make `path` the most recently used on `shelf`, its beginning last, and fade what is beyond the capacity."""
        shelf.tick += 1
        for run in reversed(path):
            hold = run.holds.get(shelf.name)
            if hold is None:
                hold = run.holds[shelf.name] = Hold(run)
                self._bytes += _HOLD_BYTES
            shelf.use(hold, len(run.hashes))
            if confirmed:
                hold.resident, hold.seen = hold.blocks, shelf.tick
        self._fit(shelf)

    def _fit(self, shelf: Shelf) -> None:
        while shelf.blocks > shelf.capacity:
            faded = shelf.fade(ceil(shelf.blocks - shelf.capacity))
            if shelf.learnt:
                shelf.capacity += _PROBE * faded
        while shelf.known > _KNOWN * shelf.capacity:
            self._cut(shelf, shelf.end.newer, shelf.end.newer.known)

    def _shrink(self, shelf: Shelf, seen: int) -> None:
        """The engine has dropped something last used at `seen`, so all older things too; at most half is believed at once."""
        floor = shelf.blocks / 2
        while shelf.oldest_live.run is not None and shelf.oldest_live.tick <= seen and shelf.blocks > floor:
            shelf.fade(ceil(shelf.blocks - floor))
        shelf.capacity = min(shelf.capacity, max(shelf.blocks, 1))
        shelf.learnt = True

    def _cut(self, shelf: Shelf, hold: Hold, blocks: int) -> None:
        """Take the last `blocks` known blocks of a hold from the shelf; the run goes with its last hold."""
        run = hold.run
        assert run is not None
        shelf.known -= blocks
        hold.known -= blocks
        if hold.pins:
            shelf.pinned -= blocks
        if hold.blocks > hold.known:
            shelf.blocks -= hold.blocks - hold.known
            hold.blocks = hold.known
            hold.resident = min(hold.resident, hold.blocks)
        if hold.known:
            return
        if hold is shelf.oldest_live:
            shelf.oldest_live = hold.newer
        hold.older.newer, hold.newer.older = hold.newer, hold.older
        del run.holds[shelf.name]
        self._bytes -= _HOLD_BYTES
        if not run.holds:
            self._count(self._dropped, run)
            self._remove(run)

    def _remove(self, run: Run) -> None:
        del self._starts[run.hashes[0]]
        if run.parent is not None:
            run.parent.children -= 1
        self._bytes -= _RUN_BYTES + _BLOCK_BYTES * len(run.hashes)

    def _keep_within_limit(self) -> None:
        """Forget what the fullest shelves have not used for longest: more than needed at once, since finding them asks every shelf."""
        if self._bytes <= self._limit:
            return
        goal = self._limit - int(self._limit * _SPARE)
        while self._bytes > goal:
            shelf = max(self._shelves.values(), key=lambda s: s.known)
            least = int(shelf.known * (1 - _SLICE))
            while self._bytes > goal and shelf.known > least:
                hold = shelf.end.newer
                self._cut(shelf, hold, hold.known)

    def _reuse(self, run: Run) -> float:
        """Chance that a run used as often as this one is used again before it is dropped."""
        kind = _reuse_class(run.uses)
        return self._reused[kind] / (self._reused[kind] + self._dropped[kind])

    def _count(self, counts: list[float], run: Run) -> None:
        kind = _reuse_class(run.uses)
        counts[kind] += 1.0
        if counts[kind] > _REUSE_MEMORY:
            self._reused[kind] /= 2
            self._dropped[kind] /= 2


def _reuse_class(uses: int) -> int:
    return min((uses - 1).bit_length(), _REUSE_CLASSES - 1) if uses else 0


def _common(hashes: Sequence[int], prefix: Sequence[int], position: int) -> int:
    """How many blocks of `hashes`, whose first is `prefix[position]`, the prefix shares: equal once means equal before."""
    longest = min(len(hashes), len(prefix) - position)
    if hashes[longest - 1] == prefix[position + longest - 1]:
        return longest
    shared, differs = 1, longest
    while differs - shared > 1:
        middle = (shared + differs) // 2
        if hashes[middle - 1] == prefix[position + middle - 1]:
            shared = middle
        else:
            differs = middle
    return shared
