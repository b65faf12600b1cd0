"""ZeroMQ sockets under asyncio, without pyzmq's own asyncio layer: that costs several callbacks per message."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import zmq
from zmq.utils.monitor import parse_monitor_message

from beaconry.config.kv_feed import KvFeed

Sock = zmq.Socket[bytes]

_MAX_SOCKETS = 65_536
"""ZeroMQ's default of 1,023 is too few for three sockets at each of several hundred engines."""


def new_context() -> zmq.Context[Sock]:
    """A context for many sockets."""
    context: zmq.Context[Sock] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
    return context


def new_socket(context: zmq.Context[Sock], kind: int, limits: KvFeed, queued_messages: int) -> Sock:
    """A socket that reconnects, gives up on silent peers, and takes no message beyond the limit. 0 queued messages: no bound."""
    sock = context.socket(kind)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.RCVHWM, queued_messages),
        (zmq.MAXMSGSIZE, limits.message_bytes),
        (zmq.RECONNECT_IVL, int(1e3 * limits.reconnect_s)),
        (zmq.RECONNECT_IVL_MAX, int(1e3 * limits.reconnect_max_s)),
        (zmq.HEARTBEAT_IVL, int(1e3 * limits.heartbeat_s)),
        (zmq.HEARTBEAT_TIMEOUT, int(2e3 * limits.heartbeat_s)),
    ):
        sock.set(option, value)
    return sock


def connection_events(monitor: Sock) -> list[int]:
    """What has happened to a monitored socket's connection, oldest first."""
    events: list[int] = []
    with suppress(zmq.Again):
        while True:
            events.append(parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"])
    return events


async def readable(sockets: Sequence[Sock], timeout_s: float | None) -> bool:
    """Wait until one of the sockets may have a message. False if none has within the time."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    descriptors = [sock.fileno() for sock in sockets]

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    for descriptor in descriptors:
        loop.add_reader(descriptor, wake)
    try:
        async with asyncio.timeout(timeout_s):
            # the descriptor tells of changes only: what is there already does not show in it, and asking for it resets it
            while not any(int(sock.get(zmq.EVENTS)) & zmq.POLLIN for sock in sockets):
                await woken
                woken = loop.create_future()
    except TimeoutError:
        return False
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
    return True
