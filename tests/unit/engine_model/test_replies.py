"""Replies are a function of their key, end where the limits say, and are known as a whole."""

from statistics import mean, median

from hypothesis import given
from hypothesis import strategies as st

from beaconry.engine_model.replies import WORD_CHARS, Limits, make_reply, make_words
from beaconry.engine_model.tokenizer import END_OF_TURN, encode

keys = st.integers()


@given(keys, st.integers(0, 60), st.integers(0, 60))
def test_fewer_words_are_the_beginning_of_more(key, count, more):
    assert make_words(key, count + more)[: WORD_CHARS * count] == make_words(key, count)


@given(keys, st.integers(1, 60))
def test_a_word_is_a_token(key, count):
    assert len(encode(make_words(key, count))) == count


@given(keys, st.integers(1, 300))
def test_ignoring_the_end_of_turn_gives_exactly_the_tokens_asked_for(key, limit):
    reply = make_reply(key, Limits(max_tokens=limit, ignore_eos=True))
    assert (reply.tokens, reply.finish_reason, len(reply.token_ids())) == (limit, "length", limit)
    assert END_OF_TURN not in reply.token_ids()


@given(keys, st.integers(1, 300), st.integers(0, 400))
def test_a_reply_ends_by_itself_or_at_the_limit_whichever_comes_first(key, limit, min_tokens):
    reply = make_reply(key, Limits(max_tokens=limit, min_tokens=min_tokens))
    natural = make_reply(key, Limits(max_tokens=10**6, min_tokens=min_tokens))
    assert natural.tokens > min_tokens
    assert natural.token_ids()[-1] == END_OF_TURN
    assert reply.tokens == min(limit, natural.tokens)
    assert reply.finish_reason == ("stop" if natural.tokens <= limit else "length")
    assert natural.words.startswith(reply.words)
    assert len(reply.token_ids()) == reply.tokens


def naive_stop(words, stops, min_tokens):
    """Token by token, as vLLM looks for stop strings: in what is new, and what may have begun before it."""
    for count in range(1, len(words) // WORD_CHARS + 1):
        said = words[: WORD_CHARS * count]
        if count <= min_tokens:
            continue
        found = [
            (said.find(stop, max(0, WORD_CHARS * min_tokens - len(stop) + 1)) + len(stop), stop)
            for stop in stops
            if said.find(stop, max(0, WORD_CHARS * min_tokens - len(stop) + 1)) >= 0
        ]
        if found:
            return count, *min(found)
    return None


@given(
    keys,
    st.integers(1, 80),
    st.lists(
        st.sampled_from(["a", "n ", "r t", " ", "zel zel", "in f", "t"]) | st.text("abn r", min_size=1), max_size=3
    ),
    st.integers(0, 20),
    st.booleans(),
)
def test_the_stop_string_that_is_complete_first_ends_the_reply(key, limit, stops, min_tokens, keep):
    limits = Limits(max_tokens=limit, ignore_eos=True, stops=tuple(stops), min_tokens=min_tokens, keep_stop=keep)
    reply = make_reply(key, limits)
    found = naive_stop(make_words(key, limit), stops, min_tokens)
    if found is None:
        assert (reply.tokens, reply.finish_reason, reply.stop_reason) == (limit, "length", None)
        return
    count, end, stop = found
    assert (reply.tokens, reply.finish_reason, reply.stop_reason) == (count, "stop", stop)
    assert reply.words[: reply.shown] == make_words(key, limit)[: end if keep else end - len(stop)]


def test_lengths_are_those_of_a_chat_trace():
    lengths = [make_reply(key, Limits(max_tokens=10**6)).tokens for key in range(3000)]
    assert 110 < median(lengths) < 150
    assert 180 < mean(lengths) < 240
