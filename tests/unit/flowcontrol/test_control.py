"""The queue against a naive list: nothing is lost or doubled, bounds and times hold, and turns go by band and order."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from beaconry.config.flow import BandConfig, Flow
from beaconry.flowcontrol.control import FlowControl
from beaconry.flowcontrol.ticket import Ticket
from beaconry.values.request import Api, Request

NUMBERS = iter(range(1 << 60))


def request(**fields: object) -> Request:
    given = {"model": "m", "arrived_s": 0.0, "prompt_tokens": 100, **fields}
    return Request(id=str(next(NUMBERS)), api=Api.CHAT, **given)


class Queue:
    """Flow control with less to type."""

    def __init__(self, **knobs: object) -> None:
        self.control = FlowControl(Flow(**knobs))

    def offer(self, now_s: float = 0.0, **fields: object) -> tuple[Ticket, list[Ticket]]:
        ticket = self.control.ticket("m", request(arrived_s=now_s, **fields), 0.0, now_s)
        out = self.control.offer(ticket, passing=False)
        self.control.check()
        return ticket, out

    def next(self, now_s: float = 0.0) -> Ticket | None:
        ticket = self.control.next("m", lambda _: True)
        if ticket is not None:
            self.control.dispatch(ticket, now_s)
            self.control.check()
        return ticket

    def order(self) -> list[Ticket]:
        tickets = []
        while (ticket := self.next()) is not None:
            tickets.append(ticket)
        return tickets


def test_higher_bands_go_first():
    queue = Queue()
    tickets = [queue.offer(priority=p)[0] for p in (0, -5, 7, 0)]
    assert queue.order() == [tickets[i] for i in (2, 0, 3, 1)]


def test_a_band_that_may_not_go_lets_the_next_one_pass():
    queue = Queue()
    queue.offer(priority=1)
    low, _ = queue.offer(priority=0)
    assert queue.control.next("m", lambda band: band.priority == 0) is low
    assert queue.control.next("m", lambda _: False) is None


@pytest.mark.parametrize(
    ("ordering", "expected"), [("fcfs", [0, 1, 2, 3]), ("edf", [1, 2, 0, 3]), ("slo", [2, 0, 1, 3])]
)
def test_a_flow_keeps_its_order(ordering: str, expected: list[int]):
    queue = Queue(bands=(BandConfig(name="b", priority=0, ordering=ordering, ttl_s=60.0),))
    fields = [{"slo_ttft_s": 5.0}, {"ttl_s": 1.0, "slo_ttft_s": 6.0}, {"ttl_s": 2.0, "slo_ttft_s": 1.0}, {}]
    tickets = [queue.offer(**given)[0] for given in fields]
    assert queue.order() == [tickets[i] for i in expected]


def test_the_lowest_band_gives_way_when_a_bound_is_hit():
    queue = Queue(queued_requests=3)
    shed, *_ = (queue.offer(priority=-1)[0] for _ in range(1))
    kept = [queue.offer(priority=p)[0] for p in (0, 0)]
    assert queue.offer(priority=5)[1] == [shed]
    ticket, out = queue.offer(priority=0)
    assert out == [ticket]
    assert queue.offer(priority=5)[1] == [kept[1]]


def test_nobody_gives_way_to_what_would_not_fit_anyway():
    queue = Queue(queued_tokens=300)
    queue.offer(priority=0)
    low, _ = queue.offer(priority=-1)
    ticket, out = queue.offer(priority=0, prompt_tokens=250)
    assert out == [ticket]
    assert low.waiting


def test_within_a_band_the_longest_flow_gives_way_to_a_shorter_one():
    queue = Queue(queued_requests=4)
    flood = [queue.offer(tenant="flood")[0] for _ in range(4)]
    assert queue.offer(tenant="flood")[1][0] not in flood
    small, out = queue.offer(tenant="small")
    assert out == [flood[3]]
    assert small.waiting
    assert queue.offer(tenant="small")[1] == [flood[2]]
    third, out = queue.offer(tenant="small")
    assert out == [third]


def test_a_tenant_has_no_more_waiting_for_naming_many_flows():
    queue = Queue(queued_requests=4)
    flood = [queue.offer(tenant=f"flood/{n}", account="flood")[0] for n in range(4)]
    small, out = queue.offer(tenant="small", account="small")
    assert out == [flood[0]], "all its flows are as large"
    assert small.waiting
    again, out = queue.offer(tenant="flood/new", account="flood")
    assert out == [again]


def test_a_tenants_many_flows_are_not_all_expected_to_go_before_another_tenant():
    queue = Queue()
    for n in range(50):
        queue.offer(tenant=f"flood/{n}", account="flood")
    first = queue.control.ticket("m", request(tenant="small", account="small"), 0.0, 0.0)
    assert first.band.turns_before(first) == 1
    last = queue.control.ticket("m", request(tenant="flood/new", account="flood"), 0.0, 0.0)
    assert last.band.turns_before(last) == 50


def test_of_one_tenants_flows_the_longest_gives_way():
    queue = Queue(queued_requests=3)
    long = [queue.offer(tenant="a/long", account="a")[0] for _ in range(3)]
    assert queue.offer(tenant="a/short", account="a")[1] == [long[2]]
    again, out = queue.offer(tenant="a/short", account="a")
    assert out == [again]


def test_a_weight_lets_a_tenant_have_more_waiting():
    queue = Queue(queued_requests=4)
    for _ in range(3):
        queue.offer(tenant="heavy", weight=3.0)
    light, _ = queue.offer(tenant="light")
    again, out = queue.offer(tenant="light")
    assert out == [again]
    assert light.waiting


def test_who_takes_the_place_of_all_that_waits_in_a_band_of_its_own_making_waits_there():
    queue = Queue(queued_requests=1)
    light, _ = queue.offer(priority=5, tenant="light", weight=1.0)
    heavy, out = queue.offer(priority=5, tenant="heavy", weight=2.0)
    assert out == [light]
    assert queue.order() == [heavy]


def test_who_came_last_makes_room_for_who_comes_back():
    queue = Queue(queued_requests=2)
    spent, _ = queue.offer()
    queue.next()
    stays, leaves = queue.offer()[0], queue.offer()[0]
    returned = queue.control.ticket("m", spent.request, 0.0, 1.0)
    assert queue.control.put_back(returned, spent, 0.5, 1.0) == [leaves]
    queue.control.check()
    assert queue.order() == [returned, stays]


def test_bands_have_bounds_of_their_own():
    queue = Queue(bands=(BandConfig(name="b", priority=-1, queued_requests=1),))
    queue.offer(priority=-1)
    ticket, out = queue.offer(priority=-1)
    assert out == [ticket]
    assert queue.offer(priority=0)[1] == []


def test_time_to_live_is_the_requests_own_or_its_bands_or_everybodys():
    queue = Queue(ttl_s=9.0, bands=(BandConfig(name="b", priority=1, ttl_s=5.0),))
    own, band, all_ = (queue.offer(**given)[0] for given in ({"ttl_s": 2.0}, {"priority": 1}, {}))
    assert [queue.control.due_s(), queue.control.expired(1.99)] == [2.0, []]
    assert queue.control.expired(2.0) == [own]
    assert queue.control.expired(100.0) == [band, all_]
    assert queue.control.due_s() == float("inf")


def test_what_leaves_is_gone_at_once():
    queue = Queue(queued_requests=1)
    ticket, _ = queue.offer()
    queue.control.remove(ticket)
    assert queue.control.waiting == 0
    assert queue.offer()[1] == []


def test_retry_after_is_what_the_present_pace_needs_for_those_before():
    queue = Queue()
    for i in range(60):
        queue.offer(now_s=0.0)
        queue.next(now_s=i / 4)
    for _ in range(20):
        last, _ = queue.offer(now_s=15.0)
    assert queue.control.retry_after_s(last, 15.0) == pytest.approx(20 / 4, rel=0.1)
    assert Queue().control.retry_after_s(last, 0.0) == 1.0


TENANTS = ("a", "b", "c")


class Life(RuleBasedStateMachine):
    """Any interleaving, for each fairness and ordering: checked against a list of what should wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.waiting: list[Ticket] = []
        self.out: set[int] = set()
        self.sent: list[tuple[Ticket, float]] = []
        """What was dispatched and may come back, and when."""
        self.control = FlowControl(
            Flow(
                queued_requests=6,
                queued_tokens=900,
                bands=(
                    BandConfig(name="top", priority=2, fairness="round-robin", ordering="edf", ttl_s=7.0),
                    BandConfig(name="mid", priority=0, fairness="least-attained", queued_requests=4),
                    BandConfig(name="low", priority=-1, fairness="requests", ordering="slo", ttl_s=4.0),
                ),
            )
        )

    def end(self, ticket: Ticket) -> None:
        assert ticket.number not in self.out, "one outcome each"
        self.out.add(ticket.number)
        self.waiting.remove(ticket)

    @rule(
        tenant=st.sampled_from(TENANTS), priority=st.sampled_from([3, 2, 0, -1]), tokens=st.sampled_from([1, 100, 400]),
        ttl_s=st.none() | st.sampled_from([0.5, 3.0]), slo=st.none() | st.sampled_from([0.1, 2.0]),
        weight=st.sampled_from([0.5, 1.0, 4.0]), program=st.none() | st.sampled_from("xy"), passing=st.booleans(),
        account=st.none() | st.sampled_from(["one", "two"]),
    )  # fmt: skip
    def offer(self, *, tenant, priority, tokens, ttl_s, slo, weight, program, passing, account) -> None:
        one = request(
            arrived_s=self.now_s, tenant=tenant if account is None else f"{account}/{tenant}", account=account,
            priority=priority, prompt_tokens=tokens, ttl_s=ttl_s, slo_ttft_s=slo, weight=weight,
            program=program if account is None or program is None else f"{account}/{program}",
        )  # fmt: skip
        ticket = self.control.ticket("m", one, 10.0, self.now_s)
        passing = passing and not any(t.band is ticket.band for t in self.waiting)
        room = len(self.waiting) < 6 and sum(t.request.prompt_tokens for t in self.waiting) + tokens <= 900
        out = self.control.offer(ticket, passing=passing)
        self.waiting.append(ticket)
        waited = [t for t in self.waiting if t is not ticket]
        for victim in out:
            assert victim is ticket or victim.request.priority <= priority
            self.end(victim)
        if ticket in out:
            assert out == [ticket], "who is refused displaces nobody"
            assert not room or priority == 0
            peers = [t.request.prompt_tokens for t in waited if t.request.priority >= priority]
            full = len(peers) >= 6 or sum(peers) + tokens > 900
            assert full or priority == 0, "lower bands give way if that is enough"
        elif passing:
            turn = self.control.next("m", lambda band: band is ticket.band)
            assert turn is ticket
            self.control.dispatch(ticket, self.now_s)
            self.end(ticket)

    @precondition(lambda self: self.waiting)
    @rule(took=st.none() | st.integers(0, 5000), blocked=st.sampled_from([None, None, 2, 0]))
    def turn(self, took: int | None, blocked: int | None) -> None:
        ticket = self.control.next("m", lambda band: band.priority != blocked)
        open_bands = {t.request.priority for t in self.waiting} - {blocked}
        if ticket is None:
            assert not open_bands, "work is conserved"
            return
        request = ticket.request
        assert request.priority == max(open_bands), "higher bands go first"
        peers = [t for t in self.waiting if t.flow is ticket.flow]
        if request.priority in (3, 0):
            assert ticket.number == min(t.number for t in peers), "first come, first served"
        elif request.priority == 2:
            assert ticket.expires_s == min(t.expires_s for t in peers), "earliest deadline first"
        self.control.dispatch(ticket, self.now_s)
        self.end(ticket)
        if took is not None:
            self.control.settle(ticket, took, took, self.now_s)
        else:
            self.sent.append((ticket, self.now_s))

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 9))
    def come_back(self, which: int) -> None:
        spent, sent_s = self.sent.pop(which % len(self.sent))
        ticket = self.control.ticket("m", spent.request, 10.0, self.now_s)
        victims = self.control.put_back(ticket, spent, sent_s, self.now_s)
        if victims is None:
            return
        for victim in victims:
            assert victim.number > ticket.number, "who has waited for less gives way"
            assert victim.request.priority <= ticket.request.priority
            self.end(victim)
        away_s = self.now_s - sent_s
        assert ticket.expires_s == max(spent.expires_s + away_s, self.now_s + self.control.config.engine_wait_s)
        self.waiting.append(ticket)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        self.control.remove(ticket)
        self.end(ticket)

    @rule(after_s=st.sampled_from([0.0, 0.5, 1.0, 3.0, 7000.0]))
    def wait(self, after_s: float) -> None:
        self.now_s += after_s
        due = [t for t in self.waiting if t.expires_s <= self.now_s]
        assert set(self.control.expired(self.now_s)) == set(due), "neither early nor late"
        for ticket in due:
            self.end(ticket)

    @invariant()
    def holds(self) -> None:
        self.control.check()
        assert self.control.waiting == len(self.waiting) <= 6
        assert self.control.due_s() == min((t.expires_s for t in self.waiting), default=float("inf"))
        queued = {(s.band, s.requests, s.tokens) for s in self.control.statistics() if s.requests}
        assert sum(requests for _, requests, _ in queued) == len(self.waiting)


Life.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestLife = Life.TestCase
