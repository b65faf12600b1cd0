"""What a sequence's latency was made of: how much of each term of the step time its engine went through meanwhile.

An engine whose step time is a sum of terms, each a coefficient times a feature of the step's load, has latencies that are linear in
the coefficients as long as the schedule stays the same: a time to first token is the sum over the steps from arrival to first token.
`Rig` runs an engine in virtual time and adds up the features of all its steps, so that each sequence knows its own share. That turns
measured latencies into linear equations for the coefficients (`fitting.py`), whatever queueing lay between.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.sequence import Sequence as EngineSequence
from beaconry.engine_model.step_time import StepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.values.errors import InternalError

Features = tuple[float, ...]
MANY_STEPS = 1_000_000
"""Plain steps taken at once, at most."""


class SumOfTerms(StepTime, Protocol):
    """A step time that is a sum of coefficients times features."""

    def features(self, sequences: int, context: float, prefill: int, attended: float) -> Features:
        """Return one value per term, for the load of one step; see `StepTime.seconds`."""
        ...


class Exposure(Struct, frozen=True, kw_only=True):
    """One finished sequence. Times in seconds; features summed over the steps of each span."""

    id: str
    arrived_s: float
    first_s: float
    end_s: float
    output_tokens: int
    to_first: Features
    """From arrival to first token; of the step under way at the arrival, the share that was left."""
    to_end: Features
    """From first to last token."""


class Rig:
    """An engine in virtual time, watched.

    Invariants: `_totals` holds the features of all finished steps; `_end_s` is None between steps; `_open` has each sequence that is
    in the engine, with the totals at its arrival and at its first token.
    """

    def __init__(
        self, settings: EngineSettings, step_time: SumOfTerms, finished: Callable[[Exposure], None] | None = None
    ) -> None:
        """`finished` is told of each sequence at its end, and may submit further ones."""
        self._watched = _Watched(step_time)
        self._engine = Engine(settings, self._watched)
        self._finished = finished
        self._totals: Features = tuple(0.0 for _ in step_time.features(1, 1.0, 1, 1.0))
        self._began_s = 0.0
        self._end_s: float | None = None
        self._open: dict[str, tuple[Features, Features]] = {}
        self.now_s = 0.0

    @property
    def idle(self) -> bool:
        """True if nothing is left to do."""
        return self._engine.idle

    def submit(self, sequence: EngineSequence) -> None:
        """Hand in a sequence now. CallerError if it can never fit."""
        self._engine.submit(sequence, self.now_s)
        self._open[sequence.id] = (self._totals_now(), ())

    def advance(self, until_s: float) -> None:
        """Run until a time. Several plain steps are taken at once; those that have not begun at `until_s` are taken back."""
        while True:
            if self._end_s is None:
                self._began_s = self.now_s
                duration_s = self._engine.begin_step(self.now_s, MANY_STEPS)
                if duration_s is None:
                    self.now_s = max(self.now_s, until_s)
                    return
                self._end_s = self.now_s + duration_s
            if self._end_s > until_s:
                self._end_s = self._engine.shorten_step(until_s)
                self.now_s = until_s
                return
            self._finish(self._end_s)

    def finish(self) -> None:
        """Run until nothing is left to do. InternalError if that is never."""
        self.advance(float("inf"))
        if not self.idle:
            raise InternalError("an engine ran out of time before it ran out of work")

    def _finish(self, at_s: float) -> None:
        self.now_s = at_s
        self._end_s = None
        result = self._engine.finish_step(at_s)
        self._totals = _sum(self._totals, self._watched.features, result.steps)
        for sequence in result.started:
            self._open[sequence.id] = (self._open[sequence.id][0], self._totals)
        for sequence in result.finished:
            arrived, first = self._open.pop(sequence.id)
            if self._finished is not None:
                assert sequence.first_token_s is not None
                exposure = Exposure(
                    id=sequence.id,
                    arrived_s=sequence.arrived_s,
                    first_s=sequence.first_token_s,
                    end_s=at_s,
                    output_tokens=sequence.output_tokens,
                    to_first=_sum(first, arrived, -1.0),
                    to_end=_sum(self._totals, first, -1.0),
                )
                self._finished(exposure)

    def _totals_now(self) -> Features:
        """The totals, with the part of the step under way that has passed; its features come evenly."""
        if self._end_s is None or self._end_s <= self._began_s:
            return self._totals
        steps = (self._end_s - self._began_s) / self._watched.seconds_each
        return _sum(
            self._totals, self._watched.features, steps * (self.now_s - self._began_s) / (self._end_s - self._began_s)
        )


class _Watched:
    """A step time that remembers the last load it was asked for: that of the step begun, or of the mean of several."""

    def __init__(self, step_time: SumOfTerms) -> None:
        self._step_time = step_time
        self._load = (0, 0.0, 0, 0.0)
        self.seconds_each = 0.0

    @property
    def features(self) -> Features:
        """Of one step."""
        return self._step_time.features(*self._load)

    def seconds(self, sequences: int, context: float, prefill: int, attended: float) -> float:
        """Return what the step time says; see `StepTime`."""
        self._load = (sequences, context, prefill, attended)
        self.seconds_each = self._step_time.seconds(sequences, context, prefill, attended)
        return self.seconds_each


def _sum(base: Sequence[float], more: Sequence[float], times: float) -> Features:
    return tuple(left + times * right for left, right in zip(base, more, strict=True))
