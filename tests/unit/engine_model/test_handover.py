"""A prompt computed on one engine and decoded on another, as the two engines see it."""

import pytest

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.sequence import Content, Phase, Sequence
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.values.stage import Stage

STEP_TIME = LinearStepTime(fixed_s=0.01, per_seq_s=0.001, per_context_token_s=1e-6, prefill_tps=10_000, prompt_s=0.1)


def engine(**knobs):
    return Engine(EngineSettings(**({"num_blocks": 100} | knobs)), STEP_TIME)


def run_step(machine, now_s=0.0):
    end_s = now_s + machine.begin_step(now_s)
    result = machine.finish_step(end_s)
    machine.check()
    return end_s, result


def importing(name="d", prompt=100, output=3, hashes=()):
    return Sequence(name, prompt, output, Content(hashes=hashes), stage=Stage.DECODE)


def test_a_handed_over_prompt_ends_with_its_first_token_and_keeps_its_blocks():
    machine = engine()
    sequence = Sequence("p", 100, 1, stage=Stage.PREFILL)
    machine.submit(sequence, 0.0)
    _, result = run_step(machine)
    assert result.started == result.finished == [sequence]
    assert "p" in machine.holdings
    assert not machine.idle
    statistics = machine.statistics()
    assert (statistics.running, statistics.held, statistics.kv_usage) == (0, 1, pytest.approx(7 / 100))
    assert machine.begin_step(1.0) is None


def test_kept_blocks_are_free_once_they_are_read():
    machine = engine()
    machine.submit(Sequence("p", 100, 1, stage=Stage.PREFILL), 0.0)
    run_step(machine)
    assert machine.holdings.release("p")
    assert machine.idle
    assert machine.statistics().kv_usage == 0.0
    assert not machine.holdings.release("p")


def test_kept_blocks_are_free_when_their_lease_ends_and_a_reader_renews_it():
    machine = engine(kv_lease_s=30.0)
    for name in "ab":
        machine.submit(Sequence(name, 100, 1, stage=Stage.PREFILL), 0.0)
    end_s, _ = run_step(machine)
    assert machine.holdings.first_end_s == pytest.approx(end_s + 30.0)
    assert machine.holdings.renew("a", 50.0)
    assert machine.holdings.expire(end_s + 29.9) == 0
    assert machine.holdings.expire(end_s + 30.1) == 1
    assert machine.holdings.first_end_s == 50.0
    assert not machine.holdings.renew("b", 60.0)


def test_an_aborted_prompt_is_not_kept():
    machine = engine(max_num_batched_tokens=256, max_num_seqs=8)
    machine.submit(Sequence("p", 1000, 1, stage=Stage.PREFILL), 0.0)
    run_step(machine)
    assert machine.abort("p", 1.0)
    assert machine.idle


def test_what_is_kept_keeps_others_waiting():
    machine = engine(num_blocks=10)
    machine.submit(Sequence("p", 100, 1, stage=Stage.PREFILL), 0.0)
    run_step(machine)
    machine.submit(Sequence("q", 100, 1), 1.0)
    assert machine.begin_step(1.0) is None
    assert machine.statistics().waiting == 1
    machine.holdings.release("p")
    _, result = run_step(machine, 2.0)
    assert [one.id for one in result.finished] == ["q"]


def test_an_import_waits_with_its_blocks_beside_the_batch_and_then_needs_one_plain_step():
    machine = engine()
    machine.submit(Sequence("other", 10, 50), 0.0)
    now_s, _ = run_step(machine)
    sequence = importing()
    machine.submit(sequence, now_s)
    now_s, _ = run_step(machine, now_s)
    assert machine.imports.take_untold() == [sequence]
    assert machine.imports.take_untold() == []
    assert (sequence.phase, sequence.fetched, sequence.cached_tokens) == (Phase.IMPORT, 100, 0)
    statistics = machine.statistics()
    assert (statistics.running, statistics.waiting) == (1, 1)
    now_s, result = run_step(machine, now_s)
    assert result.output_tokens == 1
    assert machine.imports.arrive("d")
    duration_s = machine.begin_step(now_s)
    assert duration_s == pytest.approx(0.01 + 2 * 0.001 + (12 + 99) * 1e-6)  # no prompt is computed in it
    result = machine.finish_step(now_s + duration_s)
    assert result.started == [sequence]
    assert sequence.phase is Phase.DECODE
    assert machine.statistics().imported_tokens == 100


def test_only_what_the_cache_does_not_hold_is_fetched():
    machine = engine()
    hashes = list(range(10))
    machine.submit(Sequence("before", 64, 1, Content(hashes=hashes[:4])), 0.0)
    run_step(machine)
    sequence = importing(prompt=160, hashes=hashes)
    machine.submit(sequence, 1.0)
    assert machine.begin_step(1.0) is None
    assert (sequence.cached_tokens, sequence.fetched) == (64, 96)


def test_imported_blocks_are_cached_from_their_coming_on():
    machine = engine()
    machine.submit(importing(prompt=160, output=1, hashes=list(range(10))), 0.0)
    machine.begin_step(0.0)
    assert machine.statistics().cached_blocks == 0
    machine.imports.arrive("d")
    assert machine.statistics().cached_blocks == 9  # the last one is full once its last token is computed again
    run_step(machine, 1.0)
    assert machine.statistics().cached_blocks == 10


def test_an_import_needs_room_for_its_whole_prompt():
    machine = engine(num_blocks=10)
    machine.submit(Sequence("running", 100, 20), 0.0)
    now_s, _ = run_step(machine)
    machine.submit(importing(), now_s)
    run_step(machine, now_s)
    assert machine.imports.take_untold() == []


def test_who_has_its_kv_runs_before_who_came_earlier_and_waits():
    machine = engine(max_num_seqs=2, num_blocks=20)
    machine.submit(importing("d", 100), 0.0)
    machine.submit(Sequence("running", 100, 30), 0.0)
    now_s, _ = run_step(machine)
    machine.submit(Sequence("waiting", 250, 2, priority=-1), now_s)
    machine.imports.arrive("d")
    _, result = run_step(machine, now_s)
    assert [one.id for one in result.started] == ["d"]


def test_a_preempted_import_is_computed_here():
    machine = engine(num_blocks=14, max_num_seqs=2)
    machine.submit(Sequence("first", 100, 60), 0.0)
    machine.submit(importing("d", 100, 60), 0.0)
    now_s, _ = run_step(machine)
    machine.imports.arrive("d")
    computed = fetched = 0
    while machine.begin_step(now_s) is not None:
        result = machine.finish_step(now_s)
        machine.check()
        computed += result.prefill_tokens
        fetched += len(machine.imports.take_untold())
    assert machine.statistics().preemptions == 1
    assert computed > 100
    assert fetched == 1


@pytest.mark.parametrize("come", [False, True])
def test_an_aborted_import_frees_its_blocks_and_what_comes_later_is_for_nobody(come):
    machine = engine()
    machine.submit(importing(), 0.0)
    machine.begin_step(0.0)
    if come:
        assert machine.imports.arrive("d")
    assert machine.abort("d", 1.0)
    assert not machine.imports.arrive("d")
    assert machine.idle
    machine.check()


def test_a_copy_has_imports_and_holdings_of_its_own():
    machine = engine()
    machine.submit(importing(), 0.0)
    machine.submit(Sequence("p", 100, 1, stage=Stage.PREFILL), 0.0)
    now_s, _ = run_step(machine)
    ahead = machine.copy()
    ahead.check()
    ahead.holdings.release("p")
    ahead.imports.arrive("d")
    run_step(ahead, now_s)
    assert "p" in machine.holdings
    assert not machine.imports.ready
    machine.check()
    assert machine.imports.take_untold() != []
    assert machine.fresh().idle


def test_a_reader_that_is_heard_never_shortens_a_lease():
    machine = engine(kv_lease_s=30.0)
    machine.submit(Sequence("p", 100, 1, stage=Stage.PREFILL), 0.0)
    end_s, _ = run_step(machine)
    assert machine.holdings.extend("p", end_s + 20.0)
    assert machine.holdings.first_end_s == pytest.approx(end_s + 30.0)
    assert machine.holdings.extend("p", end_s + 40.0)
    assert machine.holdings.first_end_s == pytest.approx(end_s + 40.0)
    assert not machine.holdings.extend("q", 100.0)


def test_a_prompt_whose_kv_does_not_come_is_computed_before_those_that_came_later():
    machine = engine(max_num_seqs=1)
    blocker, lost, later = Sequence("b", 16, 3), importing("lost", prompt=64), Sequence("later", 64, 3)
    machine.submit(lost, 0.0)
    machine.submit(blocker, 0.0)
    run_step(machine)
    assert lost.phase is Phase.IMPORT
    machine.submit(later, 0.1)
    assert machine.imports.lose("lost")
    machine.check()
    assert not machine.imports.lose("lost")
    assert machine.imports.take_untold() == []
    order = []
    now_s = 1.0
    while machine.begin_step(now_s) is not None:
        now_s += 1.0
        order += machine.finish_step(now_s).finished
        machine.check()
    assert order == [blocker, lost, later]
    statistics = machine.statistics()
    assert (statistics.imported_tokens, statistics.computed_tokens, lost.fetched) == (0, 64 + 16 + 64, 0)
    assert statistics.prefix_queries == 64 + 16 + 64


def test_found_tokens_are_those_of_fetched_prompts_that_were_cached_here():
    hashes = [1, 2, 3, 4, 5, 6]
    machine = engine()
    machine.submit(Sequence("local", 64, 1, Content(hashes=hashes[:4])), 0.0)
    run_step(machine)
    machine.submit(importing("d", prompt=100, output=1, hashes=hashes), 1.0)
    machine.begin_step(1.0)
    assert machine.imports.arrive("d")
    run_step(machine, 2.0)
    statistics = machine.statistics()
    assert (statistics.found_tokens, statistics.imported_tokens, statistics.prefix_hits) == (64, 36, 0)
