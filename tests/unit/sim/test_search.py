"""The search for the cheapest fleet, against fleets whose capacity simply adds up."""

from itertools import product
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from beaconry.sim.search import Choice, Search
from beaconry.values.endpoint import Role

CHOICES = st.lists(
    st.builds(
        Choice,
        price=st.integers(1, 20).map(float),
        most=st.integers(1, 12),
        bound_per_s=st.integers(1, 10).map(float),
    ),
    min_size=1,
    max_size=3,
)


def search(
    choices: list[Choice], needed: float, loss: float = 1.0, **how: object
) -> tuple[Search, list[tuple[int, ...]]]:
    """A search over fleets that give `loss` of their bounds, and the fleets it simulated."""
    simulated = []

    def meets(counts: tuple[int, ...]) -> bool:
        simulated.append(counts)
        return sum(c * choice.bound_per_s * loss for c, choice in zip(counts, choices, strict=True)) >= needed

    return Search(choices, needed, meets, **{"simulations": 10_000, "mix": True} | how), simulated


@given(CHOICES, st.integers(1, 60), st.sampled_from([1.0, 0.7, 0.4]))
def test_what_is_found_meets_the_targets_and_nothing_cheaper_of_one_variant_does(
    choices: list[Choice], needed: int, loss: float
):
    searching, simulated = search(choices, needed, loss)
    found = searching.run()
    alone = []
    for choice in choices:
        count = ceil(needed / (choice.bound_per_s * loss) - 1e-9)
        if count <= choice.most:
            alone.append(count * choice.price)
    assert len(simulated) == len(set(simulated))
    if found.counts is None:
        assert not alone
    else:
        assert searching.tried[found.counts]
        assert searching.price(found.counts) <= min(alone, default=float("inf")) + 1e-9


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 6)), min_size=2, max_size=2), st.integers(40, 60))
def test_with_many_replicas_the_mix_is_the_cheapest_there_is(pairs: list[tuple[int, int]], needed: int):
    choices = [Choice(price=float(price), most=30, bound_per_s=float(power)) for price, power in pairs]
    searching, _ = search(choices, needed)
    found = searching.run()
    best = min(
        a * choices[0].price + b * choices[1].price
        for a, b in product(range(31), repeat=2)
        if a * pairs[0][1] + b * pairs[1][1] >= needed
    )
    assert found.counts is not None
    assert searching.price(found.counts) == best


def test_few_simulations_are_needed():
    searching, simulated = search([Choice(price=1.0, most=1000, bound_per_s=1.0)], 300.0, loss=0.5)
    assert searching.run().counts == (600,)
    assert len(simulated) < 25


def test_a_variant_too_slow_for_its_target_is_never_simulated():
    searching, simulated = search(
        [Choice(price=1.0, most=9, bound_per_s=0.0), Choice(price=5.0, most=9, bound_per_s=1.0)], 3.0
    )
    assert searching.run().counts == (0, 3)
    assert all(counts[0] == 0 for counts in simulated)


def test_a_search_cut_short_says_so():
    searching, simulated = search([Choice(price=1.0, most=1000, bound_per_s=1.0)], 300.0, loss=0.5, simulations=2)
    found = searching.run()
    assert (found.counts, found.exhausted, len(simulated)) == (None, True, 2)


KIND = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 9))
"""Price, rate, and most of them."""


@given(
    st.lists(KIND, min_size=1, max_size=2),
    st.lists(KIND, min_size=1, max_size=2),
    KIND,
    st.integers(5, 20),
    st.sampled_from([1.0, 0.6]),
)
def test_prefill_and_decode_engines_are_found_where_no_fleet_of_another_kind_is_cheaper(
    prefills: list[tuple[int, int, int]],
    decodes: list[tuple[int, int, int]],
    whole: tuple[int, int, int],
    needed: int,
    loss: float,
):
    def choice(kind: tuple[int, int, int], role: Role) -> Choice:
        price, rate, most = kind
        return Choice(price=float(price), most=most, bound_per_s=float(rate), role=role)

    choices = [
        choice(whole, Role.BOTH),
        *(choice(kind, Role.PREFILL) for kind in prefills),
        *(choice(kind, Role.DECODE) for kind in decodes),
    ]

    def meets(counts: tuple[int, ...]) -> bool:
        rates = dict.fromkeys(Role, 0.0)
        for count, one in zip(counts, choices, strict=True):
            rates[one.role] += count * one.bound_per_s * loss
        return rates[Role.BOTH] >= needed or min(rates[Role.PREFILL], rates[Role.DECODE]) >= needed

    searching = Search(choices, needed, meets, simulations=10_000, mix=False)
    found = searching.run().counts
    prices = [a * whole[0] for a in range(1, whole[2] + 1) if a * whole[1] * loss >= needed]
    for p, d in product(prefills, decodes):
        for x, y in product(range(1, p[2] + 1), range(1, d[2] + 1)):
            if min(x * p[1], y * d[1]) * loss >= needed:
                prices.append(x * p[0] + y * d[0])
    if prices:
        assert found is not None
        assert searching.tried[found]
        assert searching.price(found) == min(prices)
    else:
        assert found is None


def test_few_simulations_find_how_many_prefill_and_decode_engines_there_have_to_be():
    choices = [
        Choice(price=1.0, most=64, bound_per_s=3.0, role=Role.PREFILL),
        Choice(price=4.0, most=64, bound_per_s=20.0, role=Role.DECODE, prefill_per_s=9.0),
    ]
    searching = Search(choices, 60.0, lambda counts: counts[0] >= 26 and counts[1] >= 5, simulations=60, mix=True)
    assert searching.run().counts == (26, 5)
    assert len(searching.tried) < 50
