"""A model's chat template: conversation to prompt text, as transformers renders it for vLLM.

Templates are Jinja programs that come with a model; they run in Jinja's immutable sandbox, with the filters and globals that
transformers offers them (`utils/chat_template_utils.py`). Whether a template walks through a message's parts or wants one text is found
in its syntax tree, as vLLM finds it (`renderers/hf.py`). The clock that some templates print comes in as a function.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from beaconry.values.errors import OperatorError
from beaconry.wire.conversation import ContentFormat, conversation, tool_list, without_developer
from beaconry.wire.tokens import Chat, NoTokensError, Reason

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks where the final message ends, to cut off what the template adds. With the trailing space it shows whether the template trims."""
_FAULTS = (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
"""What a template can raise about a conversation it was not made for."""


class ChatTemplate:
    """One model's templates, compiled. Immutable."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special: Mapping[str, str],
        strftime_now: Callable[[str], str],
        content: ContentFormat | None = None,
    ) -> None:
        """`sources` by name ("default", "tool_use"), `special` tokens by name ("bos_token"). OperatorError for a template that is none."""
        environment = _environment(strftime_now)
        self._special = dict(special)
        self._compiled = {}
        self._content = {}
        for name, source in sources.items():
            try:
                self._compiled[name] = environment.from_string(source)
                self._content[name] = content or content_format(environment.parse(source))
            except (TemplateError, RecursionError) as error:
                raise OperatorError(f"the chat template {name!r} cannot be compiled: {error}") from None
        self._knows_developer = {name for name, source in sources.items() if _names_developer(source)}
        self._sources = dict(sources)

    def render(self, chat: Chat) -> str:
        """The prompt's text. NoTokensError if the template refuses, or the conversation is more than text."""
        name = "tool_use" if chat.tools is not None and "tool_use" in self._compiled else "default"
        if name not in self._compiled:
            raise NoTokensError(Reason.TEMPLATE, "the model has no chat template")
        messages = conversation(chat.messages, self._content[name])
        if not messages:
            raise NoTokensError(Reason.INVALID, "no messages")
        if name not in self._knows_developer:
            messages = without_developer(messages)
        values = dict(chat.template_values)
        continued = values.pop("continue_final_message", False)
        final = _tag_final(messages, self._sources[name]) if continued else None
        try:
            text = self._compiled[name].render(
                {"documents": None, **self._special, **values, "messages": messages, "tools": tool_list(chat.tools)}
            )
        except _FAULTS as error:
            raise NoTokensError(Reason.TEMPLATE, f"the chat template refuses: {error}") from None
        return text if final is None else _cut_after(text, final)


def content_format(root: nodes.Template) -> ContentFormat:
    """Whether a template walks through the parts of a message's content."""
    lists = {"messages"}
    while True:
        more = {
            assigned.target.name
            for assigned in root.find_all(nodes.Assign)
            if isinstance(assigned.target, nodes.Name) and any(_refers(assigned.node, name) for name in lists)
        }
        if more <= lists:
            break
        lists |= more
    loops = list(root.find_all(nodes.For))
    messages = {
        loop.target.name
        for loop in loops
        if isinstance(loop.target, nodes.Name) and any(_refers(loop.iter, name) for name in lists)
    }
    in_macros: set[int] = set()
    for macro in root.find_all(nodes.Macro):
        passed = set(_content_parameters(root, macro, messages))
        for loop in macro.find_all(nodes.For):
            in_macros.add(id(loop))
            if isinstance(loop.iter, nodes.Name) and loop.iter.name in passed:
                return ContentFormat.OPENAI
    for loop in loops:
        by_name = isinstance(loop.iter, nodes.Name) and loop.iter.name == "content" and id(loop) not in in_macros
        if by_name or any(_refers(loop.iter, name, "content") for name in messages):
            return ContentFormat.OPENAI
    return ContentFormat.STRING


def _content_parameters(root: nodes.Template, macro: nodes.Macro, messages: set[str]) -> Iterator[str]:
    """The parameters of a macro that get some message's content."""
    names = [argument.name for argument in macro.args]
    for call in root.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
            continue
        given = [*zip(names, call.args, strict=False), *((pair.key, pair.value) for pair in call.kwargs)]
        for name, value in given:
            if name in names and any(_refers(value, message, "content") for message in messages):
                yield name


def _refers(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Whether an expression is the variable, or with `key` that item of it; filters, tests and slices do not matter."""
    if isinstance(node, nodes.Filter | nodes.Test):
        return _refers(node.node, name, key)
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _refers(node.node, name, key)
        return key is not None and isinstance(node.arg, nodes.Const) and node.arg.value == key and _is(node.node, name)
    if isinstance(node, nodes.Getattr):
        return key is not None and node.attr == key and _is(node.node, name)
    return key is None and _is(node, name)


def _is(node: nodes.Node | None, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name


def _names_developer(source: str) -> bool:
    return '"developer"' in source or "'developer'" in source


def _tag_final(messages: list[dict[str, Any]], source: str) -> str:
    """Mark the end of the final message's text, in place; returns that text."""
    if "content" not in source:
        raise NoTokensError(Reason.TEMPLATE, "continue_final_message: the template does not show content")
    content = messages[-1]["content"]
    if isinstance(content, str):
        messages[-1]["content"] = content + _TAG
        return content
    for part in reversed(content):
        if "text" in part:
            text: str = part["text"]
            part["text"] = text + _TAG
            return text
    raise NoTokensError(Reason.TEMPLATE, "continue_final_message: the final message has no text")


def _cut_after(text: str, final: str) -> str:
    """The text up to the mark, without what the template has trimmed there."""
    place = text.rfind(_TAG.strip())
    if place < 0 or final.strip() not in text:
        raise NoTokensError(Reason.TEMPLATE, "continue_final_message: the template does not show the final message")
    kept = text[:place]
    return kept if text.startswith(_TAG, place) else kept.rstrip()


def _environment(strftime_now: Callable[[str], str]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model wrote, for training; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's way)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
