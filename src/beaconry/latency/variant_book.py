"""What the endpoints of one variant teach together: step times, and how far predictions can be trusted.

A forecast's ITL lies between what the batch costs now and what it has cost on average: requests come and go while one decodes. How far
it is from now to average is learnt by least squares, as one number.
"""

from msgspec import Struct

from beaconry.latency.conformal import Range, Residuals
from beaconry.latency.step_fit import StepFit, StepTimes, Work
from beaconry.latency.track_record import Accuracy, Quantity, TrackRecord
from beaconry.values.candidate import Forecast, Prediction, Source

REGIMES = 8
"""TTFT regimes: an idle engine, one without much of a queue, with one, with hardly anything else; each with and without most of the
prompt cached."""
_SETTLED = 200
_EVERY = 8
"""Once settled, the fit takes every eighth lesson, and every eighth leg that teaches judges the closed form: more changes little."""
_LEGS_PER_S = 10.0
"""Once settled, so many legs a second teach, and of more a sample. A busy fleet thus learns as fast as a quiet one, at no more cost."""
_BLEND_KEPT = 0.99
_BLEND_PRIOR = 0.02
"""Weight of the belief that the batch of now and the average one matter alike."""


class Raw(Struct, frozen=True, gc=False):
    """What a shadow says of one placement, before anything that past predictions have taught."""

    ttft_s: float
    regime: int
    """0 to `REGIMES` - 1."""
    itl_now_s: float
    """With the batch of now, and as large a share of prefill as of late."""
    itl_average_s: float
    """With the batch of late as well."""
    uncached: int
    """Prompt tokens believed to be computed."""


class Foreseen(Struct, frozen=True, kw_only=True, gc=False):
    """All predictions for one placement."""

    ttft_s: float
    """The shadow's, before any correction."""
    regime: int
    """0 to `REGIMES` - 1."""
    ttft: Range
    """What the range of its TTFT is at this moment, as factors on `ttft_s`."""
    itl_now_s: float
    """With the batch of now, and as large a share of prefill as of late."""
    itl_average_s: float
    """With the batch of late as well."""
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
        self._taught = 0
        self._next_s = 0.0
        """From when on a leg may teach, once settled."""
        # Ratios of actual to predicted times: the shadow's TTFT by regime, and for those that have too few yet together.
        self._ttft = [Residuals(coverage) for _ in range(REGIMES)]
        self._any_ttft = Residuals(coverage)
        self._closed_ttft = Residuals(coverage)
        self._itl = Residuals(coverage)
        self._closed_itl = Residuals(coverage)
        # ITL = average + blend x (now - average): sums of products for the blend.
        self._blend_above = 0.5 * _BLEND_PRIOR
        self._blend_below = _BLEND_PRIOR
        self._blend = 0.5

    # -- forecasts

    def foresee(self, raw: Raw) -> Foreseen:
        """The shadow's predictions with the ranges of this moment."""
        return Foreseen(
            ttft_s=raw.ttft_s,
            regime=raw.regime,
            ttft=self._ttft_range(raw.regime),
            itl_now_s=raw.itl_now_s,
            itl_average_s=raw.itl_average_s,
            itl_s=self._itl_s(raw),
            itl=self._itl.range,
        )

    def _ttft_range(self, regime: int) -> Range:
        mine = self._ttft[regime]
        return mine.range if mine.known else self._any_ttft.range

    def _itl_s(self, raw: Raw) -> float:
        return raw.itl_average_s + self._blend * (raw.itl_now_s - raw.itl_average_s)

    def forecast(self, raw: Raw, closed: Prediction | None, strictest_itl_s: float | None) -> Forecast:
        """The shadow's forecast, or with `closed` that of the closed form."""
        if closed is None:
            ttft_s, itl_s, ttft, itl = raw.ttft_s, self._itl_s(raw), self._ttft_range(raw.regime), self._itl.range
        else:
            ttft_s, itl_s, ttft, itl = closed.ttft_s, closed.itl_s, self._closed_ttft.range, self._closed_itl.range
        return Forecast(
            source=self.record.source,
            ttft_s=ttft_s * ttft.middle,
            ttft_low_s=ttft_s * ttft.low,
            ttft_high_s=ttft_s * ttft.high,
            itl_s=itl_s * itl.middle,
            itl_mean_s=itl_s * itl.mean,
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

    def teaches(self, now_s: float) -> bool:
        """The leg now sent is to teach."""
        if self._taught >= _SETTLED:
            if now_s < self._next_s:
                return False
            self._next_s = max(self._next_s, now_s - 1.0) + 1.0 / _LEGS_PER_S
        self._taught += 1
        return True

    def judges_closed(self) -> bool:
        """The closed form is to be judged by the leg now sent, which teaches."""
        return self._taught < _SETTLED or self._taught % _EVERY == 0

    def judge_ttft(self, foreseen: Foreseen, closed: Prediction | None, actual_s: float, *, teaches: bool) -> None:
        """Hold the predictions of a TTFT against it, that of the closed form if there is one; learn from it if it `teaches`."""
        if actual_s <= 0.0:
            return
        raw_s, mine = foreseen.ttft_s, self._ttft[foreseen.regime]
        high_s = raw_s * foreseen.ttft.high
        covered = actual_s <= high_s
        self.record.note(Source.SHADOW, Quantity.TTFT, raw_s * foreseen.ttft.middle, actual_s, high_s)
        if not teaches:
            return
        if mine.known:
            mine.add(actual_s / raw_s, covered=covered)
        else:
            self._any_ttft.add(actual_s / raw_s, covered=covered)
            mine.add(actual_s / raw_s, covered=None)
        if closed is not None:
            self._judge_closed(Quantity.TTFT, self._closed_ttft, closed.ttft_s, actual_s)

    def judge_itl(self, foreseen: Foreseen, closed: Prediction | None, actual_s: float, *, teaches: bool) -> None:
        """Hold the predictions of a mean ITL against it; learn from it, also how far the batch of now matters, if it `teaches`."""
        raw_s, high_s = foreseen.itl_s, foreseen.itl_s * foreseen.itl.high
        self.record.note(Source.SHADOW, Quantity.ITL, raw_s * foreseen.itl.middle, actual_s, high_s)
        if not teaches:
            return
        self._itl.add(actual_s / raw_s, covered=actual_s <= high_s)
        apart = (foreseen.itl_now_s - foreseen.itl_average_s) / actual_s
        reached = (actual_s - foreseen.itl_average_s) / actual_s
        fresh = (1.0 - _BLEND_KEPT) * _BLEND_PRIOR
        self._blend_above = _BLEND_KEPT * self._blend_above + apart * reached + 0.5 * fresh
        self._blend_below = _BLEND_KEPT * self._blend_below + apart * apart + fresh
        self._blend = min(max(self._blend_above / self._blend_below, 0.0), 1.0)
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
