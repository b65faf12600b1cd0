"""The engine as a step machine: continuous batching over a paged, prefix-cached KV memory. No clock: the driver brings the time.

    engine.submit(sequence, now_s)
    while (duration_s := engine.begin_step(now_s)) is not None:
        now_s += duration_s
        result = engine.finish_step(now_s)

It schedules as vLLM's `v1/core/sched/scheduler.py` does by default. Each step has a budget of tokens. First every running sequence gets
its next token, or the next chunk of its prompt; who finds no block preempts the running sequence that came last, which loses its blocks
and is computed again later. Then waiting sequences are admitted in order, as long as budget, places and blocks for all their tokens are
left; the first that does not fit stops the admission. Cached prefix blocks are shared, but at least the last token is computed. Blocks
are shareable from the step on that computes them, so two sequences admitted together compute a common prefix once. Blocks found in a
tier beside the GPU are loaded before the step instead of computed. A chunk takes what is left of the budget, so at most one running
sequence is in mid-prompt, and it is the last one. A prompt may be computed on one engine and decoded on another: see `handover.py`.

With `by_priority` the least urgent running sequence is preempted, and waits in its old place; one that waits, however urgent, preempts
nobody.

Not modelled: speculative decoding, sliding windows, asynchronous scheduling. One difference: by priority, a running sequence that finds
no block and is itself the least urgent does not keep those behind it from running in the same step.
"""

from collections.abc import Collection
from operator import attrgetter
from random import Random

from beaconry.engine_model.block_pool import BlockPool
from beaconry.engine_model.calendar import DecodeCalendar
from beaconry.engine_model.handover import Holdings, Imports
from beaconry.engine_model.offload_tier import OffloadTier
from beaconry.engine_model.plain_steps import count_steps, pass_steps
from beaconry.engine_model.sequence import Phase, Sequence
from beaconry.engine_model.step_span import StepSpan, draw_noise, sum_load
from beaconry.engine_model.step_time import StepTime
from beaconry.engine_model.values import EngineSettings, EngineStatistics, StepResult
from beaconry.engine_model.waiting_queue import WaitingQueue
from beaconry.values.errors import CallerError, InternalError
from beaconry.values.kv_events import KvEvent
from beaconry.values.stage import Stage


class Engine:
    """One engine replica.

    Invariants (`check`): a submitted sequence is in exactly one of `_waiting`, `imports`, in mid-prompt (`_partial`, or in `_chunks`
    while a step is in progress) and `_calendar`; waiting ones hold no blocks; of those that have left, only the ones in `holdings` hold
    any; blocks are conserved.

    Attributes:
        imports: sequences that wait for KV from elsewhere: the driver asks it for them, and tells it what has come.
        holdings: sequences whose KV other engines may fetch, driven likewise.
        step_time: may be replaced between steps.

    """

    def __init__(
        self,
        settings: EngineSettings,
        step_time: StepTime,
        *,
        rng: Random | None = None,
        record_events: bool = False,
        tiers: Collection[OffloadTier] = (),
    ) -> None:
        """`tiers` hold copies of its cached blocks beside the GPU, fastest first."""
        self.settings = settings
        self.step_time = step_time
        self._rng = rng
        self._pool = BlockPool(
            settings.num_blocks,
            settings.block_tokens,
            caching=settings.prefix_caching,
            record_events=record_events,
            tiers=tuple(tiers),
        )
        self._sequences: dict[str, Sequence] = {}
        self._waiting = WaitingQueue(by_priority=settings.by_priority)
        self._partial: Sequence | None = None
        self._calendar = DecodeCalendar(settings.block_tokens)
        self._serials = 0
        self._admissions = 0
        self.imports = Imports(self._pool, self._waiting)
        self.holdings = Holdings(self._pool)
        # The step in progress, None between steps; its prompt chunks, and the time to load blocks for them.
        self._span: StepSpan | None = None
        self._chunks: list[tuple[Sequence, int]] = []
        self._loading_s = 0.0
        self._blocked = False  # the first waiting sequence found too few free blocks at the latest admission
        self._preempted: list[Sequence] = []  # since the last step that ended
        # Totals.
        self._prefix_queries = self._prefix_hits = self._preemptions = 0
        self._tier_queries = self._loaded_tokens = 0
        self._prompt_tokens = self._computed_tokens = self._generation_tokens = 0

    # -- sequences

    @property
    def idle(self) -> bool:
        """True if nobody is here, and nobody's blocks are kept for a reader."""
        return not self._sequences and not self.holdings

    @property
    def planned_steps(self) -> int:
        """How many steps the one in progress stands for; 0 if none is."""
        return 0 if self._span is None else self._span.planned

    @property
    def decoding(self) -> Collection[Sequence]:
        """The sequences that have a token and get more."""
        return self._calendar.members

    def submit(self, sequence: Sequence, now_s: float) -> None:
        """Queue a new sequence. CallerError if it can never fit into the KV memory, or its id is in use."""
        if sequence.phase is not Phase.NEW or sequence.id in self._sequences:
            raise CallerError(f"sequence {sequence.id!r} was submitted before: make a new one with its own id")
        if sequence.prompt_tokens < 1 or sequence.output_tokens < 1:
            raise CallerError("a sequence needs at least one prompt token and one output token")
        settings = self.settings
        capacity = settings.num_blocks * settings.block_tokens
        if sequence.prompt_tokens + sequence.output_tokens > capacity:
            raise CallerError(
                f"prompt ({sequence.prompt_tokens}) and output ({sequence.output_tokens}) tokens exceed the KV memory of "
                f"{capacity} tokens: shorten them, or give the engine more blocks"
            )
        sequence.arrived_s = now_s
        sequence.serial = self._serials
        self._serials += 1
        self._sequences[sequence.id] = sequence
        self._waiting.push(sequence)

    def abort(self, sequence_id: str, now_s: float) -> bool:
        """Drop a sequence and free its blocks at once, also in mid-step. False if it is not (or no longer) here."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return False
        if sequence.phase is Phase.WAITING:
            self._waiting.discard(sequence)
        elif sequence.phase is Phase.IMPORT:
            self.imports.discard(sequence)
        else:
            self._stop_running(sequence)
        self._end(sequence, Phase.ABORTED, now_s)
        return True

    def take_events(self) -> list[KvEvent]:
        """Return the KV events since the last call, oldest first; none unless the engine records them."""
        return self._pool.take_events()

    def adapters(self) -> tuple[set[str], set[str]]:
        """Names of the LoRA adapters that some sequence runs with, and that some waits for. Walks over all sequences."""
        running, waiting = set[str](), set[str]()
        for sequence in self._sequences.values():
            if (lora := sequence.content.lora) is not None:
                (waiting if sequence.phase in (Phase.WAITING, Phase.IMPORT) else running).add(lora)
        return running, waiting

    def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks; False, and nothing done, while any sequence holds blocks."""
        return self._pool.clear()

    # -- steps

    def begin_step(self, now_s: float, max_steps: int = 1) -> float | None:
        """Schedule the next step and return its duration in seconds; None if there is nothing to compute.

        Where there are sequences nevertheless, all of them wait for KV, or for blocks that are kept: begin again when some have come,
        or gone. With `max_steps` above 1, plain decode steps are taken several at once, as long as none but the last ends a sequence and
        nobody could be admitted between them. The duration is that of all; `shorten_step` takes back those not begun.
        """
        if self._span is not None:
            raise InternalError("begin_step: the step before is not finished")
        if not self._sequences:
            return None
        preempted_before = len(self._preempted)
        self._chunks = []
        self._loading_s = 0.0
        budget = self.settings.max_num_batched_tokens - len(self._calendar)
        chunk = 0
        if self._partial is not None:
            chunk = self._chunk_of(self._partial, budget)
        if self._blocks_to_grow(chunk) <= self._pool.free:
            self._grow_decoding()
            if self._partial is not None and chunk:
                self._compute(self._partial, chunk)
        else:
            self._grow_in_order()
        preempting = len(self._preempted) > preempted_before
        if not preempting:
            self._admit(budget - chunk, now_s)
        elif not self._chunks and not len(self._calendar):
            self._calendar.advance()  # all are preempted: an empty step
            self._admit(self.settings.max_num_batched_tokens, now_s)
        if not self._chunks and not len(self._calendar):
            return None
        load, noise = sum_load(self._calendar, self._chunks), draw_noise(self.settings.step_noise, self._rng)
        self._span = StepSpan(self.step_time, now_s, load, self._loading_s, noise)
        if max_steps > 1 and not preempting:
            self._span.planned = self._count_plain_steps(max_steps)
        return self._span.duration_s(self._span.planned)

    def shorten_step(self, now_s: float) -> float:
        """Take back the steps of `begin_step` that have not begun at `now_s`; return when the one under way ends.

        Called when something arrives while several steps are taken at once, so that it is not kept waiting for all of them.
        """
        if self._span is None:
            raise InternalError("shorten_step: no step is in progress")
        return self._span.shorten(now_s)

    def catch_up(self, now_s: float) -> None:
        """Commit those of several steps that have ended by `now_s`, so that state and statistics are as of then.

        The step under way at `now_s`, and those planned after it, go on as before.
        """
        if self._span is not None:
            pass_steps(self._calendar, self._pool, self._span.advance(now_s))

    def finish_step(self, now_s: float) -> StepResult:
        """Commit the step in progress: tokens are generated, sequences start and end."""
        span = self._span
        if span is None:
            raise InternalError("finish_step: no step is in progress")
        self._span = None
        calendar = self._calendar
        pass_steps(calendar, self._pool, span.planned - 1)
        steps = span.passed + span.planned
        output_tokens = steps * len(calendar)
        finished = calendar.advance()
        for sequence in finished:
            calendar.remove(sequence)
        started: list[Sequence] = []
        prefill_tokens = 0
        for sequence, chunk in self._chunks:
            if sequence.phase is not Phase.PREFILL:
                continue  # aborted in mid-step
            prefill_tokens += chunk
            sequence.computed += chunk
            if sequence.computed == sequence.prompt_tokens + sequence.generated:
                output_tokens += 1
                self._end_prefill(sequence, now_s, started, finished)
        for sequence in finished:
            self._end(sequence, Phase.FINISHED, now_s)
        self._computed_tokens += prefill_tokens
        self._generation_tokens += output_tokens
        preempted, self._preempted = self._preempted, []
        return StepResult(
            steps=steps,
            started=started,
            finished=finished,
            preempted=preempted,
            prefill_tokens=prefill_tokens,
            output_tokens=output_tokens,
        )

    # -- what it says of itself

    def statistics(self) -> EngineStatistics:
        """Return state and totals."""
        return EngineStatistics(
            running=self._running,
            waiting=len(self._waiting) + len(self.imports),
            held=len(self.holdings),
            kv_usage=1.0 - self._pool.free / self._pool.num_blocks,
            cached_blocks=self._pool.cached,
            context_tokens=self._calendar.context,
            steps=self._calendar.step,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            tier_queries=self._tier_queries,
            loaded_tokens=self._loaded_tokens,
            imported_tokens=self.imports.tokens,
            found_tokens=self.imports.found,
            preemptions=self._preemptions,
            evictions=self._pool.evictions,
            prompt_tokens=self._prompt_tokens,
            computed_tokens=self._computed_tokens,
            generation_tokens=self._generation_tokens,
        )

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold: for tests and the simulator, at any time."""
        sequences = list(self._sequences.values())
        by_phase = {phase: {s.id for s in sequences if s.phase is phase} for phase in Phase}
        in_prompt = {s.id for s, _ in self._chunks if s.phase is Phase.PREFILL} if self._span is not None else set()
        if self._partial is not None:
            in_prompt.add(self._partial.id)
        conditions = {
            "waiting sequences are queued": len(by_phase[Phase.WAITING]) == len(self._waiting),
            "waiting sequences hold no blocks": not any(
                s.table or s.private_blocks for s in sequences if s.phase is Phase.WAITING
            ),
            "sequences that wait for KV are known": by_phase[Phase.IMPORT] == self.imports.ids,
            "sequences that wait for KV hold all blocks": not any(
                self._missing_blocks(s, s.prompt_tokens) for s in sequences if s.phase is Phase.IMPORT
            ),
            "sequences in mid-prompt are known": by_phase[Phase.PREFILL] == in_prompt,
            "decoding sequences are filed": by_phase[Phase.DECODE] == {s.id for s in self._calendar.members},
            "running sequences have places": 0 <= self._running <= self.settings.max_num_seqs,
        }
        broken = [name for name, holds in conditions.items() if not holds]
        if broken:
            raise InternalError(f"engine: not true that {', '.join(broken)}")
        self._calendar.check()
        self._pool.check([*sequences, *self.holdings.sequences])

    def fresh(self) -> "Engine":
        """Return an engine like this one, as it was when it was made."""
        pool, tiers = self._pool, [tier.fresh() for tier in self._pool.tiers]
        return Engine(self.settings, self.step_time, rng=self._rng, record_events=pool.records_events, tiers=tiers)

    def copy(self, rng: Random | None = None) -> "Engine":
        """Return an independent engine in the same state, to be run ahead. It records no events, and has noise only with an rng."""
        other = Engine(self.settings, self.step_time)
        other.__dict__.update(self.__dict__)
        twins = {sequence_id: sequence.copy() for sequence_id, sequence in self._sequences.items()}
        other._rng = rng
        other._sequences = twins
        other._pool = self._pool.copy()
        other._waiting = self._waiting.copy(twins)
        other._partial = None if self._partial is None else twins[self._partial.id]
        other._calendar = self._calendar.copy(twins)
        other.imports = self.imports.copy(other._pool, other._waiting, twins)
        other.holdings = self.holdings.copy(other._pool)
        other._span = None if self._span is None else self._span.copy()
        other._chunks = [(twins[s.id], chunk) for s, chunk in self._chunks if s.phase is Phase.PREFILL]
        other._preempted = [twins[s.id] for s in self._preempted if s.id in twins]
        return other

    # -- running sequences

    @property
    def _running(self) -> int:
        """Sequences that have a place."""
        return len(self._sequences) - len(self._waiting) - len(self.imports)

    def _blocks_to_grow(self, chunk: int) -> int:
        blocks = len(self._calendar.without_room())
        if self._partial is not None:
            blocks += self._missing_blocks(self._partial, self._partial.computed + chunk)
        return blocks

    def _grow_decoding(self) -> None:
        """Give each decoding sequence room for its next token; the caller has checked that there are blocks enough."""
        without_room = self._calendar.without_room()
        self._pool.allocate(len(without_room))
        for sequence in without_room:
            sequence.private_blocks += 1
        for sequence in self._calendar.filling():
            self._pool.publish(sequence, len(sequence.table) + sequence.private_blocks)

    def _grow_in_order(self) -> None:
        """Give each running sequence room, in running order, preempting where blocks run out. Who is preempted leaves its budget."""
        admission = attrgetter("admission")
        last = self._waiting.rank if self.settings.by_priority else admission
        running = sorted(self._calendar.members, key=admission)
        if self._partial is not None:
            running.append(self._partial)
        for sequence in running:
            if sequence.phase is Phase.DECODE:
                chunk, tokens = 1, self._calendar.computed(sequence) + 1
            else:
                chunk = self._chunk_of(sequence, self.settings.max_num_batched_tokens - len(self._calendar))
                tokens = sequence.computed + chunk
            while sequence.phase is not Phase.WAITING and self._missing_blocks(sequence, tokens) > self._pool.free:
                self._preempt(max((s for s in running if s.phase is not Phase.WAITING), key=last))
            if sequence.phase is Phase.DECODE:
                self._hold(sequence, tokens)
            elif sequence.phase is Phase.PREFILL and chunk:
                self._compute(sequence, chunk)

    def _chunk_of(self, sequence: Sequence, budget: int) -> int:
        """How many tokens of a sequence in mid-prompt the next step computes."""
        return min(sequence.prompt_tokens + sequence.generated - sequence.computed, budget)

    def _compute(self, sequence: Sequence, chunk: int) -> None:
        """Schedule the next `chunk` prompt tokens of a running sequence."""
        self._hold(sequence, sequence.computed + chunk)
        self._chunks.append((sequence, chunk))

    def _hold(self, sequence: Sequence, tokens: int) -> None:
        """Make a sequence hold blocks for its first `tokens` tokens, the full ones shareable."""
        missing = self._missing_blocks(sequence, tokens)
        self._pool.allocate(missing)
        sequence.private_blocks += missing
        self._pool.publish(sequence, tokens // self.settings.block_tokens)

    def _missing_blocks(self, sequence: Sequence, tokens: int) -> int:
        return -(-tokens // self.settings.block_tokens) - len(sequence.table) - sequence.private_blocks

    def _preempt(self, sequence: Sequence) -> None:
        self._stop_running(sequence)
        self._pool.release(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self._preemptions += 1
        if not self.settings.by_priority:
            sequence.serial = -self._preemptions  # to the front
        self._waiting.push(sequence)
        self._preempted.append(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        if sequence.phase is Phase.DECODE:
            self._calendar.remove(sequence)
        elif sequence is self._partial:
            self._partial = None

    def _end_prefill(self, sequence: Sequence, now_s: float, started: list[Sequence], finished: list[Sequence]) -> None:
        """The last chunk of a prompt generates a token: from here on the sequence decodes, unless that was all."""
        if sequence is self._partial:
            self._partial = None
        sequence.generated += 1
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
            self._prompt_tokens += sequence.prompt_tokens
            started.append(sequence)
        if sequence.generated == sequence.output_tokens:
            finished.append(sequence)
        else:
            self._calendar.add(sequence)

    def _end(self, sequence: Sequence, phase: Phase, now_s: float) -> None:
        if sequence.stage is Stage.PREFILL and phase is Phase.FINISHED:
            self.holdings.keep(sequence, now_s + self.settings.kv_lease_s)
        else:
            self._pool.release(sequence)
        sequence.phase = phase
        sequence.finished_s = now_s
        del self._sequences[sequence.id]

    # -- admission

    def _admit(self, budget: int, now_s: float) -> None:
        pool, size = self._pool, self.settings.block_tokens
        places = self.settings.max_num_seqs - self._running
        if self.imports.ready:
            begun = self._admit_imported(min(budget, places))
            budget, places = budget - begun, places - begun
        self._blocked = False
        while budget > 0 and places > 0 and (sequence := self._waiting.first()) is not None:
            tokens = sequence.prompt_tokens + sequence.generated
            limit = (tokens - 1) // size
            keys = pool.match(sequence.content.hashes, limit)
            if (blocks := -(-tokens // size)) > pool.free and blocks - pool.count_held(keys) > pool.free:
                self._blocked = True
                return
            self._waiting.pop()
            pool.share(keys)
            sequence.table = keys
            first = sequence.admitted_s is None
            if first:
                sequence.admitted_s = now_s
            if first and sequence.stage is Stage.DECODE:
                self.imports.begin(sequence)
                continue
            loaded, loading_s = pool.loadable(sequence.content.hashes, len(keys), limit)
            pool.offload(sequence, len(keys))
            self._loading_s += loading_s
            self._tier_queries += tokens - len(keys) * size if pool.tiers else 0
            self._loaded_tokens += loaded * size
            sequence.computed = (len(keys) + loaded) * size
            if first:
                sequence.cached_tokens = sequence.computed
                self._prefix_queries += tokens
                self._prefix_hits += len(keys) * size
            chunk = min(tokens - sequence.computed, budget)
            if sequence.computed + chunk < tokens:
                self._partial = sequence
            self._run(sequence, chunk)
            budget -= chunk
            places -= 1

    def _run(self, sequence: Sequence, chunk: int) -> None:
        """Give a sequence a place, and its first chunk."""
        sequence.phase = Phase.PREFILL
        sequence.admission = self._admissions
        self._admissions += 1
        self._compute(sequence, chunk)

    def _admit_imported(self, most: int) -> int:
        """Let those run whose KV has come: each computes its last prompt token. Returns how many."""
        ready = self.imports.take_ready(most)
        for sequence in ready:
            self._run(sequence, 1)
        return len(ready)

    # -- several steps at once

    def _count_plain_steps(self, max_steps: int) -> int:
        """Return how many steps from this one on are plain decoding, with blocks for all of them.

        A sequence that waits for free blocks waits until another one ends: running ones only take more.
        """
        waiting = self.imports.ready or (len(self._waiting) > 0 and not self._blocked)
        admissible = waiting and len(self._calendar) < self.settings.max_num_seqs
        if self._chunks or self._partial is not None or admissible:
            return 1
        return count_steps(self._calendar, self._pool, max_steps)
