"""What the endpoints of one variant teach together: step times, how far predictions can be trusted, and what a step has to do on average.

A forecast's ITL lies between what the batch costs now and what legs have met on average: requests come and go while one decodes. How far
it is from now to average is learnt by least squares, as one number.
"""

from msgspec import Struct

from beaconry.latency.conformal import Range, Residuals
from beaconry.latency.step_fit import STEPS, StepFit, StepTimes, Work
from beaconry.latency.track_record import Accuracy, Quantity, TrackRecord
from beaconry.values.candidate import Forecast, Prediction, Source

REGIMES = 8
"""TTFT regimes: an idle engine, one without much of a queue, with one, with hardly anything else; each with and without most of the
prompt cached."""
_SETTLED = 200
_EVERY = 8
"""Once settled, the fit takes every eighth lesson, and every eighth request judges the closed form: more costs time and changes little."""
_MEAN_KEPT = 0.97
"""What a leg keeps of its weight in the mean step when the next one has ended: about the last thirty count."""
_BLEND_KEPT = 0.99
_BLEND_PRIOR = 0.02
"""Weight of the belief that the batch of now and the average one matter alike."""


class Foreseen(Struct, frozen=True, kw_only=True, gc=False):
    """All predictions for one placement."""

    ttft_s: float
    """The shadow's, before any correction."""
    regime: int
    """0 to `REGIMES` - 1."""
    ttft: Range
    """What the range of its TTFT is at this moment, as factors on `ttft_s`."""
    itl_now_s: float
    """With the batch of now, and as much prefill beside it as on average."""
    itl_average_s: float
    """With what steps have to do on average."""
    itl_s: float
    """Between the two."""
    itl: Range
    """As `ttft`, on `itl_s`."""


class VariantStatistics(Struct, frozen=True, kw_only=True):
    """How well a variant is known."""

    source: Source
    """What its forecasts come from at present."""
    fallbacks: int
    steps: StepTimes
    """Learnt step times."""
    lessons: int
    gated: int
    """Lessons that were left out as outliers."""
    accuracy: dict[tuple[Source, Quantity], Accuracy]


class VariantBook:
    """One variant.

    Attributes:
        fit: its step times.
        record: how right predictions have been.

    """

    def __init__(self, name: str, coverage: float) -> None:
        self._coverage = coverage
        self.fit = StepFit(name)
        self.record = TrackRecord()
        self._lessons = 0
        self._judged = 0
        # Ratios of actual to predicted times: the shadow's TTFT by regime, and for those that have too few yet together.
        self._ttft = [Residuals(coverage) for _ in range(REGIMES)]
        self._any_ttft = Residuals(coverage)
        self._closed_ttft = Residuals(coverage)
        self._itl = Residuals(coverage)
        self._closed_itl = Residuals(coverage)
        # ITL = average + blend x (now - average): sums of products for the blend.
        self._blend_above = 0.5 * _BLEND_PRIOR
        self._blend_below = _BLEND_PRIOR

    # -- forecasts

    def foresee(self, ttft_s: float, regime: int, itl_now_s: float, itl_average_s: float) -> Foreseen:
        """The shadow's predictions with the ranges of this moment."""
        mine = self._ttft[regime]
        blend = min(max(self._blend_above / self._blend_below, 0.0), 1.0)
        return Foreseen(
            ttft_s=ttft_s,
            regime=regime,
            ttft=mine.range if mine.known else self._any_ttft.range,
            itl_now_s=itl_now_s,
            itl_average_s=itl_average_s,
            itl_s=itl_average_s + blend * (itl_now_s - itl_average_s),
            itl=self._itl.range,
        )

    def forecast(self, foreseen: Foreseen, closed: Prediction | None, strictest_itl_s: float | None) -> Forecast:
        """The shadow's forecast, or with `closed` that of the closed form."""
        if closed is None:
            ttft_s, itl_s, ttft, itl = foreseen.ttft_s, foreseen.itl_s, foreseen.ttft, foreseen.itl
        else:
            ttft_s, itl_s, ttft, itl = closed.ttft_s, closed.itl_s, self._closed_ttft.range, self._closed_itl.range
        return Forecast(
            source=self.record.source,
            ttft_s=ttft_s * ttft.middle,
            ttft_low_s=ttft_s * ttft.low,
            ttft_high_s=ttft_s * ttft.high,
            itl_s=itl_s * itl.middle,
            itl_low_s=itl_s * itl.low,
            itl_high_s=itl_s * itl.high,
            tail=1.0 - self._coverage,
            strictest_itl_s=strictest_itl_s,
        )

    # -- lessons

    def learn(self, work: Work, seconds: float) -> None:
        """A lesson in step times."""
        self._lessons += 1
        if self.fit.observed < _SETTLED or self._lessons % _EVERY == 0:
            self.fit.observe(work, seconds)

    def judges_closed(self) -> bool:
        """The closed form is to be judged by the request now sent."""
        self._judged += 1
        return self._judged < _SETTLED or self._judged % _EVERY == 0

    def judge_ttft(self, foreseen: Foreseen, closed: Prediction | None, actual_s: float) -> None:
        """Hold the predictions of a TTFT against it, that of the closed form if there is one."""
        if actual_s <= 0.0:
            return
        raw_s, mine = foreseen.ttft_s, self._ttft[foreseen.regime]
        high_s = raw_s * foreseen.ttft.high
        covered = actual_s <= high_s
        self.record.note(Source.SHADOW, Quantity.TTFT, raw_s * foreseen.ttft.middle, actual_s, high_s)
        if mine.known:
            mine.add(actual_s / raw_s, covered=covered)
        else:
            self._any_ttft.add(actual_s / raw_s, covered=covered)
            mine.add(actual_s / raw_s, covered=None)
        if closed is not None:
            self._judge_closed(Quantity.TTFT, self._closed_ttft, closed.ttft_s, actual_s)

    def judge_itl(self, foreseen: Foreseen, closed: Prediction | None, actual_s: float) -> None:
        """Hold the predictions of a mean ITL against it, and learn how far the batch of now matters."""
        raw_s, high_s = foreseen.itl_s, foreseen.itl_s * foreseen.itl.high
        self.record.note(Source.SHADOW, Quantity.ITL, raw_s * foreseen.itl.middle, actual_s, high_s)
        self._itl.add(actual_s / raw_s, covered=actual_s <= high_s)
        apart = (foreseen.itl_now_s - foreseen.itl_average_s) / actual_s
        reached = (actual_s - foreseen.itl_average_s) / actual_s
        fresh = (1.0 - _BLEND_KEPT) * _BLEND_PRIOR
        self._blend_above = _BLEND_KEPT * self._blend_above + apart * reached + 0.5 * fresh
        self._blend_below = _BLEND_KEPT * self._blend_below + apart * apart + fresh
        if closed is not None:
            self._judge_closed(Quantity.ITL, self._closed_itl, closed.itl_s, actual_s)

    def _judge_closed(self, quantity: Quantity, residuals: Residuals, predicted_s: float, actual_s: float) -> None:
        spread = residuals.range
        high_s = predicted_s * spread.high
        self.record.note(Source.CLOSED_FORM, quantity, predicted_s * spread.middle, actual_s, high_s)
        residuals.add(actual_s / predicted_s, covered=actual_s <= high_s)

    def statistics(self) -> VariantStatistics:
        """As it is now."""
        return VariantStatistics(
            source=self.record.source,
            fallbacks=self.record.fallbacks,
            steps=self.fit.times,
            lessons=self.fit.observed,
            gated=self.fit.gated,
            accuracy={key: errors.accuracy() for key, errors in self.record.errors.items()},
        )


class MeanStep:
    """What a step that legs decode in has to do, on average over the latest legs, each by its number of steps."""

    __slots__ = ("sums",)

    def __init__(self) -> None:
        self.sums: Work = []
        """By weight; empty before the first leg."""

    def add(self, work: Work) -> None:
        """The steps of one leg's decode."""
        self.sums = [_MEAN_KEPT * a + b for a, b in zip(self.sums, work, strict=True)] if self.sums else work

    def step(self) -> Work | None:
        """The mean; None before the first leg."""
        sums = self.sums
        return [part / sums[STEPS] for part in sums] if sums else None
