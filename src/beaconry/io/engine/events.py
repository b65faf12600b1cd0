"""Publishes a simulated engine's KV events as vLLM does: live over a ZeroMQ PUB socket, past ones on request over a ROUTER.

A batch per step that changed the prefix cache. Live messages are `[topic, sequence number, payload]`; numbers count from 0 since the
engine's start. Who asks the ROUTER for a number gets the remembered batches from there on, and an end marker. See `wire/kv_events.py`.

The step loop is never held up: a subscriber that does not read loses messages, long answers are given in slices, one question at a
time. An asker that does not read its answer gets no end of it.

Source: vLLM `distributed/kv_events.py`.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import zmq

from beaconry.io.engine.options import KvEventsOptions
from beaconry.values.errors import OperatorError
from beaconry.values.kv_events import KvBatch, KvEvent
from beaconry.wire.kv_events import END, encode, encode_frames

LIVE_MESSAGES: Final = 100_000
"""Per subscriber that does not read, then they are dropped; vLLM's `hwm`."""
SLICE: Final = 32
"""Batches of an answer per turn of the event loop: about 0.3 ms."""
_MOST_PARTS: Final = 3
"""Of a question: who asks, an empty part, the number."""

Sock = zmq.Socket[bytes]


class EventPublisher:
    """The publisher of one engine.

    Attributes:
        endpoint, replay_endpoint: where it really listens; None for the second if nothing is remembered.
        refused: questions that were none.

    `_ring` has the last batches published with their numbers, oldest first, at most `buffer_steps`; `_answer` is what is left of the
    answer being given, None between questions.

    """

    def __init__(self, options: KvEventsOptions, host: str, loop: asyncio.AbstractEventLoop) -> None:
        """Bind. OperatorError if an address cannot be had."""
        self.options = options
        self.replay_endpoint: str | None = None
        self.refused = 0
        self._loop = loop
        self._numbers = itertools.count()
        self._ring: deque[tuple[int, bytes]] = deque(maxlen=options.buffer_steps)
        self._answer: Iterator[list[bytes]] | None = None
        self._turn: asyncio.Handle | None = None
        self._zmq: zmq.Context[Sock] = zmq.Context()
        self._live = self._zmq.socket(zmq.PUB)
        self._live.set_hwm(LIVE_MESSAGES)
        self._asked: Sock | None = None
        try:
            self.endpoint = _bind(self._live, host, options.port)
            if options.replay_port is not None:
                self._asked = self._zmq.socket(zmq.ROUTER)
                # One whole answer, and not a second one for who has not read the first.
                self._asked.set(zmq.SNDHWM, options.buffer_steps + 1)
                self._asked.set(zmq.ROUTER_MANDATORY, 1)  # says when a message cannot be delivered
                self.replay_endpoint = _bind(self._asked, host, options.replay_port)
                loop.add_reader(int(self._asked.get(zmq.FD)), self._listen)
        except OperatorError:
            self._zmq.destroy(linger=0)
            raise

    def publish(self, events: Sequence[KvEvent]) -> None:
        """Tell what a step has changed."""
        payload = encode(KvBatch(ts=time.time(), events=tuple(events), rank=0), self.options.form)
        number = next(self._numbers)
        self._ring.append((number, payload))
        with suppress(zmq.Again):
            self._live.send_multipart(encode_frames(self.options.topic, number, payload), zmq.NOBLOCK)

    def describe(self) -> dict[str, object]:
        """What vLLM's `/kv_event_sources` says of one data-parallel rank."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.endpoint,
            "replay_endpoint": self.replay_endpoint,
            "buffer_steps": self.options.buffer_steps,
            "hwm": LIVE_MESSAGES,
            "max_queue_size": LIVE_MESSAGES,
            "topic": self.options.topic,
        }

    def close(self) -> None:
        """Give the addresses back at once; what was not sent is lost, as when an engine ends."""
        if self._asked is not None:
            self._loop.remove_reader(int(self._asked.get(zmq.FD)))
        if self._turn is not None:
            self._turn.cancel()
        self._zmq.destroy(linger=0)

    # -- questions

    def _listen(self) -> None:
        """Take the next question, unless one is being answered.

        Also called after each answer: the descriptor tells of changes only, so a question that came meanwhile does not show.
        """
        asked = self._asked
        while asked is not None and self._answer is None:
            try:
                question = asked.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(question) == _MOST_PARTS and not question[1] and len(question[2]) == len(END):
                self._answer = self._replay(question[0], int.from_bytes(question[2], "big"))
                self._turn = self._loop.call_soon(self._go_on)
            else:
                self.refused += 1

    def _replay(self, asker: bytes, first: int) -> Iterator[list[bytes]]:
        """The messages that answer a question."""
        remembered = [entry for entry in self._ring if entry[0] >= first]
        for number, payload in remembered:
            yield [asker, b"", *encode_frames(self.options.topic, number, payload)]
        yield [asker, b"", b"", END, b""]

    def _go_on(self) -> None:
        """Send the next slice of the answer."""
        answer, asked = self._answer, self._asked
        assert answer is not None
        assert asked is not None
        sent = 0
        try:
            for message in itertools.islice(answer, SLICE):
                asked.send_multipart(message, zmq.NOBLOCK)
                sent += 1
        except zmq.ZMQError:  # the asker has left, or has not read the answer before
            sent = 0
        if sent == SLICE:
            self._turn = self._loop.call_soon(self._go_on)
            return
        self._answer = None
        self._turn = None
        self._listen()


def _bind(socket: Sock, host: str, port: int) -> str:
    """Return the address bound, with the port that was free if 0 was asked for."""
    if ":" in host:
        socket.set(zmq.IPV6, 1)
        host = f"[{host}]"
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise OperatorError(f"KV events: cannot listen on {host}:{port}: {error}") from None
    return socket.get_string(zmq.LAST_ENDPOINT)
