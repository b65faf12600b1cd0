"""KV events without engines: many publishers in one process, as many block operations a second as asked.

    python -m benchmarks.kv_publisher --ports 5557,5558 --rate 100000

Each port is one engine with a full cache: in most steps a few of its sequences fill a block each and as many old blocks are dropped, and
now and then a prefill of 512 blocks comes. Messages are those of vLLM 0.32: one `BlockStored` per sequence and step, one `BlockRemoved`
per block, token ids included, hashes that can be computed from them. They are made beforehand and told in a cycle that leaves the caches
as it found them. SIGUSR1 makes it speak, and again be silent; then it writes into the file `--tally` what it has told, and in what time.
"""

import argparse
import gc
import itertools
import signal
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from random import Random

import zmq

from beaconry.values.block_hash import PLAIN, BlockHasher
from beaconry.values.kv_events import BlockRemoved, BlockStored, KvBatch, KvEvent
from beaconry.wire.kv_events import encode, encode_frames

BLOCK_TOKENS = 16
PREFILL_BLOCKS = 512
PREFILLS = 8
"""Of a cycle: as many sequences, each of which then decodes."""
DECODE_STEPS = 62
"""Between two prefills."""
FILLING = 4
"""Sequences that fill a block in one of these steps: 64 sequences and blocks of 16 tokens."""
HELD = 0.6
"""Share of a cycle's blocks that is in the cache at any time."""
TOKEN_BYTES = 2
PAUSE_S = 0.0005


def tokens_of(rng: Random, blocks: int) -> "array[int]":
    """Random tokens for so many blocks."""
    return array("I", array("H", rng.randbytes(TOKEN_BYTES * BLOCK_TOKENS * blocks)))


def prompt_of(engine: int, number: int) -> "array[int]":
    """The prompt of one engine's prefill: for clients that ask for what is cached."""
    return tokens_of(Random(f"{engine}/{number}"), PREFILL_BLOCKS)


def steps(engine: int) -> list[list[BlockStored]]:
    """What one engine stores, step by step, in one cycle."""
    hasher = BlockHasher(BLOCK_TOKENS, "sha256")
    rng = Random(engine)
    last: list[int] = []
    """The last block of each sequence."""
    found: list[list[BlockStored]] = []
    for number in range(PREFILLS):
        tokens = prompt_of(engine, number)
        hashes = hasher.hashes(tokens)
        found.append([_stored(hashes, None, tokens)])
        last.append(hashes[-1])
        for _ in range(DECODE_STEPS):
            grown = []
            for _ in range(FILLING):
                at, block = rng.randrange(len(last)), tokens_of(rng, 1)
                (block_hash,) = hasher.run(last[at], block, range(1), PLAIN)
                grown.append(_stored([block_hash], last[at], block))
                last[at] = block_hash
            found.append(grown)
    return found


def _stored(hashes: list[int], parent: int | None, tokens: "array[int]") -> BlockStored:
    return BlockStored(
        block_hashes=tuple(hashes), parent_hash=parent, token_ids=tuple(tokens), block_tokens=BLOCK_TOKENS
    )


def cycle(engine: int) -> list[tuple[int, bytes]]:
    """Block operations and payload of each message of one cycle: every step drops as much as it stores."""
    stored = steps(engine)
    hashes = [block_hash for step in stored for event in step for block_hash in event.block_hashes]
    dropping = itertools.cycle(hashes)
    for _ in range(len(hashes) - int(HELD * len(hashes))):
        next(dropping)
    found = []
    for step in stored:
        count = sum(len(event.block_hashes) for event in step)
        events: list[KvEvent] = [BlockRemoved(block_hash=h) for h in itertools.islice(dropping, count)]
        payload = encode(KvBatch(ts=0.0, events=(*events, *step), rank=0))
        found.append((2 * count, payload))
    return found


def messages(engines: int) -> Iterator[tuple[int, int, list[bytes]]]:
    """Engine, block operations and frames of one message after the other, for ever; engines take turns, out of step with each other."""
    cycles = [cycle(engine) for engine in range(engines)]
    length = len(cycles[0])
    for number in itertools.count():
        for engine, its in enumerate(cycles):
            at = number + engine * length // engines
            operations, payload = its[at % length]
            yield engine, operations, encode_frames("", number, payload)


class Voice:
    """Tells messages at a rate while it may speak. `told`: block operations, `spoken_s`: in what time."""

    def __init__(self, sockets: list[zmq.Socket[bytes]], rate: float, tally: Path | None) -> None:
        self._sockets = sockets
        self._rate = rate
        self._tally = tally
        self._speaking = False
        self._since_s = 0.0
        self.told = 0
        self.spoken_s = 0.0

    def turn(self, *_: object) -> None:
        """Speak, or be silent: a signal handler."""
        self._speaking = not self._speaking
        now_s = time.perf_counter()
        if self._speaking:
            self._since_s = now_s
            return
        self.spoken_s += now_s - self._since_s
        if self._tally is not None:
            self._tally.write_text(f"{self.told} {self.spoken_s}")

    def tell(self, messages: Iterator[tuple[int, int, list[bytes]]]) -> None:
        """Go on for ever, once everybody has a subscriber."""
        for socket in self._sockets:
            socket.recv()
        due_s = time.perf_counter()
        for engine, operations, frames in messages:
            while not self._speaking or time.perf_counter() < due_s:
                time.sleep(PAUSE_S)
                if not self._speaking:
                    due_s = time.perf_counter()
            self._sockets[engine].send_multipart(frames)
            self.told += operations
            due_s += operations / self._rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", type=lambda text: [int(port) for port in text.split(",")], required=True)
    parser.add_argument("--rate", type=float, required=True, help="block operations a second, of all together")
    parser.add_argument("--tally", type=Path, metavar="FILE")
    args = parser.parse_args()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets = [context.socket(zmq.XPUB) for _ in args.ports]
    for socket, port in zip(sockets, args.ports, strict=True):
        socket.set(zmq.SNDHWM, 0)  # a slow reader is to show as late, not as gaps
        socket.bind(f"tcp://127.0.0.1:{port}")
    told = messages(len(sockets))
    first = next(told)
    voice = Voice(sockets, args.rate, args.tally)
    signal.signal(signal.SIGUSR1, voice.turn)
    gc.freeze()
    print(f"ready http://127.0.0.1:{args.ports[0]}", flush=True)
    voice.tell(itertools.chain([first], told))


if __name__ == "__main__":
    main()
