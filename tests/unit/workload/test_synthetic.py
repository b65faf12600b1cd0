from collections import Counter
from itertools import islice
from random import Random

from beaconry.workload.arrivals import fixed
from beaconry.workload.plan import Plan
from beaconry.workload.synthetic import Bounds, Shape, conversations

TEN = Bounds(low=10, high=10)


def made(count, seed=1, **shape):
    shape = Shape(**{"prompt_tokens": TEN, "output_tokens": TEN, **shape})
    return list(conversations(shape, islice(fixed(1.0), count), Random(seed)))


def test_bounds_include_both_ends():
    rng = Random(1)
    assert {Bounds(low=3, high=5).draw(rng) for _ in range(100)} == {3, 4, 5}


def test_without_groups_no_prompts_share_anything():
    plan = Plan(made(50))
    while plan.peek():
        assert plan.take().ideal_cached_tokens == 0


def test_a_group_shares_its_prefix_and_nothing_else():
    plan = Plan(made(200, groups=4, prefix_tokens=Bounds(low=50, high=90)))
    lengths, seen = {}, set()
    while plan.peek():
        request = plan.take()
        prefix = request.messages[0].spans[0]
        assert lengths.setdefault(prefix.id, prefix.tokens) == prefix.tokens
        assert request.ideal_cached_tokens == (prefix.tokens if prefix.id in seen else 0)
        seen.add(prefix.id)
    assert seen == {0, 1, 2, 3}
    assert all(50 <= tokens <= 90 for tokens in lengths.values())


def test_popularity_of_groups_follows_zipf():
    counts = Counter(request.messages[0].spans[0].id for request in made(8000, groups=3, prefix_tokens=TEN, zipf=1.0))
    assert counts[0] > 1.7 * counts[1] > 2.0 * counts[2]
    even = Counter(request.messages[0].spans[0].id for request in made(8000, groups=3, prefix_tokens=TEN, zipf=0.0))
    assert min(even.values()) > 0.9 * max(even.values())


def test_a_single_request_is_no_session_and_a_conversation_is_one():
    assert made(1)[0].session is None
    first, second = made(2, turns=3)
    assert first.session != second.session
    assert len(first.later) == 2


def test_pauses_have_the_mean_asked_for():
    pauses = [turn.think_s for request in made(4000, turns=2, think_s=3.0) for turn in request.later]
    assert 2.7 < sum(pauses) / len(pauses) < 3.3
    assert all(turn.think_s == 0.0 for request in made(5, turns=2) for turn in request.later)


def test_the_same_seed_gives_the_same_plan():
    assert made(20, groups=3, prefix_tokens=TEN, turns=2, think_s=1.0) == made(
        20, groups=3, prefix_tokens=TEN, turns=2, think_s=1.0
    )
    assert made(20, groups=3, prefix_tokens=TEN) != made(20, seed=2, groups=3, prefix_tokens=TEN)
