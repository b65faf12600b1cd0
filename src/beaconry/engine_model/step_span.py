"""The step in progress, or several plain decode steps taken at once: when it began, what is left of it, and how long that takes."""

from collections.abc import Iterable
from math import sqrt
from random import Random

from beaconry.engine_model.calendar import DecodeCalendar
from beaconry.engine_model.sequence import Sequence
from beaconry.engine_model.step_time import StepTime

Load = tuple[int, int, int, float]
"""What a step's duration depends on; see `StepTime.seconds`."""


class StepSpan:
    """Steps that follow each other without anything but decoding between them.

    Attributes:
        planned: steps that are left, that in progress included; at least 1.
        passed: steps that are over and committed.

    `_began_s` and `_load` are of the step in progress. `_noise_s` is what the first step takes longer than it should: each step has
    noise of its own, so that of several grows with the root of their number.

    """

    __slots__ = ("_began_s", "_load", "_loading_s", "_noise_s", "_step_time", "passed", "planned")

    def __init__(self, step_time: StepTime, began_s: float, load: Load, loading_s: float, noise: float) -> None:
        """`loading_s` comes before the first step computes; `noise` is the relative error of its duration, above -1."""
        self._step_time = step_time
        self._began_s = began_s
        self._load = load
        self._loading_s = loading_s
        self._noise_s = noise * step_time.seconds(*load) if noise else 0.0
        self.planned = 1
        self.passed = 0

    def duration_s(self, steps: int) -> float:
        """Return how long the step in progress and the plain ones after it take, `steps` in all.

        Context grows evenly, so the mean stands for all of them.
        """
        sequences, context, tokens, attended = self._load
        mean_context = context + sequences * 0.5 * (steps - 1)
        exact_s = self._loading_s + steps * self._step_time.seconds(sequences, mean_context, tokens, attended)
        return exact_s + self._noise_s * (sqrt(self.passed + steps) - sqrt(self.passed)) if self._noise_s else exact_s

    def shorten(self, now_s: float) -> float:
        """Take back the steps that have not begun at `now_s`; return when the one under way ends."""
        low, high = 1, self.planned
        while low < high:
            middle = (low + high) // 2
            if self._began_s + self.duration_s(middle) >= now_s:
                high = middle
            else:
                low = middle + 1
        self.planned = low
        return self._began_s + self.duration_s(low)

    def advance(self, now_s: float) -> int:
        """Let the step under way at `now_s`, or the last one planned, be that in progress; return how many have ended before it."""
        low, high = 0, self.planned - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._began_s + self.duration_s(middle) <= now_s:
                low = middle
            else:
                high = middle - 1
        if low:
            self._began_s += self.duration_s(low)
            sequences, context, tokens, attended = self._load
            self._load = (sequences, context + sequences * low, tokens, attended)
            self.planned -= low
            self.passed += low
        return low

    def copy(self) -> "StepSpan":
        """Return an independent one in the same place."""
        other = StepSpan(self._step_time, self._began_s, self._load, self._loading_s, 0.0)
        other._noise_s = self._noise_s
        other.planned, other.passed = self.planned, self.passed
        return other


def sum_load(calendar: DecodeCalendar, chunks: Iterable[tuple[Sequence, int]]) -> Load:
    """The load of a step that computes these chunks of prompts. The last token of an imported prompt is like one that is decoded."""
    sequences, context, tokens, attended = len(calendar), calendar.context, 0, 0.0
    for sequence, chunk in chunks:
        if sequence.fetched and not sequence.generated:
            sequences += 1
            context += sequence.computed
        else:
            tokens += chunk
            attended += chunk * (sequence.computed + 0.5 * chunk)
    return sequences, context, tokens, attended


def draw_noise(noise: float, rng: Random | None) -> float:
    """Draw the relative error of a step's duration; see `EngineSettings.step_noise`."""
    if not noise or rng is None:
        return 0.0
    limit = min(3.0 * noise, 0.5)
    return min(limit, max(-limit, rng.gauss(0.0, noise)))
