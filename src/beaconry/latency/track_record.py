"""How good predictions have been, and which predictor to believe: the shadow, else the closed form, else none.

Every prediction is held against its outcome. Errors are absolute logarithms of actual over predicted time, so twice too long and twice too
short weigh the same. A predictor whose mean error leaves its band is passed over until the error is well within it again.
"""

from collections import deque
from enum import StrEnum
from math import exp, log
from statistics import median

from msgspec import Struct

from beaconry.values.candidate import Source

_GAIN = 0.03
"""Share of the latest outcome in the running means: about the last thirty count."""
_CLIP = 2.0
"""Errors beyond a factor of 7.4 all count the same."""
_RECENT = 256
_BANDS = {Source.SHADOW: 0.4, Source.CLOSED_FORM: 0.7}
"""Mean error beyond which a predictor is passed over: half as long again, and twice."""
_BACK = 0.7
"""Share of its band in which it is believed again."""
_WORSE = 1.25
"""The shadow is passed over, too, while its error is so many times the closed form's."""
_FEW = 10
"""Outcomes of each before anybody is passed over."""
_SMALL = 0.1
"""Errors below this are good whatever others reach."""


class Quantity(StrEnum):
    """What is predicted."""

    TTFT = "ttft"
    ITL = "itl"


class Accuracy(Struct, frozen=True, kw_only=True):
    """How a predictor has done with one quantity, over its latest outcomes."""

    outcomes: int
    """Predictions held against their outcomes, ever."""
    mape: float | None
    """Mean of |predicted / actual - 1|."""
    median_error: float | None
    """Its median."""
    coverage: float | None
    """Share of outcomes below the upper end of the predicted range."""
    drift: float
    """Actual over predicted time of late, less 1: above 0 where everything takes longer than predicted."""


class Errors:
    """The outcomes of one predictor and quantity."""

    __slots__ = ("_drift", "_latest", "mean", "outcomes")

    def __init__(self) -> None:
        self.outcomes = 0
        self.mean = 0.0
        """Running mean of |log(actual / predicted)|."""
        self._drift = 0.0
        self._latest: deque[tuple[float, float, float | None]] = deque(maxlen=_RECENT)
        """Predicted, actual, upper end: what they amount to is worked out when somebody looks."""

    def note(self, predicted: float, actual: float, high: float | None) -> None:
        """A prediction and its outcome, above 0; `high`: the upper end of its range."""
        self._latest.append((predicted, actual, high))
        self.outcomes += 1
        gain = max(_GAIN, 1.0 / self.outcomes)
        error = log(actual / predicted)
        if not -_CLIP < error < _CLIP:
            error = _CLIP if error > 0.0 else -_CLIP
        self.mean += gain * (abs(error) - self.mean)
        self._drift += gain * (error - self._drift)

    def accuracy(self) -> Accuracy:
        """As it is now."""
        recent = [abs(predicted / actual - 1.0) for predicted, actual, _ in self._latest]
        covered = [actual <= high for _, actual, high in self._latest if high is not None]
        return Accuracy(
            outcomes=self.outcomes,
            mape=sum(recent) / len(recent) if recent else None,
            median_error=median(recent) if recent else None,
            coverage=sum(covered) / len(covered) if covered else None,
            drift=exp(self._drift) - 1.0,
        )


class TrackRecord:
    """The predictors' records on one variant.

    `source` is the one to believe. It changes only in `note`.
    """

    def __init__(self) -> None:
        self.errors = {(source, quantity): Errors() for source in _BANDS for quantity in Quantity}
        self._rivals = self.errors[Source.SHADOW, Quantity.TTFT], self.errors[Source.CLOSED_FORM, Quantity.TTFT]
        self.source = Source.SHADOW
        self.fallbacks = 0
        """Times a predictor was given up for a simpler one."""

    def note(
        self, source: Source, quantity: Quantity, predicted: float, actual: float, high: float | None = None
    ) -> None:
        """Hold a prediction against its outcome."""
        if predicted <= 0.0 or actual <= 0.0:
            return
        self.errors[source, quantity].note(predicted, actual, high)
        if source is _SHADOW and quantity is _TTFT and not self._shadow_stays():
            chosen = self._choose()
            if chosen is not self.source:
                self.fallbacks += _ORDER.index(chosen) > _ORDER.index(self.source)
                self.source = chosen

    def _shadow_stays(self) -> bool:
        """The shadow is believed, and there is nothing to choose: so it is nearly always."""
        shadow, closed = self._rivals
        return (
            self.source is _SHADOW and shadow.mean <= _SHADOW_BAND and shadow.mean <= max(_WORSE * closed.mean, _SMALL)
        )

    def _choose(self) -> Source:
        shadows, closed_forms = self._rivals
        if shadows.outcomes < _FEW or closed_forms.outcomes < _FEW:
            return self.source
        shadow, closed = shadows.mean, closed_forms.mean
        worse = 1.0 if self.source is not Source.SHADOW else _WORSE
        if self._within(Source.SHADOW, shadow) and shadow <= max(worse * closed, _SMALL):
            return Source.SHADOW
        return Source.CLOSED_FORM if self._within(Source.CLOSED_FORM, closed) else Source.TOKEN_LOAD

    def _within(self, source: Source, error: float) -> bool:
        believed = _ORDER.index(self.source) <= _ORDER.index(source)
        return error <= _BANDS[source] * (1.0 if believed else _BACK)


_SHADOW, _TTFT, _SHADOW_BAND = Source.SHADOW, Quantity.TTFT, _BANDS[Source.SHADOW]
_ORDER = (Source.SHADOW, Source.CLOSED_FORM, Source.TOKEN_LOAD)
