"""The tokenizer loses nothing, and a conversation's tokens start with those of its beginning."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from beaconry.engine_model.replies import Limits, make_reply
from beaconry.engine_model.tokenizer import END_OF_TURN, SPECIAL_TOKENS, decode, encode, render_chat, token_text
from beaconry.values.errors import CallerError

text = st.text(st.characters(exclude_categories=["Cs"])) | st.text("a<|>end\x00é日") | st.text("ab cd", min_size=20)


@given(text)
@example("<|user|>hé<|end|> <|x|> <|end")
@example("<|end|><|end|>")
def test_decoding_gives_the_text_back(value):
    assert decode(encode(value)) == value


@given(text)
def test_every_token_has_a_text_of_its_own(value):
    assert "".join(map(token_text, encode(value))) == value


def test_english_has_four_characters_a_token():
    assert len(encode("a" * 4000)) == 1000
    assert len(encode("a" * 4001)) == 1001


def test_special_tokens_are_one_token_each():
    assert len(encode("".join(f"<|{name}|>" for name in SPECIAL_TOKENS))) == len(SPECIAL_TOKENS)
    assert encode("<|end|>")[0] == END_OF_TURN


@pytest.mark.parametrize(
    "number", [-1, 0x000000FF, 0x80000000, 0x84000000, 0x90000041, 0x90110000, 0xF0000000 + 99, 1 << 32]
)
def test_a_number_that_is_no_token_is_refused(number):
    with pytest.raises(CallerError, match="not a token"):
        token_text(number)


turns = st.lists(st.tuples(st.sampled_from(["system", "user", "tool"]), text), min_size=1, max_size=3)


@given(turns, turns, st.integers(1, 50), st.booleans(), st.integers())
def test_the_prompt_of_the_next_turn_starts_with_prompt_and_reply_of_this_one(before, after, length, ends, key):
    prompt = encode(render_chat(before, tools="[]"))
    reply = make_reply(key, Limits(max_tokens=length if not ends else 10_000, ignore_eos=not ends))
    said = ("assistant", reply.words)
    following = encode(render_chat([*before, said, *after], tools="[]"))
    known = prompt + reply.token_ids()
    assert following[: len(known)] == known


def test_an_unknown_role_is_refused_by_name():
    with pytest.raises(CallerError, match="'wizard'"):
        render_chat([("wizard", "hello")])


def test_a_prompt_can_be_rendered_without_asking_for_a_reply():
    assert render_chat([("user", "hi")], reply=False) + "<|assistant|>" == render_chat([("user", "hi")])
