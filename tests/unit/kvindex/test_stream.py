"""The order of a publisher's batches: gaps, restarts, duplicates, and a model of a publisher that has them all."""

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from beaconry.kvindex.stream import NOTHING, Advance, SourceStream
from beaconry.values.kv_events import AllBlocksCleared, BlockStored, KvBatch, SourceState

EXACT, DEGRADED, COLD = SourceState.EXACT, SourceState.DEGRADED, SourceState.COLD


def batch(ts, *events):
    return KvBatch(ts=float(ts), events=events)


def stored(*hashes, **fields):
    return BlockStored(block_hashes=hashes, parent_hash=None, token_ids=(), block_tokens=1, **fields)


def stream(*, replays=True, **options):
    return SourceStream(replays=replays, **options)


def fed(numbers, **options):
    """A stream that has applied these batches; the time of each is its number."""
    made = stream(**options)
    if made._replays:
        assert made.connected() == Advance(replay_from=0)
        made.replay_ended()
    for number in numbers:
        made.live(number, batch(number))
    return made


# -- the beginning


def test_nothing_is_known_before_the_first_message():
    made = stream()
    assert (made.state, made.reason) == (COLD, "nothing heard yet")
    made.connected()
    assert (made.state, made.reason) == (COLD, "asking for the past")


def test_an_engine_without_past_is_known_exactly():
    made = stream()
    made.connected()
    assert made.replay_ended() == NOTHING
    assert made.state is EXACT


def test_who_listens_from_the_first_batch_on_knows_all():
    made = stream(replays=False)
    assert made.connected() == NOTHING
    assert made.live(0, batch(0)) == Advance(batches=(batch(0),))
    assert (made.state, made.reason) == (EXACT, "")


def test_who_begins_later_without_replay_knows_only_what_follows():
    made = stream(replays=False)
    made.connected()
    assert made.live(7, batch(7)) == Advance(batches=(batch(7),))
    assert made.state is DEGRADED
    assert made.reason == "nothing is known of the batches before 7: no replay configured"
    assert made.statistics().lost == 0
    made.live(8, batch(8, AllBlocksCleared()))
    assert made.state is EXACT


def test_the_past_is_replayed_before_what_came_meanwhile():
    made = stream()
    made.connected()
    assert made.live(2, batch(2)) == NOTHING
    assert made.live(3, batch(3)) == NOTHING
    for number in (0, 1, 2):
        assert made.replayed(number, batch(number)) == Advance(batches=(batch(number),))
    assert made.state is DEGRADED
    assert made.replay_ended() == Advance(batches=(batch(3),))
    assert made.state is EXACT


def test_a_publisher_that_remembers_only_the_end_leaves_the_source_degraded():
    made = stream()
    made.connected()
    assert made.replayed(100, batch(100)).batches == (batch(100),)
    made.replay_ended()
    assert made.state is DEGRADED
    assert "before 100" in made.reason


# -- gaps


def test_a_gap_is_asked_for_beginning_with_the_last_batch_that_we_have():
    made = fed([0, 1, 2])
    assert made.live(5, batch(5)) == Advance(replay_from=2)
    assert made.state is DEGRADED
    assert made.replayed(2, batch(2)) == NOTHING
    assert made.replayed(3, batch(3)).batches == (batch(3),)
    assert made.replayed(4, batch(4)).batches == (batch(4),)
    assert made.replay_ended().batches == (batch(5),)
    assert made.state is EXACT
    assert (made.statistics().gaps, made.statistics().lost) == (1, 0)


def test_without_replay_a_gap_stays_until_the_engine_clears_its_cache():
    made = fed([0, 1], replays=False)
    assert made.live(4, batch(4)).batches == (batch(4),)
    assert (made.state, made.reason) == (DEGRADED, "batches 2 to 3 are lost: no replay configured")
    made.live(5, batch(5))
    assert made.state is DEGRADED
    made.live(6, batch(6, AllBlocksCleared()))
    assert made.state is EXACT
    assert made.statistics().lost == 2


def test_an_answer_that_begins_after_the_gap_replaces_the_view():
    made = fed([0, 1])
    made.live(9, batch(9))
    assert made.replayed(6, batch(6)) == Advance(clear=True, batches=(batch(6),))
    made.replayed(7, batch(7))
    made.replayed(8, batch(8))
    assert made.replay_ended() == Advance(batches=(batch(9),))
    assert made.state is DEGRADED
    assert made.statistics().restarts == 0


def test_without_an_answer_the_gap_is_accepted():
    made = fed([0, 1])
    made.live(9, batch(9))
    assert made.replay_failed("no answer in 2 s") == Advance(batches=(batch(9),))
    assert made.state is DEGRADED
    assert made.reason == "no replay: no answer in 2 s"
    assert made.live(10, batch(10)).batches == (batch(10),)
    assert made.connected() == Advance(replay_from=10)
    made.replayed(10, batch(10))
    made.replay_ended()
    assert made.reason == "batches 2 to 8 are lost: no replay: no answer in 2 s"


def test_a_hole_within_an_answer_is_asked_for_again():
    made = stream()
    made.connected()
    made.replayed(0, batch(0))
    assert made.replayed(2, batch(2)) == Advance(replay_from=0)
    assert made.replayed(0, batch(0)) == NOTHING
    made.replayed(1, batch(1))
    made.replayed(2, batch(2))
    made.replay_ended()
    assert made.state is EXACT


def test_an_answer_that_ends_early_is_asked_for_again_while_it_helps():
    made = fed([0])
    made.live(5, batch(5))
    made.replayed(0, batch(0))
    made.replayed(1, batch(1))
    assert made.replay_ended() == Advance(replay_from=1)
    made.replayed(1, batch(1))
    assert made.replay_ended() == Advance(batches=(batch(5),))
    assert made.reason == "batches 2 to 4 are lost: the publisher does not send them"


def test_what_waits_is_bounded():
    made = fed([0], limit=3)
    for number in range(5, 20):
        made.live(number, batch(number))
        made.check()
    assert made.statistics().waiting == 3
    made.replay_failed("gone")
    assert made.live(20, batch(20)) == Advance(replay_from=7)


# -- restarts and duplicates


def test_a_backwards_sequence_clears_the_source():
    made = fed(range(10))
    assert made.live(0, batch(99)) == Advance(clear=True, batches=(batch(99),))
    assert made.state is EXACT
    assert made.statistics().restarts == 1


def test_after_a_restart_in_which_the_first_batches_were_missed_these_are_asked_for():
    made = fed(range(10))
    assert made.live(3, batch(99)) == Advance(clear=True, replay_from=0)
    assert made.state is COLD
    for number in range(3):
        made.replayed(number, batch(90 + number))
    assert made.replay_ended() == Advance(batches=(batch(99),))
    assert made.state is EXACT


def test_a_duplicate_changes_nothing():
    made = fed(range(10))
    assert made.live(9, batch(9)) == NOTHING
    assert made.live(4, batch(4)) == NOTHING
    assert made.state is EXACT
    assert made.statistics().duplicates == 2


def test_a_restart_while_an_answer_is_awaited_starts_over():
    made = fed(range(3))
    made.live(7, batch(7))
    assert made.live(7, batch(7)) == NOTHING
    assert made.live(0, batch(99)) == Advance(clear=True, batches=(batch(99),))
    assert made.replayed(2, batch(2)) == NOTHING
    assert made.replay_ended() == NOTHING
    assert made.replay_failed("late") == NOTHING
    assert made.state is EXACT


@pytest.mark.parametrize("newer", [(), (98,)])
def test_a_restart_while_nobody_listened_shows_in_the_first_answer(newer):
    made = fed(range(10))
    made.disconnected()
    assert (made.state, made.reason) == (DEGRADED, "disconnected")
    assert made.connected() == Advance(replay_from=9)
    if newer:
        assert made.replayed(9, batch(98)) == Advance(clear=True, replay_from=0)
    else:
        assert made.replay_ended() == Advance(clear=True, replay_from=0)
    assert made.state is COLD
    made.replayed(0, batch(90))
    made.replay_ended()
    assert made.state is EXACT
    assert made.statistics().restarts == 1


def test_what_waits_from_before_a_restart_is_not_applied_after_it():
    made = fed(range(10))
    made.live(15, batch(15))
    assert made.replay_ended() == Advance(clear=True, replay_from=0)
    made.replayed(0, batch(90))
    assert made.replay_ended() == NOTHING
    assert made.state is EXACT
    assert made.statistics().next_sequence == 1


def test_a_reconnect_to_the_same_engine_keeps_the_view():
    made = fed(range(10))
    made.disconnected()
    made.connected()
    assert made.replayed(9, batch(9)) == NOTHING
    assert made.replayed(10, batch(10)).batches == (batch(10),)
    assert made.replay_ended() == NOTHING
    assert made.state is EXACT


def test_a_reconnect_without_replay_starts_afresh():
    made = fed(range(10), replays=False)
    made.disconnected()
    assert made.connected() == Advance(clear=True)
    assert made.state is COLD


def test_a_reconnect_that_cannot_be_proven_to_be_to_the_same_engine_starts_afresh():
    made = fed(range(10))
    made.disconnected()
    made.connected()
    assert made.replay_failed("no answer") == Advance(clear=True)
    assert (made.state, made.reason) == (COLD, "no replay: no answer")
    assert made.live(10, batch(10)) == Advance(replay_from=0)


# -- a publisher with all of these


class Publisher(RuleBasedStateMachine):
    """Publishes, forgets, restarts; messages and answers get lost. An exact view must be what was published since the start."""

    def __init__(self):
        super().__init__()
        self.clock = count(1)
        self.log = []
        self.ring = 10
        self.view = []
        self.answer = None
        self.online = True

    @initialize(replays=st.booleans(), limit=st.integers(1, 20), ring=st.integers(1, 30))
    def begin(self, replays, limit, ring):
        self.stream = stream(replays=replays, limit=limit)
        self.ring = ring
        self.follow(self.stream.connected())

    def follow(self, advance):
        if advance.clear:
            self.view.clear()
        self.view += advance.batches
        if advance.replay_from is not None:
            first = max(advance.replay_from, len(self.log) - self.ring)
            self.answer = list(enumerate(self.log))[first:]

    @rule(heard=st.booleans(), repeats=st.integers(0, 1))
    def publish(self, heard, repeats):
        self.log.append(batch(next(self.clock), stored(len(self.log))))
        for _ in range((heard and self.online) * (1 + repeats)):
            self.follow(self.stream.live(len(self.log) - 1, self.log[-1]))

    @rule()
    def restart(self):
        self.log.clear()
        self.answer = None
        self.online = False
        self.stream.disconnected()

    @rule()
    def reconnect(self):
        self.answer = None
        self.online = True
        self.stream.disconnected()
        self.follow(self.stream.connected())

    @precondition(lambda self: self.answer is not None)
    @rule(some=st.integers(0, 12), lose=st.sampled_from([0, 0, 0, 1]))
    def answer_some(self, some, lose):
        for _ in range(some):
            if not self.answer:
                break
            number, one = self.answer.pop(0)
            if not lose:
                asked = self.answer
                self.follow(self.stream.replayed(number, one))
                if self.answer is not asked:
                    break

    @precondition(lambda self: self.answer is not None)
    @rule(fails=st.sampled_from([False, False, True]))
    def end_answer(self, fails):
        if fails:
            self.answer = None
            self.follow(self.stream.replay_failed("broken"))
            return
        while self.answer:
            self.answer_some(5, 0)
        self.answer = None
        self.follow(self.stream.replay_ended())

    @invariant()
    def what_is_called_exact_is(self):
        if not hasattr(self, "stream"):
            return
        self.stream.check()
        times = [one.ts for one in self.view]
        assert times == sorted(set(times))
        if self.stream.state is EXACT:
            heard = self.stream.statistics().next_sequence
            assert self.view == self.log[:heard]

    def teardown(self):
        """Left in peace, a source with replay becomes exact unless something is lost for good, and ends with the newest batch."""
        if not hasattr(self, "stream") or not self.stream._replays:
            return
        self.reconnect()
        for _ in range(10):
            if self.answer is not None:
                self.end_answer(fails=False)
        assert self.view[-1:] == self.log[-1:]
        if self.stream._lost:
            assert self.stream.state is not EXACT
        else:
            assert self.view == self.log
            assert self.stream.state is EXACT


Publisher.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestPublisher = Publisher.TestCase
