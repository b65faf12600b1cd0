"""Drives an engine in real time, on an ideal clock.

A step that is to end at t ends there, however late its timer fires: the next one is scheduled from t, so small delays do not add
up. Only when the process is behind by more than `LAG_LIMIT_S` is the time lost accepted, and counted.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.sequence import Sequence
from beaconry.engine_model.values import StepResult

LAG_LIMIT_S: Final = 0.25
"""Ten steps of a busy engine: beyond that, catching up in a burst would be further from a real engine than a gap is."""


class EngineLoop:
    """Runs steps while there is work.

    Attributes:
        engine: what is driven; its time is model seconds since the start.
        lag_resets: how often the process was so late that the step counted as ending when it really did.

    `_timer` is set while a step is in progress or about to begin, unless the loop is paused; `_step_end_s` is None between steps;
    `_began_s` is when the step in progress, or the last one, began.

    """

    def __init__(
        self,
        engine: Engine,
        stepped: Callable[[StepResult, float], None],
        *,
        speed: float,
        loop: asyncio.AbstractEventLoop,
        fetch: Callable[[Sequence], None],
    ) -> None:
        """`stepped` is called after each step with its result and its duration in model seconds; `speed` is model per real seconds.

        `fetch` is called for each sequence that has room for KV from another engine.
        """
        self.engine = engine
        self._stepped = stepped
        self._fetch = fetch
        self.lag_resets = 0
        self._speed = speed
        self._loop = loop
        self._origin_s = loop.time()
        self._timer: asyncio.Handle | None = None
        self._began_s = 0.0
        self._step_end_s: float | None = None
        self._paused = False

    def now_s(self) -> float:
        """Return the model time."""
        return (self._loop.time() - self._origin_s) * self._speed

    def loop_s(self, model_s: float) -> float:
        """Return when, in the event loop's time, a model time is."""
        return self._origin_s + model_s / self._speed

    def submit(self, sequence: Sequence) -> None:
        """Hand in a sequence."""
        self.engine.submit(sequence, self.now_s())
        self.wake()

    def abort(self, sequence_id: str) -> bool:
        """Drop a sequence. False if it is not there any more."""
        aborted = self.engine.abort(sequence_id, self.now_s())
        self.wake()
        return aborted

    def imported(self, sequence_id: str) -> None:
        """The KV that a sequence waits for has come."""
        if self.engine.imports.arrive(sequence_id):
            self.wake()

    def wake(self) -> None:
        """Something is different: an engine that stands begins, if it can, once all that has arrived by now is in."""
        if self._timer is None and not self._paused:
            self._timer = self._loop.call_soon(self._begin, None)

    def pause(self) -> None:
        """Stand still: the step in progress does not end."""
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume(self) -> None:
        """Go on where `pause` stopped."""
        self._paused = False
        if self._timer is not None:
            return
        if self._step_end_s is not None:
            self._step_end_s = max(self._step_end_s, self.now_s())
            self._await_end(self._step_end_s)
        elif not self.engine.idle:
            self._timer = self._loop.call_soon(self._begin, None)

    def _begin(self, at_s: float | None) -> None:
        """Begin a step at a model time, or now."""
        self._began_s = self.now_s() if at_s is None else at_s
        duration_s = self.engine.begin_step(self._began_s)
        for sequence in self.engine.imports.take_untold():
            self._fetch(sequence)
        if duration_s is None:
            self._timer = None
            return
        self._step_end_s = self._began_s + duration_s
        self._await_end(self._step_end_s)

    def _await_end(self, end_s: float) -> None:
        self._timer = self._loop.call_at(self.loop_s(end_s), self._finish)

    def _finish(self) -> None:
        end_s = self._step_end_s
        assert end_s is not None
        self._step_end_s = None
        now_s = self.now_s()
        if now_s - end_s > LAG_LIMIT_S * self._speed:
            end_s = now_s
            self.lag_resets += 1
        self._timer = None
        self._stepped(self.engine.finish_step(end_s), end_s - self._began_s)
        if not self._paused:
            self._begin(end_s)
