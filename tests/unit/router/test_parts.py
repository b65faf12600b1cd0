"""The router's small parts: deadline queue, retry budget, histogram."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.router.deadlines import NEVER, DeadlineQueue
from beaconry.router.retries import RetryBudget
from beaconry.router.statistics import Histogram

STEPS = st.lists(
    st.tuples(st.sampled_from(["touch", "discard", "take"]), st.integers(0, 5), st.floats(0, 3)), max_size=40
)


@given(STEPS)
def test_the_deadline_queue_equals_a_dict_of_due_times(steps: list[tuple[str, int, float]]):
    queue: DeadlineQueue[int, int] = DeadlineQueue(2.0)
    naive: dict[int, float] = {}
    now_s = 0.0
    for what, key, passed_s in steps:
        now_s += passed_s
        if what == "touch":
            queue.touch(key, key, now_s)
            naive[key] = now_s + 2.0
        elif what == "discard":
            queue.discard(key)
            naive.pop(key, None)
        else:
            due = [key for key, due_s in naive.items() if due_s <= now_s]
            assert sorted(queue.take_due(now_s)) == sorted(due)
            naive = {key: due_s for key, due_s in naive.items() if due_s > now_s}
        assert queue.due_s() == min(naive.values(), default=NEVER)
        assert len(queue) == len(naive)


def test_the_retry_budget_follows_recent_traffic():
    budget = RetryBudget(ratio=0.5, floor=2)
    assert [budget.try_retry(0.0, 0) for _ in range(3)] == [True, True, False]
    for _ in range(4):
        budget.request(1.0)
    assert [budget.try_retry(1.0, 0) for _ in range(3)] == [True, True, False]
    assert [budget.try_retry(20.0, 0) for _ in range(3)] == [True, True, False]


def test_the_retry_budget_covers_what_one_dead_engine_takes_along():
    budget = RetryBudget(ratio=0.2, floor=0)
    assert [budget.try_retry(0.0, 3) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.one_of(st.floats(0, 6), st.sampled_from([1.0, 2.0, 4.0])), max_size=300), st.integers(0, 300))
def test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it(values: list[float], looked_at: int):
    bounds = (1.0, 2.0, 4.0)
    histogram = Histogram(bounds)
    for index, value in enumerate(values):
        histogram.add(value)
        if index == looked_at:
            assert histogram.snapshot().count == index + 1
    naive = [0, 0, 0, 0]
    for value in values:
        naive[sum(value > bound for bound in bounds)] += 1
    assert histogram.snapshot() == histogram.snapshot()
    assert histogram.snapshot().counts == tuple(naive)
    assert histogram.snapshot().total == pytest.approx(sum(values))


def test_a_quantile_lies_in_the_bucket_of_its_value():
    histogram = Histogram((1.0, 2.0, 4.0))
    assert histogram.snapshot().quantile(0.5) is None
    for value in (0.5, 1.5, 1.5, 3.0, 100.0):
        histogram.add(value)
    snapshot = histogram.snapshot()
    assert snapshot.count == 5
    assert snapshot.total == pytest.approx(106.5)
    assert 1.0 <= (snapshot.quantile(0.5) or 0) <= 2.0
    assert snapshot.quantile(1.0) == 4.0
