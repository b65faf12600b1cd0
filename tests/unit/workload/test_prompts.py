from hypothesis import given
from hypothesis import strategies as st

from beaconry.workload.prompts import WORDS, PromptText
from beaconry.workload.request import Message, PlannedRequest, Span


def request(*messages):
    return PlannedRequest(at_s=0.0, messages=messages, output_tokens=1, reply_id=-1)


def test_words_are_256_different_ones_of_four_characters():
    assert len(set(WORDS)) == 256
    assert all(len(word) == 4 and word[:3].isalpha() and word.isascii() and word[3] == " " for word in WORDS)


@given(id_=st.integers(-(10**6), 10**9), tokens=st.integers(1, 3000), chars=st.sampled_from([1.0, 3.7, 4.0, 4.5]))
def test_a_span_has_its_length_in_characters_within_half_a_character(id_, tokens, chars):
    text = PromptText(0, chars).span(Span(id=id_, tokens=tokens))
    assert abs(len(text) - tokens * chars) <= 0.5
    assert text.isascii()


@given(id_=st.integers(-5, 10**9), short=st.integers(1, 600), more=st.integers(0, 600))
def test_a_shorter_span_is_a_prefix_of_the_longer_one_with_the_same_id(id_, short, more):
    text = PromptText(3)
    assert text.span(Span(id=id_, tokens=short + more)).startswith(text.span(Span(id=id_, tokens=short)))


def test_text_is_the_same_on_every_machine():
    assert PromptText(0).span(Span(id=7, tokens=4)) == "elm man ink ion "


def test_other_ids_and_other_seeds_give_other_words():
    texts = {PromptText(seed).span(Span(id=id_, tokens=8)) for seed in range(20) for id_ in range(-20, 20)}
    assert len(texts) == 20 * 40


def test_a_chat_has_one_content_per_message_and_keeps_a_real_reply():
    planned = request(
        Message(role="system", spans=(Span(id=1, tokens=2), Span(id=2, tokens=2))),
        Message(role="assistant", spans=(Span(id=3, tokens=9),), text="really said"),
    )
    text = PromptText()
    system, assistant = text.chat(planned)
    assert system == {"role": "system", "content": text.span(Span(id=1, tokens=2)) + text.span(Span(id=2, tokens=2))}
    assert assistant == {"role": "assistant", "content": "really said"}
    assert text.prompt(planned) == system["content"] + "really said"
