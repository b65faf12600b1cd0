"""What does it gain that the approximate prefix index learns each engine's capacity from reported cached tokens?

One engine (an LRU cache of blocks) serves a Zipf stream of shared prefixes with questions of their own, first as it was guessed to be,
then after a restart with half of its memory. The index with a fixed guess never hears how much was cached; the self-correcting one does.
Figures: prompt blocks whose presence was predicted wrongly, in percent of all, and what one request costs in the index.

    python -m benchmarks.prefix_index
"""

from collections import OrderedDict
from random import Random
from time import perf_counter

from msgspec import Struct

from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.match import NO_MATCH
from benchmarks import report

CAPACITY = 4000
"""Blocks of the engine: 256,000 tokens of 64 a block."""
PREFIX, OWN = 60, 4
GROUPS = 120


class Row(Struct, frozen=True, kw_only=True):
    """One guess of the capacity, in percent of the true one; wrong blocks in percent of all."""

    guess_percent: int | None
    fixed: float
    learnt: float
    fixed_after_restart: float
    learnt_after_restart: float


class Cost(Struct, frozen=True, kw_only=True):
    """Microseconds for one request of `blocks` blocks: lookup, dispatch and end.

    `stride`: other prompts branch off after each so many blocks; 16 is a conversation with turns of 1,000 tokens, 1 the worst case.
    """

    blocks: int
    stride: int
    match_us: float
    routed_us: float
    confirmed_us: float


class LruCache:
    """An engine's prefix cache: the least recently used block goes first, the end of a prompt before its beginning."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def serve(self, prompt: tuple[int, ...]) -> int:
        """Compute a prompt; returns how many of its blocks were there."""
        cached = next((i for i, block in enumerate(prompt) if block not in self._blocks), len(prompt))
        for block in reversed(prompt):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)
        return cached


def wrong(guess: float | None, requests: int, *, reporting: bool) -> tuple[float, float]:
    """Percent of blocks predicted wrongly, before and after the restart, each over the second half of its phase."""
    index, rng = ApproximateIndex(), Random(1)
    if guess is not None:
        index.sized("engine", guess)
    weights = [(rank + 1) ** -0.8 for rank in range(GROUPS)]
    prefixes = [tuple(rng.getrandbits(64) for _ in range(PREFIX)) for _ in range(GROUPS)]
    percents = []
    for capacity in (CAPACITY, CAPACITY // 2):
        cache, missed, total = LruCache(capacity), 0, 0
        for number in range(requests):
            prompt = rng.choices(prefixes, weights)[0] + tuple(rng.getrandbits(64) for _ in range(OWN))
            predicted = index.match(prompt).get("engine", NO_MATCH).blocks
            placement = index.routed("engine", prompt)
            cached = cache.serve(prompt)
            index.confirmed(placement, cached if reporting else None)
            if 2 * number > requests:
                missed, total = missed + abs(predicted - cached), total + len(prompt)
        percents.append(100 * missed / total)
    return percents[0], percents[1]


def cost(blocks: int, stride: int, repeats: int) -> Cost:
    """Time per call, the best of `repeats`, in an index of four endpoints that hold thousands of prompts."""
    index, rng = ApproximateIndex(), Random(1)
    shared = tuple(rng.getrandbits(64) for _ in range(blocks - 8))
    for number in range(2000):
        prompt = shared[: rng.randrange(0, blocks, stride)] + tuple(rng.getrandbits(64) for _ in range(8))
        index.confirmed(index.routed(f"engine-{number % 4}", prompt), None)
    best = [float("inf")] * 3
    for number in range(repeats):
        prompt = shared + tuple(rng.getrandbits(64) for _ in range(8))
        times = [perf_counter()]
        index.match(prompt)
        times.append(perf_counter())
        placement = index.routed(f"engine-{number % 4}", prompt)
        times.append(perf_counter())
        index.confirmed(placement, float(placement.resident))
        times.append(perf_counter())
        best = [min(b, 1e6 * (end - start)) for b, start, end in zip(best, times, times[1:], strict=False)]
    return Cost(blocks=blocks, stride=stride, match_us=best[0], routed_us=best[1], confirmed_us=best[2])


def main() -> None:
    args = report.options(__doc__.splitlines()[0]).parse_args()
    requests = 2000 if args.smoke else 10_000
    rows = []
    for percent in (25, 100, 400, None):
        guess = None if percent is None else CAPACITY * percent / 100
        fixed, learnt = (wrong(guess, requests, reporting=reporting) for reporting in (False, True))
        rows.append(
            Row(
                guess_percent=percent,
                fixed=fixed[0],
                learnt=learnt[0],
                fixed_after_restart=fixed[1],
                learnt_after_restart=learnt[1],
            )
        )
    report.table(
        "blocks predicted wrongly, % of all",
        ("guess, % of true", "fixed", "self-correcting", "fixed, half memory", "self-correcting, half memory"),
        [(r.guess_percent or "none", r.fixed, r.learnt, r.fixed_after_restart, r.learnt_after_restart) for r in rows],
    )
    costs = [cost(blocks, stride, 300) for blocks, stride in ((30, 16), (430, 16), (2000, 16), (430, 1))]
    report.table(
        "one request in the index, microseconds",
        ("blocks", "branch every", "match", "routed", "confirmed"),
        [(c.blocks, c.stride, c.match_us, c.routed_us, c.confirmed_us) for c in costs],
    )
    report.save(args.json, {"wrong": rows, "cost": costs})


if __name__ == "__main__":
    main()
