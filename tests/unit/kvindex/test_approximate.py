"""The approximate index: against a naive set of prefixes, as a cache, and as a learner."""

from collections import OrderedDict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.match import NO_MATCH

NAMES = ("a", "b", "c")


def chain(*choices, block=3):
    """A prompt of `block` blocks per choice; prompts share blocks as far as their choices agree."""
    hashes, link = [], 1
    for choice in choices:
        for i in range(block):
            link = hash((link, choice, i)) & 0xFFFF_FFFF_FFFF_FFFF
            hashes.append(link)
    return tuple(hashes)


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(lambda choices: chain(*choices))


def blocks(index, name, prompt):
    return index.match(prompt).get(name, NO_MATCH).blocks


@given(st.lists(st.tuples(st.sampled_from(NAMES), PROMPTS), max_size=30), PROMPTS)
@settings(max_examples=200)
def test_without_a_limit_the_index_knows_exactly_what_was_sent_where(sent, asked):
    index = ApproximateIndex()
    naive = {name: set() for name in NAMES}
    for name, prompt in sent:
        index.routed(name, prompt)
        naive[name].update(prompt)
    index.check()
    for name in NAMES:
        held = next((i for i, h in enumerate(asked) if h not in naive[name]), len(asked))
        match = index.match(asked).get(name, NO_MATCH)
        assert (match.blocks, match.known) == (held, held)


class AnyUse(RuleBasedStateMachine):
    """Whatever is reported, in whatever order, the index stays consistent and within its bounds."""

    LIMIT = 20_000

    def __init__(self):
        super().__init__()
        self.index = ApproximateIndex(limit_bytes=self.LIMIT)
        self.flying = []

    @rule(name=st.sampled_from(NAMES), prompt=PROMPTS)
    def send(self, name, prompt):
        before = blocks(self.index, name, prompt)
        placement = self.index.routed(name, prompt)
        assert placement.resident <= before
        self.flying.append(placement)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 100), cached=st.sampled_from(["all", "none", "unknown", "half"]))
    def end(self, which, cached):
        placement = self.flying.pop(which % len(self.flying))
        resident = placement.resident
        report = {"all": resident, "none": 0, "unknown": None, "half": resident / 2}[cached]
        self.index.confirmed(placement, report)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 100), kept=st.sampled_from([0, 0, 1, 4, 100]))
    def fail(self, which, kept):
        self.index.abandoned(self.flying.pop(which % len(self.flying)), kept)

    @rule(name=st.sampled_from(NAMES))
    def restart(self, name):
        self.index.forget(name)
        assert all(name not in self.index.match(chain(c)) for c in (0, 1))

    @rule(name=st.sampled_from(NAMES), size=st.integers(1, 40))
    def learn_size(self, name, size):
        self.index.sized(name, float(size))

    @rule(prompt=PROMPTS, name=st.sampled_from(NAMES), new=st.integers(0, 50))
    def ask(self, prompt, name, new):
        for match in self.index.match(prompt).values():
            assert 0 <= match.blocks <= match.known <= len(prompt)
            assert match.sharers >= 0
        assert 0 <= self.index.displaced(name, new) <= max(self.index.statistics().blocks.values(), default=0)

    @invariant()
    def is_consistent(self):
        self.index.check()
        statistics = self.index.statistics()
        assert statistics.bytes <= self.LIMIT
        assert all(statistics.blocks[n] <= statistics.capacity[n] + 1 for n in statistics.blocks)
        for name in NAMES:
            distinct = {h for placement in self.flying if placement.endpoint == name for h in placement.prefix}
            assert self.index.pinned(name) <= len(
                distinct
            )  # less where a restart or the bound on memory has cut what is in flight


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def finish(index, placement, cached=None):
    index.confirmed(placement, placement.resident if cached is None else cached)


def test_prefixes_in_flight_count_as_there_but_not_as_resident():
    index, prompt = ApproximateIndex(), chain(0, 1)
    first = index.routed("a", prompt)
    second = index.routed("a", prompt)
    assert blocks(index, "a", prompt) == 6
    assert (first.resident, second.resident) == (0, 0)
    finish(index, first)
    assert index.routed("a", prompt).resident == 6


def test_what_never_ran_is_not_there():
    index, shared, prompt = ApproximateIndex(), chain(0), chain(0, 1)
    finish(index, index.routed("a", shared))
    placement = index.routed("a", prompt)
    index.abandoned(placement)
    assert blocks(index, "a", prompt) == 3
    index.check()


def test_what_was_withdrawn_in_the_middle_of_its_prefill_is_there_as_far_as_it_got():
    index, prompt = ApproximateIndex(), chain(0, 1, 2)
    placement = index.routed("a", prompt)
    index.abandoned(placement, kept=4)
    assert blocks(index, "a", prompt) == 4
    assert (
        index.routed("a", prompt).resident == 0
    )  # believed, not known: a report of less would teach nothing about the size
    index.check()


def test_blocks_of_prompts_in_flight_are_counted_once_however_many_share_them():
    index = ApproximateIndex()
    first, second = index.routed("a", chain(0, 1)), index.routed("a", chain(0, 2))
    assert index.pinned("a") == 9
    finish(index, first)
    assert index.pinned("a") == 6
    index.abandoned(second)
    assert (index.pinned("a"), index.pinned("b")) == (0, 0)


def test_the_end_of_the_oldest_prompt_goes_first():
    index = ApproximateIndex()
    index.sized("a", 12)
    old, new = chain(0, 0, 0), chain(1, 1)
    finish(index, index.routed("a", old))
    finish(index, index.routed("a", new))
    assert blocks(index, "a", new) == 6
    assert blocks(index, "a", old) in {6, 7}
    assert index.match(old)["a"].known == 9


def test_a_shared_beginning_outlives_its_continuations():
    index = ApproximateIndex()
    index.sized("a", 12)
    for choice in range(6):
        finish(index, index.routed("a", chain(0, choice)))
    assert blocks(index, "a", chain(0, 5)) == 6
    assert blocks(index, "a", chain(0, 99)) == 3
    assert blocks(index, "a", chain(0, 0)) == 3


def test_a_report_of_less_shrinks_the_shelf_to_what_was_used_since():
    index = ApproximateIndex()
    for choice in range(10):
        finish(index, index.routed("a", chain(choice, 0)))
    finish(index, index.routed("a", chain(4, 0)), cached=0)
    capacity = index.statistics().capacity["a"]
    assert capacity == pytest.approx(36, abs=1)
    assert blocks(index, "a", chain(3, 0)) == 0
    assert blocks(index, "a", chain(5, 0)) == blocks(index, "a", chain(4, 0)) == 6


def test_a_restarted_engine_is_found_out_by_its_reports():
    index, prompts = ApproximateIndex(), [chain(choice, 0) for choice in range(40)]
    for prompt in prompts:
        finish(index, index.routed("a", prompt))
    reports = 0
    for prompt in prompts[::-1]:
        placement = index.routed("a", prompt)
        reports += placement.resident > 0
        finish(index, placement, cached=0)
    assert reports <= 8


def test_a_token_count_a_little_off_is_not_taken_for_a_miss():
    index, prompt = ApproximateIndex(), chain(*range(40))
    finish(index, index.routed("a", prompt))
    finish(index, index.routed("a", prompt), cached=0.96 * len(prompt))
    assert index.statistics().missed == 0


def test_a_forgotten_endpoint_takes_late_news_without_harm():
    index, prompt = ApproximateIndex(), chain(0)
    placement = index.routed("a", prompt)
    index.forget("a")
    index.abandoned(placement)
    index.confirmed(placement, 3.0)
    index.check()


def test_a_reported_size_is_where_learning_begins_and_not_where_it_ends():
    index = ApproximateIndex()
    index.sized("a", 60.0)
    for choice in range(10):
        finish(index, index.routed("a", chain(choice, 0)))
    finish(index, index.routed("a", chain(4, 0)), cached=0)
    learnt = index.statistics().capacity["a"]
    assert learnt < 40
    index.sized("a", 61.0)
    assert index.statistics().capacity["a"] == learnt
    index.sized("a", 120.0)
    assert index.statistics().capacity["a"] == pytest.approx(2 * learnt)


def test_displacement_counts_what_is_used_again_and_held_nowhere_else():
    index = ApproximateIndex()
    for name in ("a", "b", "c"):
        index.sized(name, 6)
    for _ in range(30):
        finish(index, index.routed("a", chain(0, 0)))
        finish(index, index.routed("b", chain(1, 1)))
    finish(index, index.routed("c", chain(1, 1)))
    assert index.displaced("a", 6) > 5
    assert index.displaced("b", 6) == 0  # c has it too
    assert index.displaced("a", 0) == 0
    assert index.displaced("unheard of", 6) == 0


def test_displacing_prompts_that_never_come_again_costs_little():
    index = ApproximateIndex()
    index.sized("a", 60)
    for choice in range(300):
        finish(index, index.routed("a", chain(choice, 0)))
    assert index.displaced("a", 60) < 3


def test_memory_stays_within_its_limit():
    index, rng = ApproximateIndex(limit_bytes=100_000), Random(1)
    for _ in range(500):
        index.routed(rng.choice(NAMES), tuple(rng.getrandbits(64) for _ in range(200)))
    assert index.statistics().bytes <= 100_000
    index.check()


def test_a_prompt_without_full_blocks_is_nowhere():
    index = ApproximateIndex()
    assert index.match(()) == {}
    finish(index, index.routed("a", ()))
    index.check()


class LruCache:
    """What an engine does: blocks by last use, the end of a prompt older than its beginning."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.blocks = OrderedDict()

    def serve(self, prompt):
        cached = next((i for i, h in enumerate(prompt) if h not in self.blocks), len(prompt))
        for h in reversed(prompt):
            self.blocks[h] = None
            self.blocks.move_to_end(h)
        while len(self.blocks) > self.capacity:
            self.blocks.popitem(last=False)
        return cached


def wrong_blocks(capacity, guess, *, reporting, seed=1, prompts=4000):
    """Blocks predicted wrongly, as a share of all, over the second half of a Zipf stream of prompts at one engine."""
    index, cache, rng = ApproximateIndex(), LruCache(capacity), Random(seed)
    index.sized("a", guess)
    weights = [(i + 1) ** -0.8 for i in range(60)]
    wrong = total = 0
    for n in range(prompts):
        prompt = chain(rng.choices(range(60), weights)[0], n, block=12)
        predicted = blocks(index, "a", prompt)
        placement = index.routed("a", prompt)
        cached = cache.serve(prompt)
        index.confirmed(placement, cached if reporting else None)
        if n > prompts / 2:
            wrong, total = wrong + abs(predicted - cached), total + len(prompt)
    return wrong / total


@pytest.mark.parametrize("guess", [100_000, 1200])
def test_reports_correct_a_guess_that_is_too_large(guess):
    fixed, learnt = (wrong_blocks(400, guess, reporting=r) for r in (False, True))
    assert learnt < 0.3 * fixed


def test_reports_correct_a_guess_that_is_too_small():
    index, cache, rng = ApproximateIndex(), LruCache(400), Random(1)
    index.sized("a", 100.0)
    for n in range(4000):
        prompt = chain(rng.randrange(25), n, block=12)
        index.confirmed(index.routed("a", prompt), cache.serve(prompt))
    assert index.statistics().capacity["a"] > 250
