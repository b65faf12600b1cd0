"""Waiting for ZeroMQ messages under asyncio."""

import asyncio
from contextlib import contextmanager

import zmq

from beaconry.config.kv_feed import KvFeed
from beaconry.io.zmq_sockets import Readiness, new_context, new_socket
from tests.loopback.fake_engine import run


@contextmanager
def pair():
    """A socket to send on, and one to receive on."""
    context = new_context()
    try:
        pull = new_socket(context, zmq.PULL, KvFeed(), 100)
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        push = new_socket(context, zmq.PUSH, KvFeed(), 100)
        push.connect(f"tcp://127.0.0.1:{port}")
        yield push, pull
    finally:
        context.destroy(linger=0)


class Counted(Readiness):
    calls = 0

    def _changed(self):
        self.calls += 1
        super()._changed()


def test_a_waiter_is_told_of_every_message_those_before_it_included():
    async def scenario():
        with pair() as (push, pull):
            readiness = Readiness(pull)
            push.send(b"first")
            await asyncio.sleep(0.05)
            for expected in (b"first", b"second", b"third"):
                assert await readiness.wait(5.0) == [pull]
                assert pull.recv(zmq.NOBLOCK) == expected
                push.send({b"first": b"second", b"second": b"third"}.get(expected, b"last"))
            readiness.close()

    run(scenario)


def test_who_waits_for_nothing_is_told_after_the_time():
    async def scenario():
        with pair() as (_, pull):
            readiness = Readiness(pull)
            assert await readiness.wait(0.01) == []
            readiness.close()

    run(scenario)


def test_messages_that_nobody_waits_for_do_not_keep_the_loop_busy():
    async def scenario():
        with pair() as (push, pull):
            readiness = Counted(pull)
            for _ in range(20):
                push.send(b"unread")
                await asyncio.sleep(0.005)
            assert readiness.calls < 40  # a loop that spins asks thousands of times
            assert await readiness.wait(5.0) == [pull]
            readiness.close()

    run(scenario)
