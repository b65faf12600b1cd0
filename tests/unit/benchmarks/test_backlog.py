"""Shares count from the moment in which all have something waiting to that in which one has not, and only where that is long enough."""

import pytest

from benchmarks.backlog import LEAST, Backlog, jain


class Queue:
    """Made-up facts about a band: who waits, who goes, and what each request takes."""

    def __init__(self, since_s: float = 0.0, until_s: float = 100.0) -> None:
        self.backlog = Backlog(["a", "b"], since_s, until_s)
        self.number = 0
        self.waiting: dict[str, list[str]] = {"a": [], "b": []}

    def wait(self, tenants: str, now_s: float) -> None:
        for tenant in tenants:
            self.number += 1
            self.waiting[tenant].append(str(self.number))
            self.backlog.waits(tenant, str(self.number), now_s)

    def go(self, tenants: str, now_s: float, work: float = 10.0) -> None:
        for tenant in tenants:
            request = self.waiting[tenant].pop(0)
            self.backlog.dispatched(tenant, request, now_s)
            self.backlog.ended(request, work)

    def leave(self, tenant: str, now_s: float) -> None:
        self.backlog.left(tenant, self.waiting[tenant].pop(), now_s)


ENOUGH = "ab" * LEAST


def test_what_is_dispatched_while_both_wait_is_theirs_the_last_one_included():
    queue = Queue()
    queue.wait("a" * 50, 0.0)
    queue.go("aaaaa", 5.0)
    queue.wait("b" * (LEAST + 1), 10.0)
    queue.go(ENOUGH, 20.0)
    queue.go("b", 30.0)
    queue.go("aaaaa", 40.0)
    shares = queue.backlog.shares()
    assert shares.work == {"a": 10.0 * LEAST, "b": 10.0 * (LEAST + 1)}
    assert shares.backlogged == shares.covered == pytest.approx(0.2)


def test_a_tenant_that_got_nothing_while_it_waited_shows():
    queue = Queue()
    queue.wait("a" * 50 + "b", 0.0)
    queue.go("aa" * LEAST, 50.0)
    shares = queue.backlog.shares()
    assert shares.jain == pytest.approx(0.5)
    assert shares.covered == 1.0


def test_intervals_in_which_too_little_was_served_are_left_out():
    queue = Queue()
    queue.wait("ab", 0.0)
    queue.go("ab", 10.0)
    queue.wait(ENOUGH + "ab", 50.0)
    queue.go("a" * LEAST + "b" * LEAST, 60.0)
    queue.leave("b", 70.0)
    shares = queue.backlog.shares()
    assert shares.work == {"a": 10.0 * LEAST, "b": 10.0 * LEAST}
    assert shares.backlogged == pytest.approx(0.3)
    assert shares.covered == pytest.approx(0.2)


def test_one_large_request_anywhere_raises_what_is_enough():
    queue = Queue()
    queue.wait(ENOUGH + "ab", 0.0)
    queue.go(ENOUGH, 10.0)
    queue.go("b", 20.0)
    queue.go("a", 30.0, work=1000.0)
    shares = queue.backlog.shares()
    assert (shares.jain, shares.covered) == (None, 0.0)
    assert shares.backlogged == pytest.approx(0.2)


def test_time_before_and_after_does_not_count():
    queue = Queue(since_s=10.0, until_s=20.0)
    queue.wait("ab" * 2 * LEAST + "ab", 0.0)
    queue.go("aaa", 5.0)
    queue.go(ENOUGH, 15.0)
    queue.go("bbb", 20.0)
    queue.leave("a", 30.0)
    shares = queue.backlog.shares()
    assert shares.work == {"a": 10.0 * LEAST, "b": 10.0 * LEAST}
    assert shares.backlogged == shares.covered == 1.0


def test_the_index_is_one_for_equals_and_the_inverse_of_their_number_where_one_has_all():
    assert jain([5.0, 5.0, 5.0]) == pytest.approx(1.0)
    assert jain([5.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert jain([0.0, 0.0]) is None


def test_what_was_taken_back_counts_where_it_is_dispatched_again():
    backlog = Backlog(["a", "b"], 0.0, 10.0)
    for number in range(100):
        for tenant in ("a", "b"):
            backlog.waits(tenant, f"{tenant}{number}", 0.0)
    backlog.dispatched("a", "a0", 1.0)
    backlog.returned("a", "a0", 1.5)
    for number in range(99):
        for tenant in ("a", "b"):
            backlog.dispatched(tenant, f"{tenant}{number}", 2.0 + number / 100)
            backlog.ended(f"{tenant}{number}", 1.0)
    shares = backlog.shares()
    assert shares.jain == 1.0
    assert shares.work["a"] == shares.work["b"]
