"""Shares: backlogged tenants get what their weights say, whatever their requests look like, and nobody starves."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.config.flow import BandConfig, Flow
from beaconry.flowcontrol.control import FlowControl
from beaconry.flowcontrol.fairness import EVERY_TURN, HALF_LIFE_S
from beaconry.values.request import Api, Request

ALL = ("tokens", "requests", "round-robin", "least-attained")


class Band:
    """One band whose flows are refilled as asked."""

    def __init__(self, fairness: str) -> None:
        self.control = FlowControl(Flow(bands=(BandConfig(name="b", priority=0, fairness=fairness),), ttl_s=1e9))
        self.count = 0
        self.now_s = 0.0

    def offer(self, tenant: str, tokens: int = 100, **fields: object) -> None:
        self.count += 1
        request = Request(
            id=str(self.count),
            model="m",
            api=Api.CHAT,
            arrived_s=self.now_s,
            prompt_tokens=tokens,
            tenant=tenant,
            **fields,
        )
        assert not self.control.offer(self.control.ticket("m", request, 0.0, self.now_s), passing=False)

    def serve(self, took: int | None = None) -> Request:
        ticket = self.control.next("m", lambda _: True)
        assert ticket is not None
        self.control.dispatch(ticket, self.now_s)
        if took is not None:
            self.control.settle(ticket, took, 0, self.now_s)
        return ticket.request


@given(
    sizes=st.lists(st.lists(st.integers(1, 5000), min_size=1, max_size=5), min_size=2, max_size=5),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=5, max_size=5),
    by_tokens=st.booleans(),
)
def test_backlogged_tenants_share_by_weight_within_one_request(sizes, weights, by_tokens):
    band = Band("tokens" if by_tokens else "requests")
    rngs = {str(i): (Random(i), each) for i, each in enumerate(sizes)}
    weight = {str(i): w for i, w in enumerate(weights)}
    served = dict.fromkeys(rngs, 0.0)

    def refill(tenant: str) -> None:
        rng, each = rngs[tenant]
        band.offer(tenant, rng.choice(each), weight=weight[tenant])

    for tenant in rngs:
        refill(tenant)
        refill(tenant)
    for _ in range(200):
        request = band.serve()
        served[request.tenant] += request.prompt_tokens if by_tokens else 1
        refill(request.tenant)
    shares = [served[t] / weight[t] for t in rngs]
    largest = max((max(each) if by_tokens else 1) / weight[str(i)] for i, each in enumerate(sizes))
    assert max(shares) - min(shares) <= 2 * largest


def test_who_was_idle_neither_saves_up_nor_pays():
    band = Band("tokens")
    for _ in range(50):
        band.offer("a")
        band.serve()
    for _ in range(10):
        band.offer("a")
        band.offer("b")
    served = [band.serve().tenant for _ in range(10)]
    assert served.count("a") == served.count("b") == 5


def test_who_took_more_than_it_looked_pays_for_it():
    band = Band("tokens")
    for _ in range(20):
        band.offer("liar", 1)
        band.offer("honest", 100)
    served = []
    for _ in range(20):
        ticket = band.control.next("m", lambda _: True)
        band.control.dispatch(ticket, 0.0)
        band.control.settle(ticket, 100, 0, 0.0)
        served.append(ticket.request.tenant)
    assert served.count("liar") == pytest.approx(10, abs=1)


@pytest.mark.parametrize("fairness", ALL)
@given(data=st.data())
def test_nobody_starves_whoever_else_comes(fairness: str, data: st.DataObject):
    band = Band(fairness)
    others = 4
    band.offer("victim", 100, program="victim")
    for turn in range(EVERY_TURN * (others + 2)):
        for _ in range(data.draw(st.integers(1, 2))):
            tenant = str(data.draw(st.integers(1, others)))
            program = f"{tenant}-{turn}" if data.draw(st.booleans()) else None
            band.offer(tenant, data.draw(st.sampled_from([50, 100])), program=program)
        if band.serve().tenant == "victim":
            return
    # programs are born without end: their number bounds the wait for a turn in the ring
    assert fairness == "least-attained"
    turns = EVERY_TURN * (band.count + 1)
    assert "victim" in {band.serve().tenant for _ in range(min(turns, band.control.waiting))}


def test_a_program_that_took_less_than_expected_for_long_has_still_had_something():
    band = Band("least-attained")
    band.offer("t", 1000, program="slow")
    ticket = band.control.next("m", lambda _: True)
    band.control.dispatch(ticket, band.now_s)
    band.offer("t", 1000, program="slow")
    band.now_s += 3 * HALF_LIFE_S
    band.control.settle(ticket, 500, 0, band.now_s)
    band.offer("t", 1000, program="new")
    assert band.serve().program == "new"


def test_short_programs_pass_long_ones_and_service_is_forgotten():
    band = Band("least-attained")
    for _ in range(3):
        band.offer("t", 1000, program="long")
        band.serve()
    band.offer("t", 1000, program="long")
    band.offer("t", 1000, program="short")
    assert band.serve().program == "short"
    band.serve()
    band.now_s += 300 * HALF_LIFE_S
    band.offer("t", 10, program="new")
    band.serve()
    band.offer("t", 10, program="long")
    band.offer("t", 10, program="new")
    assert band.serve().program == "long"


def test_round_robin_goes_round():
    band = Band("round-robin")
    for tenant in "aaabbc":
        band.offer(tenant)
    assert "".join(band.serve().tenant for _ in range(6)) == "abcaba"


def test_flows_that_have_ended_are_not_kept_for_ever():
    band = Band("least-attained")
    for i in range(20_000):
        band.offer("t", program=str(i))
        band.serve()
    lane = band.control._lanes["m"].bands[0]
    assert len(lane._fairness._tags._idle) <= 4096
    assert not lane.flows
