"""What one can say of the engine in a sentence: scheduling facts, times, several steps at once, copies."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.sequence import Content, Phase, Sequence
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.values.errors import CallerError, InternalError, OperatorError
from beaconry.values.kv_events import BlockStored
from beaconry.values.stage import Stage

STEP_TIME = LinearStepTime(fixed_s=0.01, per_seq_s=0.001, per_context_token_s=1e-6, prefill_tps=10_000)


def engine(**knobs):
    return Engine(EngineSettings(**({"num_blocks": 100} | knobs)), STEP_TIME)


def run_step(machine, now_s=0.0):
    end_s = now_s + machine.begin_step(now_s)
    result = machine.finish_step(end_s)
    machine.check()
    return end_s, result


def run_all(machine, now_s=0.0, max_steps=1):
    """Run until idle; returns the end and the finished sequences' ids with their times."""
    done = []
    while (duration_s := machine.begin_step(now_s, max_steps)) is not None:
        now_s += duration_s
        done += [(s.id, s.first_token_s, s.finished_s) for s in machine.finish_step(now_s).finished]
    machine.check()
    return now_s, done


def test_a_step_costs_fixed_sequences_context_and_prefill_time():
    machine = engine()
    machine.submit(Sequence("a", 100, 3), 0.0)
    assert machine.begin_step(0.0) == pytest.approx(0.01 + 100 / 10_000)
    machine.finish_step(0.02)
    assert machine.begin_step(0.02) == pytest.approx(0.01 + 0.001 + 100e-6)


def test_the_first_token_comes_with_the_end_of_the_prompt_and_then_one_per_step():
    machine = engine()
    sequence = Sequence("a", 20, 3)
    machine.submit(sequence, 0.5)
    now_s, result = run_step(machine, 1.0)
    assert result.started == [sequence]
    assert (sequence.arrived_s, sequence.admitted_s, sequence.first_token_s) == (0.5, 1.0, now_s)
    now_s, result = run_step(machine, now_s)
    assert (result.output_tokens, result.finished) == (1, [])
    now_s, result = run_step(machine, now_s)
    assert result.finished == [sequence]
    assert (sequence.phase, sequence.generated, sequence.finished_s) == (Phase.FINISHED, 3, now_s)
    assert machine.begin_step(now_s) is None


def test_a_long_prompt_is_computed_in_chunks_beside_decoding():
    machine = engine(max_num_batched_tokens=64, max_num_seqs=8)
    machine.submit(Sequence("short", 10, 50), 0.0)
    run_step(machine)
    machine.submit(Sequence("long", 150, 2), 0.0)
    chunks = [run_step(machine)[1].prefill_tokens for _ in range(3)]
    assert chunks == [63, 63, 24]


def test_what_is_left_of_the_budget_goes_to_the_next_in_line():
    machine = engine(max_num_batched_tokens=64, max_num_seqs=8)
    for name in "abc":
        machine.submit(Sequence(name, 50, 2), 0.0)
    assert run_step(machine)[1].prefill_tokens == 64
    assert machine.statistics().running == 2


def test_the_last_token_of_a_cached_prompt_is_computed_again():
    machine = engine(block_tokens=16)
    hashes = [1, 2, 3, 4]
    machine.submit(Sequence("a", 64, 1, Content(hashes=hashes)), 0.0)
    run_all(machine)
    exact, longer = Sequence("b", 64, 1, Content(hashes=hashes)), Sequence("c", 65, 1, Content(hashes=hashes))
    machine.submit(exact, 1.0)
    machine.submit(longer, 1.0)
    run_all(machine, 1.0)
    assert exact.cached_tokens == 48
    assert longer.cached_tokens == 64


def test_two_sequences_admitted_together_compute_their_common_prefix_once():
    machine = engine()
    machine.submit(Sequence("a", 40, 2, Content(hashes=[1, 2])), 0.0)
    machine.submit(Sequence("b", 40, 2, Content(hashes=[1, 2])), 0.0)
    _, result = run_step(machine)
    assert result.prefill_tokens == 40 + 8
    assert machine.statistics().prefix_hits == 32


def test_generated_tokens_are_cached_for_the_next_turn():
    machine = engine()
    machine.submit(Sequence("a", 20, 30, Content(hashes=[1, 2, 3])), 0.0)
    run_all(machine)
    turn = Sequence("b", 60, 1, Content(hashes=[1, 2, 3]))
    machine.submit(turn, 1.0)
    run_all(machine, 1.0)
    assert turn.cached_tokens == 48


def test_hashes_that_become_known_while_decoding_are_published_too():
    machine = Engine(EngineSettings(num_blocks=100), STEP_TIME, record_events=True)
    hashes = [1]
    machine.submit(Sequence("a", 20, 30, Content(hashes=hashes)), 0.0)
    run_step(machine)
    hashes += [2, 3]
    run_all(machine)
    stored = [event.block_hashes for event in machine.take_events() if isinstance(event, BlockStored)]
    assert stored == [(1,), (2,), (3,)]


def test_a_sequence_is_admitted_only_if_all_its_tokens_fit():
    machine = engine(num_blocks=10, max_num_batched_tokens=32, max_num_seqs=4)
    machine.submit(Sequence("a", 96, 8), 0.0)
    machine.submit(Sequence("b", 80, 2), 0.0)
    machine.submit(Sequence("small", 16, 2), 0.0)
    run_step(machine)
    for _ in range(3):
        run_step(machine)
    assert machine.statistics().waiting == 2  # 7 of 10 blocks are taken; nobody passes the one in front


def test_who_came_last_is_preempted_and_keeps_its_tokens():
    machine = engine(num_blocks=4, block_tokens=4, max_num_batched_tokens=64, max_num_seqs=4)
    first, last = Sequence("first", 7, 6), Sequence("last", 7, 6)
    machine.submit(first, 0.0)
    machine.submit(last, 0.0)
    run_step(machine)
    _, result = run_step(machine)
    assert result.preempted == []
    _, result = run_step(machine)
    assert result.preempted == [last]
    assert (last.phase, last.generated, last.preemptions) == (Phase.WAITING, 2, 1)
    assert machine.statistics().preemptions == 1
    _, done = run_all(machine)
    assert [name for name, *_ in done] == ["first", "last"]
    assert last.generated == 6


def test_by_priority_the_least_urgent_is_preempted_and_the_most_urgent_admitted_first():
    machine = engine(num_blocks=4, block_tokens=4, max_num_batched_tokens=64, max_num_seqs=2, by_priority=True)
    late = Sequence("late", 7, 6, priority=1)
    machine.submit(late, 0.0)
    machine.submit(Sequence("urgent", 7, 6, priority=-1), 0.0)
    machine.submit(Sequence("other", 7, 2, priority=2), 0.0)
    run_step(machine)
    run_step(machine)
    _, result = run_step(machine)
    assert result.preempted == [late]
    _, done = run_all(machine)
    assert [name for name, *_ in done] == ["urgent", "late", "other"]


def test_by_priority_a_waiting_sequence_preempts_nobody_and_a_preempted_one_keeps_its_turn():
    machine = engine(num_blocks=4, block_tokens=4, max_num_batched_tokens=64, max_num_seqs=2, by_priority=True)
    machine.submit(Sequence("first", 7, 6), 0.0)
    machine.submit(Sequence("second", 7, 6), 0.0)
    run_step(machine)
    machine.submit(Sequence("urgent", 7, 2, priority=-1), 0.1)
    run_step(machine)
    assert {s.id for s in machine.decoding} == {"first", "second"}
    _, result = run_step(machine)
    assert [s.id for s in result.preempted] == ["second"]
    machine.submit(Sequence("third", 7, 2), 0.2)
    _, done = run_all(machine)
    assert [name for name, *_ in done] == ["first", "urgent", "second", "third"]


def test_without_the_policy_priorities_change_nothing():
    machine = engine(max_num_seqs=1)
    for name, priority in (("first", 9), ("second", 0), ("third", -9)):
        machine.submit(Sequence(name, 8, 2, priority=priority), 0.0)
    _, done = run_all(machine)
    assert [name for name, *_ in done] == ["first", "second", "third"]


def test_an_abort_frees_the_blocks_at_once_in_every_phase():
    machine = engine(num_blocks=20, max_num_batched_tokens=32, max_num_seqs=2)
    for name, prompt_tokens in (("decoding", 16), ("partial", 200), ("waiting", 16)):
        machine.submit(Sequence(name, prompt_tokens, 9), 0.0)
    run_step(machine)
    assert {s.id for s in machine.decoding} == {"decoding"}
    duration_s = machine.begin_step(1.0)
    for name in ("decoding", "partial", "waiting"):
        assert machine.abort(name, 1.0)
        assert not machine.abort(name, 1.0)
        machine.check()
    assert machine.statistics().kv_usage == 0.0
    result = machine.finish_step(1.0 + duration_s)
    assert (result.started, result.finished, result.output_tokens) == ([], [], 0)
    assert machine.idle


def test_a_sequence_that_can_never_fit_is_refused():
    machine = engine(num_blocks=2, block_tokens=16)
    with pytest.raises(CallerError, match="exceed the KV memory of 32 tokens"):
        machine.submit(Sequence("a", 30, 3), 0.0)
    with pytest.raises(CallerError, match="at least one"):
        machine.submit(Sequence("b", 0, 3), 0.0)


def test_an_id_in_use_is_refused():
    machine = engine()
    sequence = Sequence("a", 3, 3)
    machine.submit(sequence, 0.0)
    for again in (sequence, Sequence("a", 3, 3)):
        with pytest.raises(CallerError, match="submitted before"):
            machine.submit(again, 0.0)


@pytest.mark.parametrize(
    "knobs", [{"num_blocks": 0}, {"block_tokens": 0}, {"max_num_seqs": 9, "max_num_batched_tokens": 8}]
)
def test_settings_that_cannot_work_are_refused(knobs):
    with pytest.raises(OperatorError, match="must be at least"):
        engine(**knobs)


def test_steps_out_of_turn_are_an_internal_error():
    machine = engine()
    for call in (machine.finish_step, machine.shorten_step):
        with pytest.raises(InternalError):
            call(0.0)
    machine.submit(Sequence("a", 3, 3), 0.0)
    machine.begin_step(0.0)
    with pytest.raises(InternalError):
        machine.begin_step(0.0)


def test_the_same_seed_gives_the_same_times_and_another_seed_others():
    def times(seed):
        machine = Engine(EngineSettings(num_blocks=100, step_noise=0.1), STEP_TIME, rng=Random(seed))
        for name in "ab":
            machine.submit(Sequence(name, 50, 20), 0.0)
        return run_all(machine)

    assert times(1) == times(1)
    assert times(1) != times(2)


# Steps end at multiples of half a microsecond, arrivals never do: which of them comes first does not hang on a rounding error.
arrivals = st.lists(
    st.tuples(
        st.integers(0, 300).map(lambda ms: 1e-3 * ms + 3e-7),
        st.integers(1, 60),
        st.integers(1, 40),
        st.integers(0, 2),
        st.sampled_from(tuple(Stage)),
    ),
    min_size=1,
    max_size=12,
)


class Drive:
    """Runs arrivals through an engine, of which some hand over or import their KV; `times` has each sequence's."""

    def __init__(self, requests, max_steps):
        self.machine = Engine(
            EngineSettings(num_blocks=14, block_tokens=8, max_num_seqs=3, max_num_batched_tokens=40), STEP_TIME
        )
        self.max_steps = max_steps
        self.times, self.calls = {}, 0
        self.now_s, self.end_s = 0.0, None
        self.due = []
        for i, (at_s, prompt, output, family, stage) in enumerate(sorted(requests)):
            sequence = Sequence(
                str(i),
                prompt,
                output,
                Content(hashes=[100 * family + j for j in range(prompt // 8)]),
                stage=stage,
            )
            self.due.append((at_s, self.machine.submit, (sequence, at_s)))
        while self.due or self.end_s is not None:
            self.due.sort(key=lambda one: one[0])
            if self.end_s is None or (self.due and self.due[0][0] < self.end_s):
                self.take(*self.due.pop(0))
            else:
                self.finish()
        assert self.machine.idle

    def take(self, at_s, happen, arguments):
        self.now_s = at_s
        self.machine.catch_up(at_s)
        happen(*arguments)
        self.machine.check()
        if self.end_s is None:
            self.begin()
        else:
            self.end_s = self.machine.shorten_step(at_s)

    def begin(self):
        duration_s = self.machine.begin_step(self.now_s, self.max_steps)
        self.end_s = None if duration_s is None else self.now_s + duration_s
        for sequence in self.machine.imports.take_untold():
            come_s = self.now_s + 0.05 + 1.0371e-7 * int(sequence.id)
            self.due.append((come_s, self.machine.imports.arrive, (sequence.id,)))

    def finish(self):
        self.now_s = self.end_s
        self.calls += 1
        for sequence in self.machine.finish_step(self.now_s).finished:
            self.times[sequence.id] = (sequence.first_token_s, sequence.finished_s, sequence.cached_tokens)
            if sequence.stage is Stage.PREFILL:
                read_s = self.now_s + 0.08 + 1.0733e-7 * int(sequence.id)
                self.due.append((read_s, self.machine.holdings.release, (sequence.id,)))
        self.machine.check()
        self.begin()


@given(arrivals)
def test_several_steps_at_once_give_what_single_steps_give(requests):
    single, several = Drive(requests, 1), Drive(requests, 1000)
    assert single.times.keys() == several.times.keys()
    for name, times in single.times.items():
        assert several.times[name] == pytest.approx(times)
    assert single.machine.statistics() == several.machine.statistics()
    assert several.calls <= single.calls


def test_plain_decoding_takes_one_call_for_many_steps():
    machine = engine(num_blocks=1000)
    machine.submit(Sequence("a", 10, 500), 0.0)
    run_step(machine)
    machine.begin_step(0.0, max_steps=10_000)
    result = machine.finish_step(9.0)
    assert (result.steps, result.output_tokens, len(result.finished)) == (499, 499, 1)


def test_a_copy_runs_ahead_without_touching_the_original():
    machine = engine(num_blocks=30, max_num_batched_tokens=64, max_num_seqs=3)
    for name, tokens in (("a", 30), ("b", 100), ("c", 20), ("d", 20)):
        machine.submit(Sequence(name, tokens, 12, Content(hashes=[1, 2])), 0.0)
    now_s, _ = run_step(machine)
    duration_s = machine.begin_step(now_s)
    before = machine.statistics()
    ahead = machine.copy()
    ahead.finish_step(now_s + duration_s)
    foreseen = run_all(ahead, now_s + duration_s)
    assert ahead.idle
    assert machine.statistics() == before
    machine.check()
    machine.finish_step(now_s + duration_s)
    assert run_all(machine, now_s + duration_s) == foreseen
