"""The engine against a naive one that walks over every running sequence and every physical block, token by token, as vLLM does."""

from collections import Counter

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.sequence import Content, Phase, Sequence
from beaconry.engine_model.values import EngineSettings
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from beaconry.values.stage import Stage

SETTINGS = EngineSettings(num_blocks=14, block_tokens=4, max_num_seqs=4, max_num_batched_tokens=12)
BY_PRIORITY = replace(SETTINGS, by_priority=True)


class RecordingStepTime:
    """Remembers what it was asked for; a step takes as many seconds as it computes tokens."""

    def __init__(self):
        self.load = None

    def seconds(self, sequences, context, prefill, attended):
        self.load = (sequences, context, prefill, attended)
        return float(sequences + prefill)


class Block:
    def __init__(self):
        self.hash = None
        self.holders = 0


class NaiveSequence:
    def __init__(self, name, prompt_tokens, output_tokens, hashes, priority, stage):
        self.id, self.prompt_tokens, self.output_tokens, self.hashes = name, prompt_tokens, output_tokens, hashes
        self.priority, self.stage = priority, stage
        self.generated = self.computed = self.preemptions = self.scheduled = 0
        self.cached = None
        self.decoding = False  # its next token needs no prompt token beside its last one
        self.blocks = []

    @property
    def tokens(self):
        return self.prompt_tokens + self.generated


class NaiveEngine:
    """vLLM's scheduler and block pool, word for word where it matters: free queue, order of service, no shortcuts."""

    def __init__(self, settings):
        self.settings = settings
        self.queue = [Block() for _ in range(settings.num_blocks)]  # free blocks, next to be used first
        self.cached = {}  # hash -> blocks with it, oldest first
        self.events = []
        self.waiting, self.running = [], []
        self.coming, self.come = [], []  # their KV is on its way from elsewhere, or has come
        self.held = []  # finished, and their blocks are kept for a reader
        self.fetched = {}  # tokens on their way, by name
        self.load = None
        self.preempted = []

    def submit(self, sequence):
        self.waiting.append(sequence)
        self.put_in_order()

    def put_in_order(self):
        if self.settings.by_priority:
            self.waiting.sort(key=self.rank)

    def rank(self, sequence):
        return sequence.priority if self.settings.by_priority else 0, int(sequence.id)

    def preempt(self):
        victim = max(self.running, key=self.rank) if self.settings.by_priority else self.running[-1]
        self.running.remove(victim)
        if victim.scheduled:  # in mid-prompt is only the last one
            self.load[0] -= 1
            self.load[1] -= victim.computed
        self.free(victim)
        victim.computed = 0
        victim.decoding = False
        victim.preemptions += 1
        self.waiting.insert(0, victim)
        self.put_in_order()
        self.preempted.append(victim.id)
        return victim

    def abort(self, name):
        for place in (self.waiting, self.running, self.coming, self.come):
            for sequence in [s for s in place if s.id == name]:
                place.remove(sequence)
                self.free(sequence)

    def free(self, sequence):
        blank, full = [], []
        for block in reversed(sequence.blocks):
            block.holders -= 1
            if block.holders == 0:
                (full if block.hash is not None else blank).append(block)
        self.queue = blank + self.queue + full
        sequence.blocks = []

    def new_block(self):
        block = self.queue.pop(0)
        if block.hash is not None:
            self.cached[block.hash].remove(block)
            if not self.cached[block.hash]:
                del self.cached[block.hash]
            self.events.append(BlockRemoved(block_hash=block.hash))
            block.hash = None
        block.holders = 1
        return block

    def arrive(self, name):
        sequence = next(s for s in self.coming if s.id == name)
        self.coming.remove(sequence)
        self.come.append(sequence)
        sequence.computed = sequence.prompt_tokens - 1
        sequence.decoding = True  # its one token is no other work than a decoded one
        self.publish(sequence, sequence.computed)

    def release(self, name):
        sequence = next(s for s in self.held if s.id == name)
        self.held.remove(sequence)
        self.free(sequence)

    def allocate(self, sequence, tokens, hit=(), *, filled=True):
        size = self.settings.block_tokens
        needed = -(-tokens // size) - len(sequence.blocks) - len(hit)
        if needed + sum(1 for block in hit if block.holders == 0) > len(self.queue):
            return False
        for block in hit:
            if block.holders == 0:
                self.queue.remove(block)
            block.holders += 1
        sequence.blocks += hit
        sequence.blocks += [self.new_block() for _ in range(needed)]
        if filled:
            self.publish(sequence, tokens)
        return True

    def publish(self, sequence, tokens):
        size = self.settings.block_tokens
        stored = []
        for index in range(min(tokens // size, len(sequence.hashes))):
            block = sequence.blocks[index]
            if block.hash is None:
                block.hash = sequence.hashes[index]
                self.cached.setdefault(block.hash, []).append(block)
                stored.append(index)
        if stored:
            self.events.append(
                BlockStored(
                    block_hashes=tuple(sequence.hashes[i] for i in stored),
                    parent_hash=sequence.hashes[stored[0] - 1] if stored[0] else None,
                    token_ids=(),
                    block_tokens=size,
                )
            )

    def begin(self):
        """Schedule a step; False if there is nothing to compute."""
        budget = self.settings.max_num_batched_tokens
        self.preempted = []
        self.load = [0, 0, 0, 0.0]
        for sequence in self.running:
            sequence.scheduled = 0
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            chunk = min(sequence.tokens - sequence.computed, budget)
            while not self.allocate(sequence, sequence.computed + chunk):
                victim = self.preempt()
                if victim is sequence:
                    break
                if victim.scheduled:
                    budget += 1
                    index -= 1
            if sequence in self.waiting:
                continue  # where vLLM goes on in the next step: it matters only where somebody is behind, which is by priority
            self.schedule(sequence, chunk)
            budget -= chunk
            index += 1
        if not self.preempted:
            self.admit(budget)
        elif not self.running:
            self.admit(self.settings.max_num_batched_tokens)
        return self.load[0] + self.load[2] > 0

    def admit(self, budget):
        most = self.settings.max_num_seqs
        for sequence in sorted(self.come, key=self.rank):
            if budget > 0 and len(self.running) < most:
                self.come.remove(sequence)
                self.running.append(sequence)
                assert self.allocate(sequence, sequence.tokens)
                self.schedule(sequence, 1)
                budget -= 1
        while self.waiting and budget > 0 and len(self.running) < most:
            sequence = self.waiting[0]
            hit = []
            for block_hash in sequence.hashes[: (sequence.tokens - 1) // self.settings.block_tokens]:
                if block_hash not in self.cached:
                    break
                hit.append(self.cached[block_hash][0])
            idle = sum(1 for block in hit if block.holders == 0)
            needed = -(-sequence.tokens // self.settings.block_tokens) - len(hit)
            if needed + idle > len(self.queue):
                break
            cached = len(hit) * self.settings.block_tokens
            if sequence.stage is Stage.DECODE and sequence.cached is None:
                sequence.cached = cached
                assert self.allocate(sequence, sequence.tokens, hit, filled=False)
                self.coming.append(self.waiting.pop(0))
                self.fetched[sequence.id] = sequence.tokens - cached
                continue
            chunk = min(sequence.tokens - cached, budget)
            assert self.allocate(sequence, cached + chunk, hit)
            self.running.append(self.waiting.pop(0))
            sequence.computed = cached
            if sequence.cached is None:
                sequence.cached = cached
            self.schedule(sequence, chunk)
            budget -= chunk

    def schedule(self, sequence, chunk):
        sequence.scheduled = chunk
        if sequence.decoding:
            self.load[0] += 1
            self.load[1] += sequence.computed
        else:
            self.load[2] += chunk
            self.load[3] += chunk * (sequence.computed + 0.5 * chunk)
            sequence.decoding = sequence.computed + chunk == sequence.tokens

    def finish(self):
        finished = []
        for sequence in list(self.running):
            sequence.computed += sequence.scheduled
            if sequence.scheduled and sequence.computed == sequence.tokens:
                sequence.generated += 1
                if sequence.generated == sequence.output_tokens:
                    finished.append(sequence.id)
                    self.running.remove(sequence)
                    if sequence.stage is Stage.PREFILL:
                        self.held.append(sequence)
                    else:
                        self.free(sequence)
            sequence.scheduled = 0
        return finished


class EngineMachine(RuleBasedStateMachine):
    settings = SETTINGS

    def __init__(self):
        super().__init__()
        self.timer = RecordingStepTime()
        self.engine = Engine(self.settings, self.timer, record_events=True)
        self.naive = NaiveEngine(self.settings)
        self.now_s = 0.0
        self.pairs = {}
        self.stepping = False
        self.preempted = []

    @rule(
        family=st.integers(0, 2),
        shared=st.integers(0, 6),
        rest=st.integers(1, 14),
        output_tokens=st.integers(1, 14),
        known=st.booleans(),
        kind=st.tuples(st.integers(-1, 1), st.sampled_from((Stage.WHOLE, Stage.WHOLE, Stage.PREFILL, Stage.DECODE))),
    )
    def submit(self, family, shared, rest, output_tokens, known, kind):
        priority, stage = kind
        output_tokens = 1 if stage is Stage.PREFILL else output_tokens
        name = str(len(self.pairs))
        size = SETTINGS.block_tokens
        prompt_tokens = min(shared * size + rest, 40)
        blocks = (prompt_tokens + output_tokens) // size if known else prompt_tokens // size
        hashes = [
            1000 * family + i if i < shared or rest == 4 else 10_000 * (len(self.pairs) + 1) + i for i in range(blocks)
        ]
        twin = NaiveSequence(name, prompt_tokens, output_tokens, hashes, priority, stage)
        content = Content(hashes=hashes)
        sequence = Sequence(name, prompt_tokens, output_tokens, content, priority=priority, stage=stage)
        self.pairs[name] = (sequence, twin)
        self.engine.submit(self.pairs[name][0], self.now_s)
        self.naive.submit(twin)

    @precondition(lambda self: not self.stepping and not self.engine.idle)
    @rule(times=st.integers(1, 12))
    def steps(self, times):
        for _ in range(times):
            self.begin_both()
            if self.stepping:
                self.finish_both()

    @precondition(lambda self: not self.stepping and not self.engine.idle)
    @rule()
    def begin(self):
        self.begin_both()

    def begin_both(self):
        duration_s = self.engine.begin_step(self.now_s)
        self.stepping = self.naive.begin()
        self.preempted += self.naive.preempted
        assert (duration_s is not None) == self.stepping
        if duration_s is not None:
            assert self.timer.load == tuple(self.naive.load)
            self.now_s += duration_s
        assert {s.id: s.fetched for s in self.engine.imports.take_untold()} == self.naive.fetched
        self.naive.fetched = {}

    @precondition(lambda self: self.stepping)
    @rule()
    def finish(self):
        self.finish_both()

    def finish_both(self):
        result = self.engine.finish_step(self.now_s)
        assert Counter(s.id for s in result.finished) == Counter(self.naive.finish())
        assert Counter(s.id for s in result.preempted) == Counter(self.preempted)
        self.preempted = []
        self.stepping = False

    @precondition(lambda self: self.naive.coming)
    @rule(data=st.data())
    def arrive(self, data):
        name = data.draw(st.sampled_from(sorted(s.id for s in self.naive.coming)))
        assert self.engine.imports.arrive(name)
        assert not self.engine.imports.arrive(name)
        self.naive.arrive(name)

    @precondition(lambda self: self.naive.held)
    @rule(data=st.data())
    def release(self, data):
        name = data.draw(st.sampled_from(sorted(s.id for s in self.naive.held)))
        assert name in self.engine.holdings
        assert self.engine.holdings.release(name)
        assert not self.engine.holdings.release(name)
        self.naive.release(name)

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def abort(self, data):
        name = data.draw(st.sampled_from(sorted(self.pairs)))
        naive = self.naive
        there = any(s.id == name for s in naive.running + naive.waiting + naive.coming + naive.come)
        assert self.engine.abort(name, self.now_s) == there
        self.naive.abort(name)

    @invariant()
    def check(self):
        self.engine.check()
        naive = self.naive
        statistics = self.engine.statistics()
        assert statistics.running == len(naive.running)
        assert statistics.waiting == len(naive.waiting + naive.coming + naive.come)
        assert statistics.held == len(naive.held)
        assert statistics.kv_usage == 1.0 - len(naive.queue) / SETTINGS.num_blocks
        assert statistics.cached_blocks == sum(map(len, naive.cached.values()))
        assert Counter(self.engine.take_events()) == Counter(naive.events)
        naive.events = []
        for sequence, twin in self.pairs.values():
            assert sequence.cached_tokens == twin.cached
            assert sequence.preemptions == twin.preemptions
            if sequence.phase is not Phase.DECODE:
                assert sequence.generated == twin.generated

    def teardown(self):
        if self.stepping:
            self.finish_both()
        while not self.engine.idle:
            for sequence in list(self.naive.coming):
                self.engine.imports.arrive(sequence.id)
                self.naive.arrive(sequence.id)
            for sequence in list(self.naive.held):
                self.engine.holdings.release(sequence.id)
                self.naive.release(sequence.id)
            self.begin_both()
            if self.stepping:
                self.finish_both()
        self.check()
        assert self.engine.statistics().kv_usage == 0.0
        assert self.engine.reset_prefix_cache()
        assert self.engine.take_events() == [AllBlocksCleared()]
        self.engine.check()


class PriorityMachine(EngineMachine):
    settings = BY_PRIORITY


EngineMachine.TestCase.settings = PriorityMachine.TestCase.settings = hypothesis_settings(
    max_examples=150, stateful_step_count=30, deadline=None
)
TestEngineMachine = EngineMachine.TestCase
TestPriorityMachine = PriorityMachine.TestCase
