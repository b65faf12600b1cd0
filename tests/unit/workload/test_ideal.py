from hypothesis import given
from hypothesis import strategies as st

from beaconry.workload.ideal import IdealCache
from beaconry.workload.request import Message, PlannedRequest, Span


def request(spans, reply_id=-1, output_tokens=1):
    return PlannedRequest(
        at_s=0.0,
        messages=(Message(role="user", spans=tuple(Span(id=id_, tokens=tokens) for id_, tokens in spans)),),
        output_tokens=output_tokens,
        reply_id=reply_id,
    )


class NaiveCache:
    """Remembers every prompt token by token; a token is a span's id and the place in it."""

    def __init__(self):
        self.seen = []

    def see(self, spans):
        tokens = [(id_, place) for id_, length in spans for place in range(length)]
        best = 0
        for earlier in self.seen:
            common = 0
            for mine, theirs in zip(tokens, earlier, strict=False):
                if mine != theirs:
                    break
                common += 1
            best = max(best, common)
        self.seen.append(tokens)
        return best


# as in traces: only the last span of a prompt may be shorter than the span of that id elsewhere
prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 3)).map(
        lambda drawn: [(id_, 3) for id_ in drawn[0][:-1]] + [(drawn[0][-1], drawn[1])]
    ),
    max_size=12,
)


@given(prompts)
def test_hits_are_those_of_a_cache_that_remembers_every_token(several):
    cache, naive = IdealCache(), NaiveCache()
    for number, spans in enumerate(several):
        assert cache.see(request(spans, reply_id=-number - 1)) == naive.see(spans)
        cache.check()


def test_the_first_prompt_hits_nothing_and_its_repetition_all():
    cache = IdealCache()
    assert cache.see(request([(0, 10), (1, 4)])) == 0
    assert cache.see(request([(0, 10), (1, 4)])) == 14


def test_a_reply_is_cached_with_the_prompt_it_follows():
    cache = IdealCache()
    cache.see(request([(0, 10)], reply_id=-5, output_tokens=7))
    assert cache.see(request([(0, 10), (-5, 7), (2, 3)])) == 17
    assert cache.statistics() > 0
