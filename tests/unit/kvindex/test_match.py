"""Who holds how much of a prompt: asked one by one it is the same as by the blocks themselves."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.match import NO_MATCH

NAMES = ("a", "b", "c", "d")
PATHS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def chain(path):
    """Chained hashes: each stands for the path up to it."""
    hashes, so_far = [], 1
    for step in path:
        so_far = so_far * 10 + step + 1
        hashes.append(so_far)
    return tuple(hashes)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(NAMES), PATHS), max_size=25), PATHS)
def test_an_endpoint_without_limits_holds_the_longest_prefix_it_was_ever_sent(sent, asked):
    index = ApproximateIndex()
    for name, path in sent:
        index.confirmed(index.routed(name, chain(path)), None)
    index.check()
    prompt = chain(asked)
    where = index.find(prompt)
    for name in NAMES:
        held = {h for other, path in sent if other == name for h in chain(path)}
        longest = next((i for i, h in enumerate(prompt) if h not in held), len(prompt))
        assert where.of(name).blocks == where.of(name).known == longest
    assert where.everywhere() == {name: where.of(name) for name in NAMES if where.of(name) != NO_MATCH}


def test_the_deepest_holders_come_first_and_many_equal_ones_are_drawn_from():
    index = ApproximateIndex()
    for number in range(100):
        index.routed(f"e{number}", chain([0]))
    index.routed("deep", chain([0, 1, 2, 3]))
    index.routed("middle", chain([0, 1]))
    where = index.find(chain([0, 1, 2, 3]))
    drawn = [where.holders(8, Random(seed)) for seed in range(20)]
    assert all(names[:2] == ["deep", "middle"] and len(set(names)) == 8 for names in drawn)
    assert len({name for names in drawn for name in names}) > 40
    assert where.holders(1, Random(0)) == ["deep"]
    assert index.find(chain([2])).holders(8, Random(0)) == []
