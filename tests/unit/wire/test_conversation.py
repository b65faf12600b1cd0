"""Messages in the form in which vLLM hands them to chat templates."""

import pytest

from beaconry.wire.conversation import ContentFormat, conversation, tool_list, without_developer
from beaconry.wire.tokens import NoTokensError, Reason

STRING, OPENAI = ContentFormat.STRING, ContentFormat.OPENAI


def one(message, content=STRING):
    return conversation([message], content)[0]


def call(arguments, **fields):
    return {"type": "function", "id": "c1", "function": {"name": "f", "arguments": arguments}, **fields}


def arguments_of(given):
    return one({"role": "assistant", "tool_calls": [call(given)]})["tool_calls"][0]["function"]["arguments"]


def test_parts_become_lines_of_one_text_or_stay_parts():
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "a", "cache_control": 1}, "b", {"type": "refusal", "refusal": "c"}],
    }
    assert one(message)["content"] == "a\nb\nc"
    assert one(message, OPENAI)["content"] == [
        {"type": "text", "text": "a", "cache_control": 1},
        {"type": "text", "text": "b"},
        {"type": "text", "text": "c"},
    ]


def test_one_text_becomes_a_part_where_the_template_wants_parts():
    assert one({"role": "user", "content": "a"}, OPENAI)["content"] == [{"type": "text", "text": "a"}]
    assert one({"role": "user", "content": None}, OPENAI)["content"] == []
    assert one({"role": "assistant"})["content"] == ""


def test_a_tools_answer_is_one_text_even_where_the_template_wants_parts():
    message = {
        "role": "tool",
        "tool_call_id": "c1",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    assert one(message, OPENAI) == {"role": "tool", "content": "a\nb", "tool_call_id": "c1"}
    reference = {"role": "tool", "content": [{"type": "tool_reference", "name": "n"}]}
    assert one(reference, OPENAI)["content"] == [{"type": "tool_reference", "name": "n"}]
    assert one(reference)["content"] == "n"


@pytest.mark.parametrize(
    ("given", "parsed"),
    [('{"a": 1}', {"a": 1}), ("", {}), (None, {}), ('{"a": ', {}), ("[1]", {}), ({"a": 1}, {"a": 1})],
)
def test_arguments_of_tool_calls_are_parsed_and_broken_ones_are_empty(given, parsed):
    assert arguments_of(given) == parsed


def test_tool_calls_have_their_fields_in_the_order_of_the_engines_types():
    made = one({"role": "assistant", "content": None, "tool_calls": [call("{}", index=0)]})
    assert made["content"] == ""
    assert list(made["tool_calls"][0]) == ["id", "function", "type"]
    assert list(made["tool_calls"][0]["function"]) == ["arguments", "name"]


def test_absent_and_empty_fields_are_not_there():
    message = {"role": "assistant", "content": "x", "tool_calls": [], "refusal": None, "audio": None, "name": None}
    assert one(message) == {"role": "assistant", "content": "x"}


def test_reasoning_is_there_under_both_names():
    for name in ("reasoning", "reasoning_content"):
        made = one({"role": "assistant", "content": "x", name: "why"})
        assert (made["reasoning"], made["reasoning_content"]) == ("why", "why")


def test_a_clients_billing_line_is_dropped_from_the_system_text():
    line = "x-anthropic-billing-header: cch=1"
    assert one({"role": "system", "content": f"{line}\nreal"})["content"] == "real"
    assert one({"role": "system", "content": [{"type": "text", "text": line}, "real"]})["content"] == "real"
    assert one({"role": "user", "content": line})["content"] == line


def test_developer_messages_join_the_system_text_in_front():
    messages = [
        {"role": "user", "content": "q"},
        {"role": "developer", "content": "d", "tools": []},
        {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert without_developer(messages) == [{"role": "system", "content": "d\n\na\nb"}, {"role": "user", "content": "q"}]
    assert without_developer([{"role": "developer", "content": "d"}]) == [{"role": "system", "content": "d"}]


def test_tools_are_shown_with_all_known_fields_in_order():
    given = [{"function": {"parameters": {"b": 1, "a": 2}, "name": "f", "extra": 1, "strict": True}, "extra": 2}]
    shown = {"name": "f", "description": None, "parameters": {"b": 1, "a": 2}, "strict": True}
    assert tool_list(given) == [{"type": "function", "function": shown}]
    assert list(tool_list(given)[0]["function"]) == ["name", "description", "parameters", "strict"]
    deferred = tool_list([{"function": {"name": "f"}, "defer_loading": True}])[0]
    assert deferred["defer_loading"] is deferred["function"]["defer_loading"] is True
    assert tool_list(None) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, Reason.MEDIA),
        ({"role": "user", "content": [{"text": "no type"}]}, Reason.MEDIA),
        ({"role": "user", "content": [5]}, Reason.INVALID),
        ({"role": "user", "content": [{"type": "input_text"}]}, Reason.INVALID),
        ({"role": "user", "content": [{"type": "tool_reference"}]}, Reason.INVALID),
        ({"role": "assistant", "tool_calls": "x"}, Reason.INVALID),
        ({"role": "assistant", "tool_calls": [5]}, Reason.INVALID),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, Reason.INVALID),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, Reason.INVALID),
        ({"role": "assistant", "reasoning": 5}, Reason.INVALID),
    ],
)
def test_what_is_no_text_or_no_message_is_refused(message, reason):
    with pytest.raises(NoTokensError) as caught:
        one(message)
    assert caught.value.reason is reason


def test_what_else_a_message_says_of_itself_is_kept_where_templates_know_it():
    named = one({"role": "user", "content": "a", "name": "Ann", "task": "t", "other": 1})
    assert (named["name"], named["task"], "other" in named) == ("Ann", "t", False)
    assert "name" not in one({"role": "user", "content": "a", "name": 5})
    assert one({"role": "developer", "content": "a", "tools": [1]})["tools"] == [1]
    assert "tools" not in one({"role": "user", "content": "a", "tools": [1]})


def test_a_text_part_without_text_is_no_part():
    parts = [{"type": "text", "text": None}, {"type": "text", "text": "a"}, {"type": "refusal"}]
    assert one({"role": "user", "content": parts})["content"] == "a"


@pytest.mark.parametrize("tool", [{}, {"type": "custom"}, {"function": {}}])
def test_what_is_no_function_is_no_tool(tool):
    with pytest.raises(NoTokensError, match="function"):
        tool_list([tool])
