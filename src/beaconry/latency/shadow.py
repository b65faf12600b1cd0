"""A light twin of one engine: where its batch stands now, and what a further request would find there.

It follows the scheduling rule of `engine_model` (every running sequence one token, then prompts in order of arrival with what is left of
the step's token budget) without its blocks and hashes: what is cached comes in as the uncached tokens of each prompt. It keeps one entry
per request in flight and advances lazily. Runs of plain decode steps are one multiplication, whatever their length, so it costs a few
microseconds per event; a full `engine_model` copy takes milliseconds, and is the oracle of the tests instead.

The router's own events keep it true: a first byte or an end is seen at the end of a step, so each of them sets the step clock right;
and no step in which a first byte is due ends before that is seen. Between two such ends lies a known amount of work in a known time:
`take_seen` hands it out for the fit of the step times.
"""

from collections.abc import Sequence
from operator import add, sub

from beaconry.latency.interference import Interference
from beaconry.latency.step_fit import (
    CONTEXT,
    PROMPT_STEPS,
    SEQUENCES,
    STARTS,
    STEPS,
    TERMS,
    TOKENS,
    StepFit,
    Work,
)
from beaconry.values.errors import InternalError

BUDGET_TOKENS = 8192
"""Token budget of a step where nobody says: vLLM's default for a server."""
_FEWEST_PROMPT_TOKENS = 64
"""Of a step's budget, whatever the batch: keeps a wrong budget from dividing by nothing."""


class _Prompt:
    """A leg without first byte."""

    __slots__ = ("admitted", "chunk", "computed", "left", "silent")

    def __init__(self, uncached: int, cached: int, *, silent: bool) -> None:
        self.admitted = False
        """Some of it is computed, so it holds blocks and cannot be kept waiting any more."""
        self.left = uncached
        """Prompt tokens that no complete step has computed, at least 1 until its last step is over."""
        self.computed = cached
        self.chunk = 0
        """Those of them in the step under way."""
        self.silent = silent
        """Its first byte will be its last, so its prefill ends unseen."""


class _Stream:
    """A leg in decode."""

    __slots__ = ("began_steps", "prompt_tokens")

    def __init__(self, prompt_tokens: int, began_steps: float) -> None:
        self.prompt_tokens = prompt_tokens
        self.began_steps = began_steps
        """The step clock at its first token."""


class Seen:
    """Work that lay between two ends of steps, and how long it took."""

    __slots__ = ("seconds", "work")

    def __init__(self, work: Work, seconds: float) -> None:
        self.work = work
        self.seconds = seconds


class Shadow:
    """One endpoint's twin.

    Invariants (`check`): the prompts are the legs without first byte in order of dispatch, silent ones whose prefill is believed over
    left out; the streams are all others; `context` is the sum over the streams; an idle twin has no step under way.

    Attributes:
        budget: token budget of a step.
        slots: sequences that run at once, at most; infinite until seen otherwise.
        capacity: KV tokens it holds; infinite until told.
        shared: tokens of running prompts that take no room of their own, being in blocks that several share.
        output_tokens: what an answer is expected to have.
        factor: this engine's times over its variant's.
        strangers: sequences running there that are not ours, as scraped metrics tell; they count with our mean context.
        stranger_tokens: prompt tokens that wait there and are not ours.
        context: KV tokens of the streams at the last end of a step.
        work: what all complete steps had to do; who keeps it for later copies it.
        interference: what its sequences have met in their steps of late.

    """

    def __init__(self, fit: StepFit) -> None:
        self._fit = fit
        self.budget = BUDGET_TOKENS
        self.slots = float("inf")
        self.capacity = float("inf")
        self.shared = 0.0
        self.output_tokens = 256.0
        self.factor = 1.0
        self.strangers = 0.0
        self.stranger_tokens = 0.0
        self.context = 0.0
        self.work: Work = [0.0] * TERMS
        self.interference = Interference()
        self._prompts: dict[int, _Prompt] = {}
        self._streams: dict[int, _Stream] = {}
        # The step under way: its work, beginning and believed end; None while idle. Planned anew when an event has told more about it.
        self._step: Work | None = None
        self._planned = False
        self._plain = False  # no prompt is in it, nor can be in the next ones
        self._first_byte_due = False
        self._began_s = 0.0
        self._due_s = 0.0
        # The last end of a step that was seen, and the work until then; None if steps since have not been all of known work.
        self._anchor: tuple[float, Work] | None = None
        self._seen: Seen | None = None

    # -- what happens there

    def dispatch(self, leg: int, *, prompt_tokens: int, uncached: int, silent: bool, now_s: float) -> None:
        """A request is sent there."""
        self._advance(now_s)
        self.interference.age()
        uncached = max(uncached, 1)
        self._plain = False  # it may enter the batch after the step under way
        self._prompts[leg] = _Prompt(uncached, max(prompt_tokens - uncached, 0), silent=silent)
        start_s = self._fit.coefficients[STARTS]
        if self._step is None:
            self._step = [0.0] * TERMS
            self._step[STARTS] = 1.0
            self._began_s = now_s
            self._anchor = (now_s, self.work)
            self._planned = False
        elif self._step[STARTS] and now_s - self._began_s <= start_s:
            self._planned = False  # it comes before the first step of an idle engine has begun

    def first_byte(self, leg: int, now_s: float) -> None:
        """A request's first byte came: the step that ended its prompt is over."""
        self._advance(now_s)
        prompt = self._prompts.get(leg)
        if prompt is None:
            self._end_step(now_s)
            return
        if prompt.left:
            self._catch_up(leg, now_s)
        else:
            self._end_step(now_s)
        del self._prompts[leg]
        self._join(leg, prompt.computed)
        self._planned = False

    def end(self, leg: int, now_s: float, *, finished: bool) -> None:
        """A request is over. One that finished did so at the end of a step; another left in the middle of one."""
        self._advance(now_s)
        if finished:
            self._end_step(now_s)
        stream = self._streams.pop(leg, None)
        if stream is not None:
            self.context -= stream.prompt_tokens + self.work[STEPS] - stream.began_steps
        elif self._prompts.pop(leg, None) is None:
            return
        if not self._streams and not self._prompts:
            self.context = 0.0
            self._step = None
            self._anchor = None
        else:
            if not finished:
                self._anchor = None
            self._planned = False

    def take_seen(self) -> Seen | None:
        """What the last event has shown of step times, once."""
        seen, self._seen = self._seen, None
        return seen

    # -- what it is like, and would be

    @property
    def running(self) -> float:
        """Sequences in decode."""
        return len(self._streams) + self.strangers

    @property
    def used(self) -> float:
        """KV tokens that running sequences hold, those of prompts begun included."""
        begun = sum([p.computed + p.left for p in self._prompts.values() if p.admitted])
        return max(self.running_context + begun - self.shared, 0.0)

    @property
    def legs(self) -> int:
        """Our requests there."""
        return len(self._prompts) + len(self._streams)

    @property
    def running_context(self) -> float:
        """KV tokens of the sequences in decode."""
        return self._batch()[1]

    def foresee(self, prompt_tokens: int, uncached: int, now_s: float) -> tuple[float, float, float]:
        """Seconds until the first token of a further request, how many of them pass before its prefill begins, and those of a decode step
        once it is among the sequences, and all that wait now are.

        A step that is late is expected to be as late again: nothing else shows that an engine hangs.
        Runs ahead in closed form: whole steps of the budget are filled with the prompts ahead and this one, and each prompt that is
        complete joins the batch of the steps after it.
        """
        if not self._planned or self._due_s <= now_s:
            self._advance(now_s)
        knee, budget, factor = self._fit.knee, self.budget, self.factor
        step_s, prompt_s, sequence_s, context_s, token_s, attended_s, start_s = self._fit.coefficients
        if uncached < 1:
            uncached = 1
        wait_s = abs(self._due_s - now_s) / factor if self._step is not None else start_s
        sequences, context = self._batch()
        batch, batch_context = sequences + 1, context + prompt_tokens
        ahead, attended = self.stranger_tokens, uncached * (prompt_tokens - 0.5 * uncached)
        joining: list[tuple[float, int]] = []  # tokens until a prompt ahead is complete, and its context
        for prompt in self._prompts.values():
            left, computed = prompt.left - prompt.chunk, prompt.computed + prompt.chunk
            attended += left * (computed + 0.5 * left)
            ahead += left
            joining.append((ahead, computed + left))
            batch += 1
            batch_context += computed + left
        if batch > self.slots or batch_context - self.shared > self.capacity:
            wait_s += self._room_s(batch, batch_context)
        room = budget - sequences
        if room < _FEWEST_PROMPT_TOKENS:
            room = _FEWEST_PROMPT_TOKENS
        tokens = ahead + uncached
        steps = -(-tokens // room)
        for until, context_tokens in joining:
            share = 1.0 - -(-until // room) / steps  # of the steps it decodes in
            sequences += share
            context += share * context_tokens
        over = tokens - (steps - 1) * room + sequences - knee  # of the last step; those before it are full
        if over < 0.0:
            over = 0.0
        if steps > 1 and budget > knee:
            over += (steps - 1) * (budget - knee)
        per_step_s = step_s + prompt_s + sequence_s * sequences + context_s * (context + 0.5 * steps * sequences)
        work_s = steps * per_step_s + token_s * over + attended_s * attended
        wait_s += work_s * ahead / tokens
        if batch > self.slots:
            batch, batch_context = self.slots, batch_context * self.slots / batch
        decode_s = step_s + sequence_s * batch + context_s * batch_context
        if batch > knee:
            decode_s += token_s * (batch - knee)
        return factor * (wait_s + work_s * uncached / tokens), factor * wait_s, factor * decode_s

    def check(self, prompts: Sequence[int], streams: Sequence[int]) -> None:
        """Raise InternalError if an invariant does not hold; `prompts` and `streams` are the legs by the router's ledger."""
        legs = [*self._prompts, *self._streams]
        context = sum(s.prompt_tokens + self.work[STEPS] - s.began_steps for s in self._streams.values())
        conditions = {
            "its legs are the ledger's": sorted(legs) == sorted([*prompts, *streams]),
            "what has a first byte decodes": set(streams) <= set(self._streams),
            "only silent prompts end unseen": all(p.left for p in self._prompts.values() if p.silent),
            "context is summed up": abs(self.context - context) <= 1e-6 * (1.0 + abs(context)),
            "an idle engine takes no step": (self._step is None) == (not legs),
        }
        broken = [name for name, holds in conditions.items() if not holds]
        if broken:
            raise InternalError(f"shadow: not true that {', '.join(broken)}")

    # -- the step clock

    def _advance(self, now_s: float) -> None:
        """Take all steps that have ended by now, up to one in which a first byte is due."""
        if self._planned and self._due_s > now_s:
            return
        while self._step is not None:
            if not self._planned:
                self._plan()
            if self._due_s > now_s:
                return
            if not self._step[PROMPT_STEPS]:
                self._anchor = None  # how many plain steps there are between two ends is a belief
                if self._plain:
                    self._decode_until(now_s)
                    continue
            elif self._first_byte_due:
                return
            self._commit(self._due_s)

    def _decode_until(self, now_s: float) -> None:
        """Take plain decode steps, all at once: each takes a little longer than the one before."""
        step = self._step
        assert step is not None
        batch = step[SEQUENCES]
        first_s = self._due_s - self._began_s
        longer_s = self.factor * self._fit.coefficients[CONTEXT] * batch
        span_s = now_s - self._began_s
        steps = int(span_s / (first_s + 0.5 * longer_s * span_s / first_s)) or 1
        work = self.work
        self.interference.note(steps * batch, (first_s + 0.5 * longer_s * (steps - 1)) / self.factor, 0.0)
        work[STEPS] += steps
        work[SEQUENCES] += steps * batch
        work[TOKENS] += steps * step[TOKENS]
        work[CONTEXT] += steps * (step[CONTEXT] + 0.5 * batch * (steps - 1))
        self.context += steps * len(self._streams)
        self._began_s += steps * (first_s + 0.5 * longer_s * (steps - 1))
        if self._prompts:
            self._planned = False
        else:  # the next step is as planned, with more context
            step[CONTEXT] += steps * batch
            self._due_s = self._began_s + first_s + steps * longer_s

    def _commit(self, now_s: float) -> None:
        """The step under way is over; the next one begins."""
        assert self._step is not None
        step = self._step
        self.work = list(map(add, self.work, step))
        self.context += len(self._streams)
        if step[SEQUENCES]:
            decode_s, prefill_s = self._fit.parts(step)
            self.interference.note(step[SEQUENCES], decode_s, prefill_s)
        if step[PROMPT_STEPS]:
            self._commit_chunks()
        self._began_s = now_s
        self._step = [0.0] * TERMS
        self._planned = False

    def _commit_chunks(self) -> None:
        for leg, prompt in [*self._prompts.items()]:
            if prompt.chunk:
                prompt.admitted = True
                prompt.computed += prompt.chunk
                prompt.left -= prompt.chunk
                prompt.chunk = 0
                if prompt.silent and not prompt.left:
                    del self._prompts[leg]
                    self._join(leg, prompt.computed)

    def _plan(self) -> None:
        """Plan the step under way."""
        step, fit = self._step, self._fit
        assert step is not None
        batch, context = self._batch()
        self._first_byte_due = False
        tokens, attended = self._fill(batch) if self._prompts else (0, 0.0)
        over = batch + tokens - fit.knee
        if over < 0.0:
            over = 0.0
        self._step = step = [1.0, 1.0 if tokens else 0.0, batch, context, over, attended, step[STARTS]]
        self._due_s = self._began_s + self.factor * fit.seconds(step)
        self._planned = True
        self._plain = not tokens

    def _fill(self, batch: float) -> tuple[int, float]:
        """Give prompts their chunks of the step under way; what is computed in all, and the pairs it attends to."""
        room = max(self.budget - batch, _FEWEST_PROMPT_TOKENS)
        places = self.slots - batch
        free = self.capacity - self.used
        tokens, attended = 0, 0.0
        for prompt in self._prompts.values():
            prompt.chunk = 0
            left = prompt.left
            if not left:
                places -= 1
                continue
            if not prompt.admitted:
                free -= prompt.computed + left
                if self._streams and (free < 0 or places <= 0):
                    break  # nobody overtakes the first that does not fit
            if tokens >= room:
                break
            chunk = prompt.chunk = left if left <= room - tokens else int(room - tokens)
            tokens += chunk
            attended += chunk * (prompt.computed + 0.5 * chunk)
            places -= 1
            if chunk == left and not prompt.silent:
                self._first_byte_due = True
        return tokens, attended

    def _end_step(self, now_s: float) -> None:
        """A step has ended now: the one under way, unless it has hardly begun; then it was the one before, seen a little late."""
        if self._step is None:
            return
        if now_s - self._began_s > 0.5 * (self._due_s - self._began_s):
            self._take_step(now_s)
        elif not self._step[PROMPT_STEPS]:
            self._began_s = now_s
            self._anchor = (now_s, self.work)
            self._planned = False

    def _take_step(self, now_s: float) -> None:
        """The step under way has been seen to end."""
        step = self._step
        assert step is not None
        anchor = self._anchor
        pure = bool(step[PROMPT_STEPS])
        self._commit(now_s)
        if anchor is not None and pure and now_s > anchor[0]:
            work = list(map(sub, self.work, anchor[1]))
            self._seen = Seen(work, now_s - anchor[0])
        self._anchor = (now_s, self.work)

    def _catch_up(self, leg: int, now_s: float) -> None:
        """The first byte of a prompt that is not believed complete: so it is, and so are those before it."""
        prompt = self._prompts[leg]
        if prompt.chunk == prompt.left:
            self._take_step(now_s)
            return
        for other, ahead in [*self._prompts.items()]:
            ahead.computed += ahead.left
            ahead.left = ahead.chunk = 0
            if other == leg:
                break
            if ahead.silent:
                del self._prompts[other]
                self._join(other, ahead.computed)
        self._anchor = (now_s, self.work)
        if self._step is not None:
            self._began_s = now_s

    def _join(self, leg: int, prompt_tokens: int) -> None:
        self._streams[leg] = _Stream(prompt_tokens, self.work[STEPS])
        self.context += prompt_tokens

    # -- parts of the forecast

    def _batch(self) -> tuple[float, float]:
        """Sequences in decode, and their KV tokens."""
        ours = len(self._streams)
        if not self.strangers:
            return ours, self.context
        return ours + self.strangers, self.context * (1.0 + self.strangers / max(ours, 1))

    def _room_s(self, batch: float, batch_context: float) -> float:
        """How long until enough sequences have ended for all that wait, and one more, to have places and KV memory.

        Ends come evenly: in as many steps as an answer has tokens, all that runs now has been replaced once.
        """
        running, context = self._batch()
        if not self._streams:
            return 0.0
        places, tokens = batch - self.slots, batch_context - self.shared - self.capacity
        batch_s = self._fit.seconds([1.0, 0.0, running, context, max(running - self._fit.knee, 0.0), 0.0, 0.0])
        return batch_s * self.output_tokens * max(places / running, tokens / max(context, 1.0))
