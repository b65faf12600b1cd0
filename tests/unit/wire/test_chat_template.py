"""Chat templates render as transformers renders them for vLLM, in a sandbox, and their faults are told."""

import json

import pytest

from beaconry.values.errors import OperatorError
from beaconry.values.request import Api
from beaconry.wire.chat_template import ChatTemplate, content_format
from beaconry.wire.conversation import ContentFormat
from beaconry.wire.tokens import NoTokensError, Reason, ask_of

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
U = {"role": "user", "content": "q"}
TOOL = {"type": "function", "function": {"name": "f", "description": "ü <b>"}}


def template(source=CHATML, **options):
    return ChatTemplate({"default": source}, {"bos_token": "<s>"}, lambda form: f"now({form})", **options)


def render(source, *messages, **fields):
    body = {"model": "m", "messages": messages or [U], **fields}
    return template(source).render(ask_of(Api.CHAT, json.dumps(body).encode()))


def test_a_conversation_is_rendered_with_special_tokens_and_generation_prompt():
    assert render(CHATML) == "<s><|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False).endswith("<|im_end|>\n")


def test_blocks_take_their_line_and_indentation_away():
    assert (
        render("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n") == "q\n"
    )


def test_json_is_plain_and_keeps_the_order_of_keys():
    shown = '[{"type": "function", "function": {"name": "f", "description": "ü <b>", "parameters": null}}]'
    assert render("{{ tools | tojson }}", tools=[TOOL]) == shown
    assert render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, indent=1) }}") == '{\n "a": 2,\n "b": 1\n}'


def test_templates_have_a_clock_loop_controls_and_generation_blocks():
    assert render("{{ strftime_now('%Y') }}") == "now(%Y)"
    assert render("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% generation %}a{{ messages[0].content }}{% endgeneration %}b") == "aqb"


def test_a_clients_values_reach_the_template_and_absent_ones_are_undefined():
    source = "{{ enable_thinking is defined }} {{ documents is none }} {{ tools is none }} {{ x }}"
    assert render(source) == "False True True "
    assert render(source, chat_template_kwargs={"x": 1, "enable_thinking": False}) == "True True True 1"


def test_the_template_for_tools_is_used_where_there_are_tools():
    templates = ChatTemplate({"default": "plain", "tool_use": "tools"}, {}, str)
    asked = [
        ask_of(Api.CHAT, json.dumps({"model": "m", "messages": [U], **f}).encode()) for f in ({}, {"tools": [TOOL]})
    ]
    assert [templates.render(ask) for ask in asked] == ["plain", "tools"]


def test_a_message_to_be_continued_is_left_open():
    last = {"role": "assistant", "content": "The answer is "}
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert render(CHATML, U, last, **options).endswith("<|im_start|>assistant\nThe answer is ")
    trimmed = CHATML.replace("m['content']", "m['content'] | trim")
    assert render(trimmed, U, last, **options).endswith("assistant\nThe answer is")
    parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}.{% endfor %}{% endfor %}"
    assert render(parts, U, last, **options) == "q.The answer is "


@pytest.mark.parametrize(
    ("source", "last"),
    [
        ("{{ messages[0]['role'] }}", U),
        ("{{ messages[0].content }}", {"role": "assistant", "content": "x"}),
        ("{% for p in messages[0].content %}{% endfor %}{% for m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}",
         {"role": "assistant", "content": []}),
    ],
)  # fmt: skip
def test_what_cannot_be_continued_is_refused(source, last):
    with pytest.raises(NoTokensError, match="continue_final_message"):
        render(source, U, last, continue_final_message=True, add_generation_prompt=False)


def test_roles_that_a_template_does_not_know_are_mapped():
    developer = {"role": "developer", "content": "d"}
    assert "system\nd" in render(CHATML, developer, U)
    assert render("{% for m in messages %}{{ m.role }} {% endfor %}{# 'developer' #}", developer) == "developer "


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[5].content.foo }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 'a' * 5 + 5 }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_a_template_that_fails_or_misbehaves_has_no_tokens(source):
    with pytest.raises(NoTokensError) as caught:
        render(source)
    assert caught.value.reason is Reason.TEMPLATE


def test_what_a_template_says_is_passed_on():
    with pytest.raises(NoTokensError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_model_without_template_has_no_conversations():
    with pytest.raises(NoTokensError, match="no chat template"):
        ChatTemplate({}, {}, str).render(ask_of(Api.CHAT, json.dumps({"model": "m", "messages": [U]}).encode()))
    with pytest.raises(NoTokensError, match="no messages"):
        template().render(ask_of(Api.CHAT, b'{"model": "m", "messages": []}'))


def test_a_template_that_is_none_is_the_operators_fault():
    with pytest.raises(OperatorError, match="cannot be compiled"):
        template("{% for %}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, ContentFormat.STRING),
        ("{% for m in messages %}{% for c in m['content'] %}{% endfor %}{% endfor %}", ContentFormat.OPENAI),
        ("{% for m in messages %}{% for c in m.content | list %}{% endfor %}{% endfor %}", ContentFormat.OPENAI),
        ("{% set rest = messages[1:] %}{% for m in rest %}{% for c in m.content %}{% endfor %}{% endfor %}", ContentFormat.OPENAI),
        ("{% set content = messages[0].content %}{% for c in content %}{% endfor %}", ContentFormat.OPENAI),
        ("{% macro show(parts) %}{% for c in parts %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}",
         ContentFormat.OPENAI),
        ("{% macro show(p) %}{% for c in p %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(p=m.content) }}{% endfor %}",
         ContentFormat.OPENAI),
        ("{% macro show(content) %}{% for c in content %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.name) }}{% endfor %}",
         ContentFormat.STRING),
        ("{% for t in tools %}{% for c in t.content %}{% endfor %}{% endfor %}", ContentFormat.STRING),
        ("{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}", ContentFormat.STRING),
    ],
)  # fmt: skip
def test_whether_a_template_walks_through_parts_is_seen_in_its_syntax(source, expected):
    from jinja2 import Environment

    assert content_format(Environment(autoescape=False).parse(source)) is expected


def test_the_operator_may_say_what_the_template_wants():
    ask = ask_of(Api.CHAT, json.dumps({"model": "m", "messages": [U]}).encode())
    assert template("{{ messages[0].content[0].text }}", content=ContentFormat.OPENAI).render(ask) == "q"
