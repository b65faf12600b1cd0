"""How fast and how large is the exact KV index?

Many endpoints hold parts of many prompts: all holders of a prompt have its first block, one has all of it, and the others end where
their own prompts have branched off: at one of a few branch points of the prompt (the system prompt's end, a document's, a turn's),
lengths of any order of magnitude. Every fourth prompt is *scattered*: each holder ends somewhere else, the worst case. Measured in one
process and in CPU time, so that other work on the machine does not count:

    lookup     of prompts picked at random (so from cold memory), against a walk over the same table block by block
    memory     per block, as the operating system sees it and as the index reports it
    ingest     of decode steps and prefills as vLLM publishes them, from the encoded message to the index
    clear      of one endpoint, and the next lookup's answer for it

    python -m benchmarks.kv_index            10 million blocks, 256 endpoints: some minutes and 2 GB
    python -m benchmarks.kv_index --smoke    100 thousand blocks, seconds
"""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from time import thread_time

from msgspec import structs

from beaconry.kvindex.exact import ExactIndex
from beaconry.values.kv_events import BlockRemoved, BlockStored, KvBatch, KvEvent
from beaconry.wire.kv_events import decode, encode

BLOCKS = 2048
"""Per prompt: 32,768 tokens in blocks of 16."""
HOLDERS = 18
BRANCHES = 5
SCATTERED = 4
"""Every so many prompts."""
BLOCK_TOKENS = 16
TURN = 512
"""Blocks applied at a time."""
Prompt = list[int]


def name_of(endpoint: int) -> str:
    return f"endpoint-{endpoint}"


def hashes_of(prompt: int, blocks: int) -> Prompt:
    """Spread like digests, and made anew each time, as those of a request are."""
    rng = Random(prompt)
    return [rng.getrandbits(64) for _ in range(blocks)]


def stored(hashes: Prompt) -> BlockStored:
    return BlockStored(block_hashes=tuple(hashes), parent_hash=None, token_ids=(), block_tokens=BLOCK_TOKENS)


def fill(index: ExactIndex, prompts: int, endpoints: int, rng: Random) -> None:
    """Store each prompt at HOLDERS endpoints, one of them whole."""
    for prompt in range(prompts):
        hashes = hashes_of(prompt, BLOCKS)
        branches = [int(BLOCKS ** rng.random()) for _ in range(BRANCHES)]
        for place, endpoint in enumerate(rng.sample(range(endpoints), min(HOLDERS, endpoints))):
            end = rng.choice(branches) if prompt % SCATTERED else rng.randrange(1, BLOCKS)
            end = end if place else BLOCKS
            for at in range(0, end, TURN):
                index.apply(name_of(endpoint), 0, [stored(hashes[at : min(at + TURN, end)])])


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def walk(index: ExactIndex, keys: Prompt) -> dict[str, int]:
    """The oracle: block by block over all that still hold everything so far."""
    table = index._tables["gpu"]  # type: ignore[index]  # noqa: SLF001
    leases = index._leases  # noqa: SLF001
    alive, held = leases.live, {}
    for at, key in enumerate(keys):
        still = alive & table.holders(key)
        if still != alive:
            for lease in leases.among(alive ^ still):
                if at:
                    held[lease.name] = at
            alive = still
            if not alive:
                break
    for lease in leases.among(alive):
        held[lease.name] = len(keys)
    return held


def timed(call: Callable[[], object]) -> float:
    begun = thread_time()
    call()
    return thread_time() - begun


def lookups(index: ExactIndex, prompts: int, count: int, rng: Random) -> dict[str, float]:
    """Times in us; every answer is compared with the oracle's."""
    ours: dict[bool, list[float]] = {True: [], False: []}
    oracle: list[float] = []
    for _ in range(count):
        number = rng.randrange(prompts)
        keys, others = hashes_of(number, BLOCKS), hashes_of(rng.randrange(prompts), BLOCKS)
        ours[number % SCATTERED == 0].append(timed(lambda keys=keys: index.match(keys)))  # type: ignore[misc]
        oracle.append(timed(lambda keys=others: walk(index, keys)))  # type: ignore[misc]
        if {name: held.blocks for name, held in index.match(keys).items()} != walk(index, keys):
            raise SystemExit("the index and the oracle disagree")
    branched = sorted(ours[False])
    return {
        "lookup_p50_us": 1e6 * median(branched),
        "lookup_p90_us": 1e6 * branched[int(0.9 * len(branched))],
        "lookup_scattered_p50_us": 1e6 * median(ours[True]),
        "oracle_p50_us": 1e6 * median(oracle),
        "ratio": median(oracle) / median(branched),
        "holes": index.statistics().holes,
    }


def messages(endpoint: int, count: int, rng: Random) -> list[bytes]:
    """What a busy engine publishes: steps in which some of 64 sequences fill a block each and a full cache drops as many, and now and
    then a prefill of 512 blocks. Token ids included."""
    window: list[int] = hashes_of(-1 - endpoint, TURN)
    events: list[KvEvent] = [structs.replace(stored(window), token_ids=tuple(range(TURN * BLOCK_TOKENS)))]
    found = [encode(KvBatch(ts=0.0, events=tuple(events), rank=0))]
    for step in range(1, count):
        fresh = [rng.getrandbits(64) for _ in range(TURN if step % 64 == 0 else 4)]
        tokens = tuple(rng.randrange(128_000) for _ in range(len(fresh) * BLOCK_TOKENS))
        dropped, window = window[: len(fresh)], window[len(fresh) :] + fresh
        events = [BlockRemoved(block_hash=h) for h in dropped]
        if len(fresh) == TURN:
            events.append(structs.replace(stored(fresh), token_ids=tokens))
        else:
            for at, block_hash in enumerate(fresh):
                its = tokens[at * BLOCK_TOKENS : (at + 1) * BLOCK_TOKENS]
                events.append(structs.replace(stored([block_hash]), parent_hash=block_hash ^ 1, token_ids=its))
        found.append(encode(KvBatch(ts=0.0, events=tuple(events), rank=0)))
    return found


def ingest(index: ExactIndex, endpoints: int, steps: int, rng: Random) -> dict[str, float]:
    """Block operations per second, one message after the other from changing endpoints."""
    feeds = [messages(endpoint, steps, rng) for endpoint in range(min(endpoints, 32))]
    before = index.statistics()
    begun = thread_time()
    for step in range(steps):
        for endpoint, feed in enumerate(feeds):
            index.apply(name_of(endpoint), 0, decode(feed[step]).events)
    took = thread_time() - begun
    after = index.statistics()
    done = after.stored + after.removed + after.unknown - before.stored - before.removed - before.unknown
    batches = steps * len(feeds)
    return {"ingest_ops_per_s": done / took, "ingest_batches_per_s": batches / took, "ingest_ops": done}


def clears(index: ExactIndex, endpoints: int) -> dict[str, float]:
    """Times in us of the clears of some endpoints."""
    held = {source.name: sum(source.blocks.values()) for source in index.statistics().sources}
    names = [name for name in map(name_of, range(endpoints)) if held.get(name)][:32]
    times = [timed(lambda name=name: index.clear(name)) for name in names]  # type: ignore[misc]
    return {"clear_p50_us": 1e6 * median(times), "cleared_blocks": median(held[name] for name in names)}


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="100 thousand blocks")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--blocks", type=int, default=10_000_000)
    parser.add_argument("--endpoints", type=int, default=256)
    args = parser.parse_args()
    blocks = 100_000 if args.smoke else args.blocks
    prompts = max(blocks // BLOCKS, 1)
    rng = Random(1)
    index = ExactIndex(limit_bytes=1 << 34)
    gc.collect()
    empty = resident_bytes()
    took = timed(lambda: fill(index, prompts, args.endpoints, rng))
    gc.collect()
    statistics = index.statistics()
    held = sum(statistics.blocks.values())
    pairs = sum(sum(source.blocks.values()) for source in statistics.sources)
    figures = {
        "blocks": held,
        "endpoints": args.endpoints,
        "holders_per_block": pairs / held,
        "fill_ops_per_s": pairs / took,
        "resident_bytes_per_block": (resident_bytes() - empty) / held,
        "reported_bytes_per_block": statistics.bytes / held,
        **lookups(index, prompts, 50 if args.smoke else 1000, rng),
        **ingest(index, args.endpoints, 70 if args.smoke else 300, rng),
        **clears(index, args.endpoints),
    }
    for name, value in figures.items():
        print(f"{name:26} {value:14,.1f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    sys.exit(0)


if __name__ == "__main__":
    main()
