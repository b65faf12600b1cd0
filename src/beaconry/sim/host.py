"""One engine process in virtual time: steps on the event heap, starts, crashes, hangs, slow times.

Plain decode steps are taken many at once, so an engine costs an event per change of its batch and not per token; what arrives in
between takes back the steps that have not begun. `steps_at_once=1` is the naive version with an event per step.
"""

from collections.abc import Callable
from enum import StrEnum

from msgspec import Struct

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.sequence import Sequence
from beaconry.engine_model.step_time import StepTime
from beaconry.engine_model.values import EngineStatistics, StepResult
from beaconry.sim.heap import NEVER, EventHeap
from beaconry.values.endpoint import Endpoint, LoadSample

MANY_STEPS = 1 << 30


class Life(StrEnum):
    """Where an engine process is."""

    OFF = "off"
    """Not there, or dead: connections are refused."""
    STARTING = "starting"
    UP = "up"
    HUNG = "hung"
    """It takes connections and does nothing."""


class Slowed(Struct, frozen=True):
    """A `StepTime` that takes `factor` times as long as another."""

    whole: StepTime
    factor: float

    def seconds(self, sequences: int, context: float, prefill: int, attended: float) -> float:
        """Return the step's duration; see `StepTime`."""
        return self.factor * self.whole.seconds(sequences, context, prefill, attended)


class Host:
    """One engine and its life.

    Invariants: at most one valid step end is on the heap, that of version `_version`; none while off or starting.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        engine: Engine,
        heap: EventHeap,
        stepped: Callable[["Host", StepResult], None],
        fetch: Callable[[Sequence], None],
        *,
        steps_at_once: int = MANY_STEPS,
    ) -> None:
        """`stepped` is called after each step, or several plain ones, at their end; `fetch` for each sequence that has room for KV."""
        self.endpoint = endpoint
        self.engine = engine
        self.life = Life.UP
        self.listed = False
        """Discovery names it."""
        self._heap = heap
        self._stepped = stepped
        self._fetch = fetch
        self._steps_at_once = steps_at_once
        self._normal = engine.step_time
        self._factor = 1.0
        """Of the step's duration, from the next step on."""
        self._version = 0
        """Rises when a step end on the heap becomes void."""
        self._stepping = False
        """A step is in progress or about to begin."""
        self._several = False
        """Several steps are in progress: what arrives cuts them short."""
        self._missed_end = False
        """A step ended while hung."""
        self._leases_watched_s = NEVER
        """The earliest time on the heap at which a lease may end."""

    @property
    def name(self) -> str:
        """The endpoint's."""
        return self.endpoint.name

    @property
    def answers(self) -> bool:
        """It answers health checks and scrapes."""
        return self.life is Life.UP

    @property
    def reachable(self) -> bool:
        """It takes connections."""
        return self.life is Life.UP or self.life is Life.HUNG

    # -- sequences

    def submit(self, sequence: Sequence) -> None:
        """Hand in a sequence. CallerError if the engine refuses it."""
        self.engine.submit(sequence, self._heap.now_s)
        self._wake()

    def abort(self, sequence_id: str) -> None:
        """Drop a sequence."""
        self.engine.abort(sequence_id, self._heap.now_s)
        self._wake()

    # -- KV for and from other engines

    def imported(self, sequence_id: str) -> None:
        """The KV that a sequence waits for has come."""
        self.engine.catch_up(self._heap.now_s)
        if self.engine.imports.arrive(sequence_id):
            self._wake()

    def compute_instead(self, sequence_id: str) -> None:
        """The KV that a sequence waits for will not come: it is computed here."""
        self.engine.catch_up(self._heap.now_s)
        if self.engine.imports.lose(sequence_id):
            self._wake()

    def release(self, sequence_id: str) -> None:
        """Another engine has read what was kept for it, or does not want it."""
        self.engine.catch_up(self._heap.now_s)
        if self.engine.holdings.release(sequence_id):
            self._wake()

    def renew(self, sequence_id: str, until_s: float) -> None:
        """Keep a finished sequence's KV until then, if it is there at all."""
        self.engine.holdings.renew(sequence_id, until_s)
        self._watch_leases()

    def _watch_leases(self) -> None:
        end_s = self.engine.holdings.first_end_s
        if end_s < self._leases_watched_s:
            self._leases_watched_s = end_s
            self._heap.at(end_s, self._expire)

    def _expire(self) -> None:
        self._leases_watched_s = NEVER
        self.engine.catch_up(self._heap.now_s)
        if self.engine.holdings.expire(self._heap.now_s):
            self._wake()
        self._watch_leases()

    def statistics(self) -> EngineStatistics:
        """The engine's state and totals as of now."""
        if self.engine.planned_steps > 1:
            self.engine.catch_up(self._heap.now_s)
        return self.engine.statistics()

    def load_sample(self) -> LoadSample:
        """What a scrape of its metrics finds."""
        statistics, settings = self.statistics(), self.engine.settings
        return LoadSample(
            at_s=self._heap.now_s,
            running=statistics.running,
            waiting=statistics.waiting,
            deferred=len(self.engine.imports),
            kv_usage=statistics.kv_usage,
            kv_blocks=settings.num_blocks,
            block_tokens=settings.block_tokens,
        )

    # -- its life

    def crash(self) -> None:
        """Lose everything. The driver says what becomes of the legs."""
        self.life = Life.OFF
        self._version += 1
        self._stepping = self._several = self._missed_end = False
        self.engine = self.engine.fresh()

    def hang(self) -> None:
        """Stand still until `resume`, in the step under way."""
        if self._several:
            self._cut_short()
        self.life = Life.HUNG

    def resume(self) -> None:
        """Go on after a hang."""
        self.life = Life.UP
        if self._missed_end:
            self._missed_end = False
            self._heap.at(self._heap.now_s, self._finish, self._version)

    def slow(self, factor: float) -> None:
        """Take `factor` times as long as normal, from the next step on."""
        if self._several:
            self._cut_short()
        self._factor = factor

    # -- steps

    def _begin(self, version: int) -> None:
        if version != self._version:
            return
        now_s = self._heap.now_s
        self.engine.step_time = self._normal if self._factor == 1.0 else Slowed(self._normal, self._factor)
        duration_s = self.engine.begin_step(now_s, self._steps_at_once)
        self._stepping = duration_s is not None
        if duration_s is not None:
            self._several = self.engine.planned_steps > 1
            self._heap.at(now_s + duration_s, self._finish, version)
        for sequence in self.engine.imports.take_untold():
            self._fetch(sequence)

    def _finish(self, version: int) -> None:
        if version != self._version:
            return
        if self.life is Life.HUNG:
            self._missed_end = True
            return
        self._several = False
        self._stepped(self, self.engine.finish_step(self._heap.now_s))
        self._watch_leases()
        self._begin(self._version)

    def _wake(self) -> None:
        """Something is different: an engine that stands may have something to do, and several steps at once may be too many."""
        if self._several:
            self._cut_short()
        elif not self._stepping and not self.engine.idle:
            self._stepping = True  # an idle engine admits together what arrives at the same moment
            self._heap.at(self._heap.now_s, self._begin, self._version)

    def _cut_short(self) -> None:
        """End the steps taken at once with the one under way."""
        end_s = self.engine.shorten_step(self._heap.now_s)
        self._several = False
        self._version += 1
        self._heap.at(end_s, self._finish, self._version)
