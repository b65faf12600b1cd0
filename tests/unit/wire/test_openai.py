"""Bodies in, what routing needs out; and nothing reaches an engine that a client must not set."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.values.errors import CallerError
from beaconry.values.request import Api
from beaconry.wire.openai import RESERVED_KEYS, Parsed, parse, with_priority

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def chat(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}).encode()


def test_a_plain_body_is_forwarded_as_received():
    body = b'{ "model":"m",  "messages":[{"role":"user","content":"h\\u00e9"}], "temperature":0.10 }'
    parsed = parse(Api.CHAT, body)
    assert parsed.body is body
    assert (parsed.model, parsed.stream, parsed.sequences, parsed.output_tokens) == ("m", False, 1, None)


@pytest.mark.parametrize("key", sorted(RESERVED_KEYS))
@pytest.mark.parametrize("value", [{"do_remote_prefill": True}, None, 1])
def test_reserved_fields_never_reach_an_engine(key: str, value: object):
    sent = json.loads(parse(Api.CHAT, chat(**{key: value}, temperature=0.5)).body)
    assert key not in sent
    assert sent["temperature"] == 0.5


@pytest.mark.parametrize("api", [Api.COMPLETIONS, Api.EMBEDDINGS, Api.RESPONSES, Api.OTHER])
def test_reserved_fields_are_removed_from_every_kind_of_body(api: Api):
    body = json.dumps({"model": "m", "prompt": "x", "input": "x", "kv_transfer_params": {}}).encode()
    assert b"kv_transfer" not in parse(api, body).body


def test_reserved_fields_are_found_under_escapes_and_duplicates():
    body = b'{"model":"m","messages":[],"kv\\u005ftransfer_params":{"a":1},"kv_transfer_params":{"b":2}}'
    assert json.loads(parse(Api.CHAT, body).body) == {"model": "m", "messages": []}


def test_reserved_fields_are_removed_from_vllm_xargs():
    sent = json.loads(
        parse(Api.CHAT, chat(vllm_xargs={"kv_transfer_params": {}, "kv_cache_report_mode": "full", "keep": 1})).body
    )
    assert sent["vllm_xargs"] == {"keep": 1}


@pytest.mark.parametrize(
    ("api", "fields", "divisible"),
    [
        (Api.CHAT, {}, True),
        (Api.CHAT, {"tools": [{"type": "web_search"}], "echo": False, "prompt_logprobs": None}, True),
        (Api.CHAT, {"echo": True}, False),
        (Api.CHAT, {"prompt_logprobs": 0}, False),
        (Api.CHAT, {"use_beam_search": True}, False),
        (Api.CHAT, {"truncate_prompt_tokens": -1}, False),
        (Api.COMPLETIONS, {"prompt": "one"}, True),
        (Api.COMPLETIONS, {"prompt": ["one"]}, True),
        (Api.COMPLETIONS, {"prompt": [1, 2]}, True),
        (Api.COMPLETIONS, {"prompt": [[1, 2]]}, True),
        (Api.COMPLETIONS, {"prompt": ["one", "two"]}, False),
        (Api.COMPLETIONS, {"prompt": [[1], [2]]}, False),
        (Api.COMPLETIONS, {"prompt": "one", "echo": True}, False),
        (Api.RESPONSES, {}, True),
        (
            Api.RESPONSES,
            {"tools": [{"type": "function", "name": "f"}], "truncation": "disabled", "background": False},
            True,
        ),
        (Api.RESPONSES, {"tools": None, "previous_response_id": None}, True),
        (Api.RESPONSES, {"tools": [{"type": "function"}, {"type": "mcp"}]}, False),
        (Api.RESPONSES, {"tools": 7}, False),
        (Api.RESPONSES, {"truncation": "auto"}, False),
        (Api.RESPONSES, {"background": True}, False),
        (Api.RESPONSES, {"previous_response_id": "resp_1"}, False),
    ],
)
def test_a_body_tells_whether_two_engines_can_share_it(api: Api, fields: dict[str, object], divisible: bool):
    body = json.dumps({"model": "m", "messages": [], "input": "x", **fields}).encode()
    assert parse(api, body).divisible is divisible


def test_usage_is_asked_for_in_a_stream_that_does_not_ask():
    parsed = parse(Api.CHAT, chat(stream=True))
    assert json.loads(parsed.body)["stream_options"] == {"include_usage": True}
    assert not parsed.wants_usage


def test_other_stream_options_are_kept_when_usage_is_added():
    sent = json.loads(parse(Api.CHAT, chat(stream=True, stream_options={"include_usage": False, "x": 1})).body)
    assert sent["stream_options"] == {"include_usage": True, "x": 1}
    assert json.loads(parse(Api.CHAT, chat(stream=True, stream_options=None)).body)["stream_options"] == {
        "include_usage": True
    }


def test_a_model_is_called_by_its_engines_name_and_everything_else_is_kept():
    body = b'{"messages":[{"role":"user","content":"h\\u00e9"}],"model":"alias","temperature":0.10}'
    parsed = parse(Api.CHAT, body, {"alias": "org/m"}.__getitem__)
    assert (parsed.model, parsed.asked_model) == ("org/m", "alias")
    assert parsed.body == body.replace(b"alias", b"org/m")
    assert parsed.prefix == parse(Api.CHAT, parsed.body).prefix


def test_a_model_named_twice_is_rewritten_once_for_all():
    parsed = parse(Api.CHAT, b'{"model":"other","messages":[],"model":"alias"}', {"alias": "m"}.__getitem__)
    assert json.loads(parsed.body, object_pairs_hook=list) == [("model", "m"), ("messages", [])]


def test_a_name_that_stands_for_itself_changes_no_byte():
    body = chat()
    assert parse(Api.CHAT, body, lambda model: model).body is body


def test_a_stream_that_asks_for_usage_is_left_alone():
    body = chat(stream=True, stream_options={"include_usage": True})
    parsed = parse(Api.CHAT, body)
    assert parsed.body is body
    assert parsed.wants_usage


def test_a_longer_conversation_shares_the_prefix_of_the_shorter_one():
    turns = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "reply " * 100}]
    one = parse(Api.CHAT, chat(messages=turns[:1])).prefix
    two = parse(Api.CHAT, chat(messages=[*turns, {"role": "user", "content": "more " * 90}])).prefix
    assert len(one) == 1000 // 256
    assert two[: len(one)] == one
    assert len(two) > len(one)


@pytest.mark.parametrize("other", [{"model": "n"}, {"cache_salt": "s"}, {"tools": [{"type": "function"}]}])
def test_model_salt_and_tools_part_prefixes(other: dict[str, object]):
    messages = [{"role": "user", "content": "word " * 200}]
    one = parse(Api.CHAT, chat(messages=messages)).prefix
    assert not set(one) & set(parse(Api.CHAT, chat(messages=messages, **other)).prefix)


def test_a_longer_response_shares_the_prefix_of_the_shorter_one_and_instructions_come_first():
    def response(**fields: object) -> Parsed:
        return parse(Api.RESPONSES, json.dumps({"model": "m", **fields}).encode())

    items = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "reply " * 100}]
    one, two = response(input=items[:1]), response(input=items)
    assert len(one.prefix) == one.prompt_bytes // 256
    assert two.prefix[: len(one.prefix)] == one.prefix
    assert len(two.prefix) > len(one.prefix)
    told = response(input=items, instructions="Be brief.")
    assert told.prompt_bytes > two.prompt_bytes
    assert not set(told.prefix) & set(two.prefix)


def test_what_an_assistant_calls_counts_though_it_says_nothing():
    def calls(arguments: str) -> Parsed:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return parse(Api.CHAT, chat(messages=[message, {"role": "tool", "content": "x" * 600}]))

    assert calls("long " * 50).prompt_bytes > calls("").prompt_bytes + 200
    assert calls("a").prefix != calls("b").prefix


def test_a_completion_without_a_prompt_is_the_engines_to_judge():
    parsed = parse(Api.COMPLETIONS, b'{"model":"m"}')
    assert (parsed.prompt_bytes, parsed.prompt_tokens, parsed.prefix) == (0, None, ())


def test_an_image_counts_by_digest_not_by_length():
    def message(image: str) -> list[object]:
        return [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "x" * 600}],
            }
        ]

    one = parse(Api.CHAT, chat(messages=message("data:" + "A" * 9000)))
    assert one.prompt_bytes < 700
    assert one.prefix != parse(Api.CHAT, chat(messages=message("data:" + "B" * 9000))).prefix


def test_token_ids_are_counted_exactly():
    parsed = parse(Api.COMPLETIONS, json.dumps({"model": "m", "prompt": list(range(130))}).encode())
    assert parsed.prompt_tokens == 130
    assert len(parsed.prefix) == 2


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"model":"m","messages":[]} x', "JSON"),
        (b'{"messages":[]}', "model"),
        (b'{"model":1,"messages":[]}', "$.model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":{}}', "$.messages"),
        (b'{"model":"m","messages":[{"role":1}]}', "$.messages[0].role"),
        (b'{"model":"m","messages":[{"role":"user","content":[3]}]}', "content parts"),
        (b'{"model":"m","messages":[],"stream":"yes"}', "$.stream"),
        (b'{"model":"m","messages":[],"max_tokens":-1}', "max_tokens"),
        (b'{"model":"m","messages":[],"n":-2}', "n must not"),
        (b'{"model":"m","messages":[],"max_tokens":99999999999}', "max_tokens"),
        (b'{"model":"\xff","messages":[]}', "JSON"),
        (b'{"model":"m","messages":[],"x":"\xff"}', "JSON"),
        (b'{"model":"m","messages":[],"kv_transfer_params":{"\xff":1}}', "JSON"),
        (b'{"model":"m","messages":[],"x":' + b"[" * 100_000, "deeply"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(body: bytes, where: str):
    with pytest.raises(CallerError) as caught:
        parse(Api.CHAT, body)
    assert caught.value.status == 400
    assert where in caught.value.message or where == caught.value.param


@pytest.mark.parametrize("prompt", [[1, "a"], [-1], [2**40], [[1], "x"], []])
def test_a_prompt_that_is_neither_text_nor_token_ids_is_refused(prompt: object):
    with pytest.raises(CallerError):
        parse(Api.COMPLETIONS, json.dumps({"model": "m", "prompt": prompt}).encode())


@given(st.sampled_from(list(Api)), st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_callers_error(api: Api, body: bytes):
    try:
        parse(api, body)
    except CallerError as error:
        assert error.status == 400


@given(
    st.sampled_from(list(Api)),
    st.dictionaries(
        st.sampled_from(
            [
                "model",
                "messages",
                "prompt",
                "input",
                "stream",
                "n",
                "tools",
                "stream_options",
                "vllm_xargs",
                "kv_transfer_params",
                "max_tokens",
                "cache_salt",
            ]
        ),
        JSON,
    ),
)
def test_any_json_is_refused_or_forwarded_without_reserved_fields(api: Api, document: dict[str, object]):
    try:
        parsed = parse(api, json.dumps(document).encode())
    except CallerError as error:
        assert error.status == 400
        return
    sent = json.loads(parsed.body)
    assert not RESERVED_KEYS & sent.keys()
    unchanged = {k: v for k, v in document.items() if k not in RESERVED_KEYS | {"stream_options", "vllm_xargs"}}
    assert {k: v for k, v in sent.items() if k not in ("stream_options", "vllm_xargs")} == unchanged


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("given", [{}, {"priority": 7}, {"prior\u0069ty": None, "n": 2}])
def test_the_engines_body_bears_the_priority_once_whatever_the_client_has_written(stream: bool, given: dict):
    body = chat(stream=stream, **given).replace(b"priority", b"prior\\u0069ty") + b" \n"
    sent = with_priority(parse(Api.CHAT, body, lambda _: "other").body, -3)
    pairs = json.loads(sent, object_pairs_hook=list)
    assert [value for key, value in pairs if key == "priority"] == [-3]
    assert ("model", "other") in map(tuple, pairs)
    assert with_priority(b'{"model":"m"}', 2**31) == b'{"model":"m","priority":2147483648}'
