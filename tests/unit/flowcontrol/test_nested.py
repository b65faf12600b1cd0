"""A tenant's flows share what is its own: being many is worth nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.flowcontrol.test_fairness import Band


@pytest.mark.parametrize("fairness", ["tokens", "requests", "round-robin"])
@given(flows=st.integers(1, 20), anew=st.booleans())
def test_a_tenant_gets_no_more_by_naming_flows(fairness: str, flows: int, anew: bool):
    """`anew`: each request names a flow that was not there before."""
    band, served = Band(fairness), {"one": 0, "many": 0}

    def offer(account: str) -> None:
        number = band.count if anew else band.count % flows
        band.offer("one" if account == "one" else f"many/{number}", account=account)

    for _ in range(flows + 2):
        offer("one")
        offer("many")
    for _ in range(200):
        account = band.serve(took=100).account
        assert account is not None
        served[account] += 1
        offer(account)
        band.control.check()
    assert abs(served["one"] - served["many"]) <= 2


def test_the_flows_of_a_tenant_share_its_part_equally():
    band, served = Band("tokens"), {"a/x": 0, "a/y": 0, "b": 0}
    for tenant in served:
        for _ in range(60):
            band.offer(tenant, account=tenant[0])
    for _ in range(80):
        served[band.serve(took=100).tenant] += 1
    assert served["b"] == 40
    assert abs(served["a/x"] - served["a/y"]) <= 1


def test_a_tenant_with_more_waiting_pays_for_what_its_requests_took():
    band = Band("tokens")
    for _ in range(40):
        band.offer("liar/x", 1, account="liar")
        band.offer("honest/x", 100, account="honest")
    served = [band.serve(took=100).account for _ in range(20)]
    assert served.count("liar") == pytest.approx(10, abs=1)


def test_what_a_tenant_owes_is_remembered_while_it_waits_for_nothing():
    band = Band("tokens")
    band.offer("a/x", account="a")
    band.offer("b", account="b")
    band.offer("b", account="b")
    assert band.serve(took=100_000).tenant == "a/x"
    band.offer("a/y", account="a")
    assert [band.serve().tenant for _ in range(3)] == ["b", "b", "a/y"]
