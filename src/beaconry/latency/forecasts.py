"""Forecasts of TTFT and ITL on each endpoint, from a shadow per endpoint and what its variant has taught.

The router tells what happens to its legs. Each of them yields up to three lessons: how long the steps between two seen ends of steps took,
how long its own decode took (its number of steps is known from the usage), and how right the forecasts made at its dispatch were. The
first legs of an engine teach nothing: it is still compiling and capturing graphs.
"""

from beaconry.latency.rates import RateBook
from beaconry.latency.replies import Replies
from beaconry.latency.shadow import Shadow
from beaconry.latency.step_fit import CONTEXT, SEQUENCES, STEPS, Work
from beaconry.latency.variant_book import Foreseen, Raw, VariantBook, VariantStatistics
from beaconry.values.candidate import Candidate, Forecast, Prediction, Source
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.request import Request, Usage

_FIRST_LEGS = 3
"""Legs of a new engine that teach nothing."""
_FACTOR_GAIN = 0.05
_FACTOR_PULL = 0.002
"""An engine's factor drifts back to 1, so that a change of all engines ends up in their variant's fit."""
_FACTORS = (0.25, 8.0)
_SAMPLES = 3
"""Metrics scrapes that must agree: a scrape is older than our counters, and catches queues that last no longer than a step."""


class _Twin:
    """One endpoint."""

    def __init__(self, endpoint: Endpoint, book: VariantBook) -> None:
        self.endpoint = endpoint
        self.book = book
        self.shadow = Shadow(book.fit)
        self.replies = Replies()
        self.legs = 0
        """Legs that have taught or could have."""
        self._objectives: dict[int, float] = {}
        """ITL objectives of the legs in flight that have one."""
        self._strictest_s: float | None = None
        """The least of them; None while it is not known."""
        self._scrapes: list[tuple[int, int, int, int]] = []
        """Running, waiting, and our own count of both, at the latest scrapes."""

    def begin_objective(self, leg: int, itl_s: float) -> None:
        """A leg with an ITL objective is sent there."""
        self._objectives[leg] = itl_s
        if self._strictest_s is not None and itl_s < self._strictest_s:
            self._strictest_s = itl_s

    def end_objective(self, leg: int) -> None:
        """It is over."""
        if self._objectives.pop(leg, None) == self._strictest_s:
            self._strictest_s = None

    def strictest_s(self) -> float | None:
        """The strictest ITL objective there."""
        if self._strictest_s is None and self._objectives:
            self._strictest_s = min(self._objectives.values())
        return self._strictest_s

    def learn(self, work: Work, seconds: float) -> None:
        """Steps that had to do `work` took so many seconds: of that, the engine's factor is its own, the rest its variant's."""
        shadow, book = self.shadow, self.book
        factor = shadow.factor
        ratio = seconds / max(book.fit.seconds(work), 1e-9)
        factor += _FACTOR_GAIN * (min(max(ratio, factor / 3), factor * 3) - factor)
        factor += _FACTOR_PULL * (1.0 - factor)
        shadow.factor = min(max(factor, _FACTORS[0]), _FACTORS[1])
        book.learn(work, seconds / shadow.factor)

    def begin(self, sample: LoadSample) -> None:
        """Nobody was followed there until now: all that the latest scrape shows are somebody else's."""
        self.note(sample)
        self._scrapes *= _SAMPLES - 1
        self.shadow.strangers = (sample.running or 0) + (sample.waiting or 0)

    def note(self, sample: LoadSample) -> None:
        """Learn from a scrape how much memory there is, and who is there."""
        shadow = self.shadow
        if sample.block_tokens:
            self.replies.block_tokens = sample.block_tokens
        if sample.kv_blocks and sample.block_tokens:
            shadow.capacity = float(sample.kv_blocks * sample.block_tokens)
            if sample.kv_usage is not None:
                shadow.shared = 0.0
                shadow.shared = max(shadow.used - sample.kv_usage * shadow.capacity, 0.0)
        if sample.running is not None:
            self._note_running(sample.running, sample.waiting or 0, sample.queued)

    def _note_running(self, running: int, waiting: int, queued: int) -> None:
        """Learn from scrapes who else is there, and how many sequences run at once: an engine that runs the same number time and again
        while others wait for one has no more places. Those `queued` are among those `waiting`."""
        shadow = self.shadow
        scrapes = self._scrapes = [*self._scrapes[1 - _SAMPLES :], (running, waiting, queued, shadow.legs)]
        if len(scrapes) < _SAMPLES:
            return
        shadow.strangers = max(min(r + w - ours for r, w, _, ours in scrapes), 0)
        if running > shadow.slots:
            shadow.slots = float("inf")
        if running and all(r == running and q for r, _, q, _ in scrapes):
            shadow.slots = running


class _Open:
    """One leg in flight, and what was foreseen for it at dispatch: None if it does not stream, for then it shows neither TTFT nor ITL."""

    __slots__ = ("candidate", "closed", "dispatched_s", "first_s", "foreseen", "mark", "request", "teaches", "twin")

    def __init__(
        self, twin: _Twin, request: Request, candidate: Candidate, foreseen: Foreseen | None, now_s: float
    ) -> None:
        self.twin = twin
        self.request = request
        self.candidate = candidate
        self.foreseen = foreseen
        self.teaches = foreseen is not None and twin.book.teaches(now_s)
        self.closed: Prediction | None = None
        """The closed form's prediction, if that is to be judged as well."""
        self.dispatched_s = now_s
        self.first_s: float | None = None
        self.mark: Work = []
        """What the engine had done at its first byte; of a leg that teaches."""


class Forecasts:
    """All endpoints' forecasts. A ForecastSource for the scheduler; the router reports what happens to its legs."""

    def __init__(self, rates: RateBook, coverage: float = 0.9, *, idle: bool = False) -> None:
        """`coverage`: share of outcomes that shall lie below the upper end of the range. `idle`: see `_idle`."""
        self._idle = idle
        """Nobody has had an objective yet, so nobody asks: legs are not followed, which costs more than placing them. From the first
        objective on they are; those in flight then are to the shadows what other routers' are."""
        self._rates = rates
        self._coverage = coverage
        self._books: dict[str, VariantBook] = {}
        self._twins: dict[str, _Twin] = {}
        self._open: dict[int, _Open] = {}
        self._asked: tuple[str, float] = ("", 0.0)
        """Request and time of the latest forecasts."""
        self._raw: dict[str, Raw] = {}
        """What was foreseen for it, by endpoint: it goes to one of them right after."""

    # -- what the scheduler asks

    def predict(self, request: Request, candidate: Candidate) -> Prediction:
        """The closed form's."""
        return self._rates.predict(request, candidate)

    def forecast(self, request: Request, candidate: Candidate, now_s: float) -> Forecast:
        """TTFT and ITL of `request` on `candidate`, by the best source that has been right of late."""
        name = candidate.endpoint.name
        twin = self._twins.get(name)
        if twin is None or twin.endpoint is not candidate.endpoint:
            twin = self._twin(candidate.endpoint, candidate.sample)
        self._idle = False
        if self._asked != (request.id, now_s):
            self._asked = (request.id, now_s)
            self._raw = {}
        raw = self._raw[name] = self._ask(request, candidate, twin, now_s)
        believed = twin.book.record.source is Source.SHADOW
        closed = None if believed else self._rates.predict(request, candidate)
        return twin.book.forecast(raw, closed, twin.strictest_s())

    # -- what the router tells

    def dispatched(self, leg: int, request: Request, candidate: Candidate, now_s: float) -> None:
        """`request` has been sent to `candidate`."""
        if self._idle:
            if request.slo_ttft_s is None and request.slo_itl_s is None:
                return
            self._idle = False
        twin = self._twin(candidate.endpoint, candidate.sample)
        raw = self._raw.get(twin.endpoint.name) if self._asked == (request.id, now_s) else None
        if raw is None:
            raw = self._ask(request, candidate, twin, now_s)
        foreseen = twin.book.foresee(raw) if request.stream else None
        opened = self._open[leg] = _Open(twin, request, candidate, foreseen, now_s)
        if opened.teaches and twin.book.judges_closed():
            opened.closed = self._rates.predict(request, candidate)
        if request.slo_itl_s is not None:
            twin.begin_objective(leg, request.slo_itl_s)
        twin.shadow.dispatch(
            leg,
            prompt_tokens=request.prompt_tokens,
            uncached=raw.uncached,
            silent=foreseen is None,
            now_s=now_s,
        )

    def first_byte(self, leg: int, now_s: float) -> None:
        """The first byte of a leg's answer came."""
        opened = self._open.get(leg)
        if opened is None or opened.foreseen is None:
            return
        twin = opened.twin
        twin.shadow.first_byte(leg, now_s)
        opened.first_s = now_s
        if opened.teaches:
            self._take_seen(twin)
            opened.mark = twin.shadow.work.copy()
        if twin.legs >= _FIRST_LEGS:
            took_s = now_s - opened.dispatched_s
            twin.book.judge_ttft(opened.foreseen, opened.closed, took_s, teaches=opened.teaches)

    def ended(self, leg: int, usage: Usage | None, now_s: float, *, finished: bool) -> None:
        """A leg is over; `usage` is what the engine reported, if it `finished` and did."""
        opened = self._open.pop(leg, None)
        if opened is None:
            return
        twin = opened.twin
        twin.end_objective(leg)
        twin.shadow.end(leg, now_s, finished=finished and opened.foreseen is not None)
        if opened.teaches:
            self._take_seen(twin)
        if finished and usage is not None and usage.completion_tokens:
            twin.shadow.output_tokens = self._rates.output_tokens(twin.endpoint.variant)
            twin.legs += 1
            _learn_replies(opened, usage)
            if twin.legs > _FIRST_LEGS and usage.completion_tokens > 1:
                _learn_decode(opened, usage.completion_tokens - 1, now_s)

    def sampled(self, endpoint: Endpoint, sample: LoadSample) -> None:
        """An engine's metrics were read: they tell its memory, and what others than we have sent there."""
        if not self._idle:
            self._twin(endpoint, sample).note(sample)

    def forget(self, name: str) -> None:
        """The endpoint is gone, or somebody else by now; legs still in flight there teach nothing any more."""
        self._twins.pop(name, None)
        self._open = {leg: opened for leg, opened in self._open.items() if opened.twin.endpoint.name != name}

    # -- looking in

    def statistics(self) -> dict[str, VariantStatistics]:
        """How well each variant is known."""
        return {name: book.statistics() for name, book in self._books.items()}

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        for twin in self._twins.values():
            mine = {leg: opened for leg, opened in self._open.items() if opened.twin is twin}
            twin.shadow.check(
                [leg for leg, opened in mine.items() if opened.first_s is None],
                [leg for leg, opened in mine.items() if opened.first_s is not None],
            )

    # -- forecasts

    def _ask(self, request: Request, candidate: Candidate, twin: _Twin, now_s: float) -> Raw:
        """What the shadow says of one placement."""
        shadow, matched = twin.shadow, candidate.matched_tokens
        prompt = request.prompt_tokens
        uncached = prompt - matched - candidate.fetched_tokens
        if matched:
            uncached -= int(twin.replies.share * _beyond(twin.replies, request, candidate))
        ttft_s, wait_s, decode_s = shadow.foresee(prompt, uncached, now_s)
        ttft_s += candidate.load_s
        queue = 0 if not shadow.legs else 2 if wait_s < 0.25 * ttft_s else 4 if wait_s < 0.75 * ttft_s else 6
        regime = queue + (2 * matched > prompt)
        met = shadow.interference
        stretch, average_s = met.stretch, met.step_s
        itl_s = decode_s * stretch
        average_s = itl_s if average_s is None else shadow.factor * average_s * stretch
        return Raw(ttft_s, regime, itl_s, average_s, uncached)

    # -- lessons

    def _take_seen(self, twin: _Twin) -> None:
        """Learn from the steps that the last event has shown."""
        seen = twin.shadow.take_seen()
        if seen is None or twin.legs < _FIRST_LEGS:
            return
        twin.learn(seen.work, seen.seconds)

    # -- who is who

    def _twin(self, endpoint: Endpoint, sample: LoadSample | None) -> _Twin:
        """The endpoint's; a new one begins with what the latest scrape says."""
        twin = self._twins.get(endpoint.name)
        if twin is None or twin.endpoint.variant != endpoint.variant:
            twin = self._twins[endpoint.name] = _Twin(endpoint, self._book(endpoint.variant))
            if sample is not None:
                twin.begin(sample)
        return twin

    def _book(self, variant: str) -> VariantBook:
        book = self._books.get(variant)
        if book is None:
            book = self._books[variant] = VariantBook(variant, self._coverage)
        return book


def _beyond(replies: Replies, request: Request, candidate: Candidate) -> int:
    """Tokens that follow the matched ones in the cache if replies are found. An engine's own events tell of replies as well."""
    if candidate.exact or candidate.loads or candidate.fetched_tokens:
        return 0
    return replies.beyond(request, candidate.matched_tokens)


def _learn_replies(opened: _Open, usage: Usage) -> None:
    """Note what a leg has left in the cache, and whether what an earlier one had left was there."""
    replies, request, candidate = opened.twin.replies, opened.request, opened.candidate
    if usage.cached_tokens is not None and candidate.matched_tokens:
        beyond = _beyond(replies, request, candidate)
        if beyond:
            replies.found(beyond, usage.cached_tokens - candidate.matched_tokens)
    replies.ended(request, usage.prompt_tokens, usage.completion_tokens)


def _learn_decode(opened: _Open, steps: int, now_s: float) -> None:
    """Judge and learn from a leg's whole decode: of its steps the number is known, and what went on in them from the shadow."""
    twin, foreseen = opened.twin, opened.foreseen
    if foreseen is None or opened.first_s is None or now_s <= opened.first_s:
        return
    seconds = now_s - opened.first_s
    twin.book.judge_itl(foreseen, opened.closed, seconds / steps, teaches=opened.teaches)
    if not opened.teaches:
        return
    work = [after - before for after, before in zip(twin.shadow.work, opened.mark, strict=True)]
    if work[STEPS] <= 0.0:
        return
    scale = steps / work[STEPS]
    work[STEPS] = steps
    work[SEQUENCES] *= scale
    work[CONTEXT] *= scale
    twin.learn(work, seconds)
