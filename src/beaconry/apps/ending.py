"""How a gateway ends, the same way for every verb that runs one: the first signal drains, the second one cuts the drain short."""

import asyncio
import signal
from collections.abc import Callable

from beaconry.apps.assemble import Gateway


class Ending:
    """SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal has gone) all mean: stop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Set by the first signal."""
        self.hurried = asyncio.Event()
        """Set by the second one."""
        self.on_signal: Callable[[], None] = lambda: None
        """Called at each, after the events are set."""

    def listen(self) -> None:
        """Take over the signals of the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled)

    async def drain(self, gateway: Gateway, grace_s: float) -> None:
        """Stop `gateway`, by the task that started it: running requests finish within `grace_s`, or until hurried."""
        try:
            async with asyncio.timeout(None) as patience, asyncio.TaskGroup() as tasks:
                cut = tasks.create_task(self._cut(patience))
                await gateway.stop(grace_s)
                cut.cancel()
        except TimeoutError:
            await gateway.stop(0.0)

    async def _cut(self, patience: asyncio.Timeout) -> None:
        await self.hurried.wait()
        patience.reschedule(asyncio.get_running_loop().time())

    def _signalled(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()
        self.on_signal()
