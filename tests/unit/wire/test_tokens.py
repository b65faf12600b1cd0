"""Bodies to what is to be tokenized; what cannot be reproduced is refused with its reason."""

import contextlib
import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.values.block_hash import MediaItem
from beaconry.values.request import Api
from beaconry.wire.tokens import (
    Chat,
    Given,
    NoTokensError,
    PromptTokens,
    Reason,
    Text,
    TokenSource,
    ask_of,
    parse_rendered,
    parse_tokenized,
    tokenize_body,
)

HI = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return ask_of(Api.CHAT, json.dumps({"model": "m", "messages": HI, **fields}).encode())


def text(**fields):
    return ask_of(Api.COMPLETIONS, json.dumps({"model": "m", **fields}).encode())


def test_a_conversation_asks_for_the_reply_unless_told_otherwise():
    assert chat() == Chat(
        model="m",
        messages=HI,
        template_values={"add_generation_prompt": True, "continue_final_message": False},
    )


def test_the_protocols_values_win_over_the_clients_own_as_in_vllm():
    values = chat(
        chat_template_kwargs={"enable_thinking": True, "add_generation_prompt": True, "x": 1},
        reasoning_effort="none",
        add_generation_prompt=False,
        documents=[{"title": "t"}],
    ).template_values
    assert values == {
        "enable_thinking": True,
        "x": 1,
        "reasoning_effort": "none",
        "documents": [{"title": "t"}],
        "add_generation_prompt": False,
        "continue_final_message": False,
    }
    assert chat(reasoning_effort="low").template_values["enable_thinking"] is True


def test_token_ids_are_taken_as_they_are():
    assert text(prompt=[1, 2, 2**32 - 1], cache_salt="s") == Given(ids=array("I", [1, 2, 2**32 - 1]), salt="s")
    assert text(prompt=[[1, 2]]) == Given(ids=array("I", [1, 2]))


def test_one_text_in_a_list_is_one_text():
    assert text(prompt=["a"]) == text(prompt="a") == Text(model="m", text="a")
    assert text(prompt="a", add_special_tokens=False).special_tokens is False


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"truncate_prompt_tokens": 5}, Reason.OPTION),
        ({"chat_template": "{{ 1 }}"}, Reason.OPTION),
        ({"chat_template_kwargs": {"tools": []}}, Reason.OPTION),
        ({"tools": [{"function": {"name": "f"}}], "tool_choice": "none"}, Reason.OPTION),
        ({"tools": []}, Reason.INVALID),
        ({"messages": [{"content": "x"}]}, Reason.INVALID),
        ({"messages": [{"role": "user", "content": 5}]}, Reason.INVALID),
        ({"messages": "x"}, Reason.INVALID),
    ],
)
def test_conversations_that_are_not_reproduced(fields, reason):
    with pytest.raises(NoTokensError) as caught:
        chat(**fields)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": ["a", "b"]}, Reason.PROMPTS),
        ({"prompt": [[1], [2]]}, Reason.PROMPTS),
        ({"prompt": []}, Reason.INVALID),
        ({}, Reason.INVALID),
        ({"prompt": [1, -1]}, Reason.INVALID),
        ({"prompt": [1, "a"]}, Reason.INVALID),
        ({"prompt": "a", "prompt_embeds": "x"}, Reason.OPTION),
        ({"prompt": "a", "truncate_prompt_tokens": -1}, Reason.OPTION),
    ],
)
def test_prompts_that_are_not_reproduced(fields, reason):
    with pytest.raises(NoTokensError) as caught:
        text(**fields)
    assert caught.value.reason is reason


@pytest.mark.parametrize("api", [Api.EMBEDDINGS, Api.RESPONSES, Api.OTHER])
def test_other_apis_are_not_reproduced(api):
    with pytest.raises(NoTokensError) as caught:
        ask_of(api, b"{}")
    assert caught.value.reason is Reason.API


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_body_does_worse_than_have_no_tokens(body):
    for api in Api:
        with contextlib.suppress(NoTokensError):
            ask_of(api, body)


@pytest.mark.parametrize(
    ("part", "media"),
    [
        ({"type": "text", "text": "x"}, False),
        ({"type": "refusal", "refusal": "x"}, False),
        ({"type": "image_url", "image_url": {"url": "data:"}}, True),
        ({"image_url": "data:"}, True),
        ({"type": "hologram"}, True),
    ],
)
def test_content_that_is_not_text_is_noticed(part, media):
    assert chat(messages=[{"role": "user", "content": [part]}]).media is media


def test_kinds_of_requests_tell_apart_what_goes_wrong_together():
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    call = [*HI, {"role": "assistant", "tool_calls": []}]
    assert chat().kind == "chat"
    assert chat(messages=parts).kind == "chat+parts"
    assert chat(messages=image).kind == "chat+parts+media"
    assert chat(messages=call).kind == "chat+tools"
    assert chat(tools=[{"function": {}}], reasoning_effort="low").kind == "chat+tools+options"
    assert text(prompt="a").kind == "text"


def test_an_engine_is_asked_with_the_clients_own_words():
    body = b'{"model": "m", "messages": [{"role": "user",  "content": "\\u00fc"}], "tools": [ {"a":1.50} ], "reasoning_effort": "low"}'
    asked = tokenize_body(ask_of(Api.CHAT, body), body)
    assert b'[{"role": "user",  "content": "\\u00fc"}]' in asked
    assert b'[ {"a":1.50} ]' in asked
    assert json.loads(asked) == {
        "model": "m",
        "messages": [{"role": "user", "content": "ü"}],
        "add_generation_prompt": True,
        "continue_final_message": False,
        "add_special_tokens": False,
        "tools": [{"a": 1.5}],
        "chat_template_kwargs": {"reasoning_effort": "low", "enable_thinking": True},
    }
    plain = tokenize_body(text(prompt="a"), b"")
    assert json.loads(plain) == {"model": "m", "prompt": "a", "add_special_tokens": True}


def test_answers_of_engines_are_read():
    assert parse_tokenized(b'{"count": 2, "tokens": [5, 6]}') == array("I", [5, 6])
    body = {
        "token_ids": [1, 9, 9, 2, 8, 3],
        "features": {
            "mm_hashes": {"video": ["v"], "image": ["i"]},
            "mm_placeholders": {"video": [{"offset": 4, "length": 1}], "image": [{"offset": 1, "length": 2}]},
        },
    }
    ids, items = parse_rendered(json.dumps(body).encode())
    assert ids == array("I", [1, 9, 9, 2, 8, 3])
    assert items == (MediaItem(identifier="i", offset=1, length=2), MediaItem(identifier="v", offset=4, length=1))
    assert parse_rendered(b'{"token_ids": [1]}') == (array("I", [1]), ())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"tokens": [-1], "token_ids": [-1]}',
        b'{"tokens": "x", "token_ids": [1], "features": {"mm_hashes": {"image": ["i"]}, "mm_placeholders": {}}}',
        b'{"token_ids": [1], "features": {"mm_hashes": {"image": ["i"]}, "mm_placeholders": {"image": []}}}',
    ],
)
def test_answers_that_cannot_be_read_are_failures(body):
    for parse in (parse_tokenized, parse_rendered):
        with pytest.raises(NoTokensError) as caught:
            parse(body)
        assert caught.value.reason is Reason.FAILED


def test_a_prompts_origin_is_told_in_a_few_words():
    assert PromptTokens(ids=array("I"), source=TokenSource.LOCAL).told == "local"
    assert PromptTokens(ids=None, source=TokenSource.NONE, reason=Reason.DEADLINE).told == "none; deadline"
