"""ZeroMQ sockets under asyncio, without pyzmq's own asyncio layer: that costs several callbacks per message."""

import asyncio
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


class Readiness:
    """Waits for messages on some sockets. Their descriptors are watched until `close`: watching anew for each message costs more than
    reading it. A descriptor tells of changes only: what is there already does not show in it, and asking for the state resets it."""

    def __init__(self, *sockets: Sock) -> None:
        self._sockets = sockets
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] | None = None
        """What the waiter awaits; None if nobody waits."""
        for sock in sockets:
            self._loop.add_reader(sock.fileno(), self._changed)

    async def wait(self, timeout_s: float | None) -> list[Sock]:
        """Those that have a message, as soon as one has; none if that takes longer than the time. One waiter at a time."""
        ready = self._ready()
        if not ready:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while not ready:
                        self._woken = self._loop.create_future()
                        await self._woken
                        ready = self._ready()
            self._woken = None
        return ready

    def close(self) -> None:
        """Watch no longer. The sockets are still open."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())

    def _changed(self) -> None:
        if self._woken is None:
            self._ready()  # or the loop would ask again at once, and again until somebody waits
        elif not self._woken.done():
            self._woken.set_result(None)

    def _ready(self) -> list[Sock]:
        return [sock for sock in self._sockets if int(sock.get(zmq.EVENTS)) & zmq.POLLIN]
