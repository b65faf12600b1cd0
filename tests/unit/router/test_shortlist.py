"""Which endpoints of a large fleet are judged."""

from random import Random

from beaconry.config.gateway import Health
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.router.caches import Caches
from beaconry.router.member import Member
from beaconry.router.shortlist import BY_CHANCE, DEEPEST, HOLDERS, LEAST_BUSY, shortlist
from beaconry.values.endpoint import Endpoint
from beaconry.values.request import Api, Request

PREFIX = (11, 12, 13, 14)


class Work:
    """A leg as an endpoint's ledger knows it."""

    def __init__(self, number, tokens):
        self.id, self.dispatched_s, self.began_s = number, 0.0, 0.0
        self.prompt_tokens = self.uncached_tokens = self.fresh_tokens = self.loose_tokens = tokens
        self.block_tokens = 64.0

    def gives_way(self, priority):
        return False


def fleet(count=200):
    members = [Member(Endpoint(name=f"e{i}", host="h", port=1, model="m"), Health()) for i in range(count)]
    return members, {member.endpoint.name: member for member in members}


def request(prefix=PREFIX):
    return Request(id="r", model="m", api=Api.CHAT, arrived_s=0.0, prompt_tokens=300, prefix=prefix)


def listed(members, caches=None, seed=0):
    caches = caches or Caches(ApproximateIndex(), ExactIndex())
    by_name = {member.endpoint.name: member for member in members}
    return shortlist("m", members, by_name, caches.find(request()), 0.0, Random(seed))


def test_it_is_short_and_names_nobody_twice():
    members, _ = fleet()
    for seed in range(50):
        chosen = listed(members, seed=seed)
        assert len(set(chosen)) == len(chosen) <= HOLDERS + LEAST_BUSY + BY_CHANCE
        assert len(chosen) > LEAST_BUSY


def test_the_holder_of_the_longest_prefix_is_always_on_it():
    members, _ = fleet()
    caches = Caches(ApproximateIndex(), ExactIndex())
    for member in members[:50]:
        caches.approximate.routed(member.endpoint.name, PREFIX[:1])
    caches.approximate.routed("e7", PREFIX)
    assert all(members[7] in listed(members, caches, seed) for seed in range(50))


def test_of_many_holders_the_less_busy_ones_are_taken():
    members, by_name = fleet()
    caches = Caches(ApproximateIndex(), ExactIndex())
    for i in range(16):
        caches.approximate.routed(f"e{i}", PREFIX)
        for number in range(i):
            by_name[f"e{i}"].dispatch(Work(number, 1000))
    chosen = listed(members, caches)
    holders = [member for member in chosen if int(member.endpoint.name[1:]) < 16]
    assert set(members[DEEPEST:HOLDERS]) <= set(holders)


def test_where_a_tenth_is_idle_some_idle_one_is_nearly_always_there():
    members, _ = fleet()
    for number, member in enumerate(members[20:]):
        member.dispatch(Work(number, 5000))
    met = sum(any(m.prefill_tokens == 0 for m in listed(members, seed=seed)) for seed in range(400))
    assert met > 390


def test_closed_endpoints_and_those_of_other_models_are_left_out():
    members, by_name = fleet(40)
    caches = Caches(ApproximateIndex(), ExactIndex())
    stranger = Member(Endpoint(name="x", host="h", port=1, model="other"), Health())
    caches.approximate.routed("x", PREFIX)
    caches.approximate.routed("e3", PREFIX)
    caches.approximate.routed("gone", PREFIX)
    for member in members[:39]:
        member.lost()
    chosen = shortlist("m", members, {**by_name, "x": stranger}, caches.find(request()), 0.0, Random(1))
    assert set(chosen) <= {members[39]}
