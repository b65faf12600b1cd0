"""A client's messages and tools in the form in which vLLM hands them to a chat template.

Templates are written for a normal form: content is one text, or a list of parts for templates that walk through parts; tool calls have
their arguments parsed; absent fields are not there at all. The rules are those of vLLM's `renderers/chat_utils.py`, `renderers/hf.py` and
`openai/chat_completion/protocol.py` (0.32), and of transformers' `apply_chat_template` (5); text only. What such an engine would refuse, or
what is not text, is NoTokensError.
"""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from beaconry.wire.tokens import NoTokensError, Reason

_TEXT_FIELDS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Type of a content part that is text, and where it has it."""
_PART_FIELDS = frozenset({*_TEXT_FIELDS.values(), "type", "name", "uuid", "detail", "image_url", "input_audio", "file"})
"""Not passed on to the template."""
_BILLING = "x-anthropic-billing-header"
"""A line that some clients put first into the system text, different each time; vLLM drops it."""

Message = dict[str, Any]


class ContentFormat(StrEnum):
    """How a template wants content."""

    STRING = "string"
    OPENAI = "openai"
    """A list of parts."""


def conversation(messages: Sequence[Message], content: ContentFormat) -> list[Message]:
    """The messages as the template gets them. NoTokensError if they are not text, or not valid."""
    return [_message(message, content) for message in messages]


def tool_list(tools: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The tools as the template gets them: known fields, in order, absent ones as null. NoTokensError if they are not valid."""
    return None if tools is None else [_tool(tool) for tool in tools]


def without_developer(messages: list[Message]) -> list[Message]:
    """For templates that do not know the role: developer messages as system messages, all of those as one in front."""
    if all(message["role"] != "developer" for message in messages):
        return messages
    messages = [
        {**{key: value for key, value in message.items() if key != "tools"}, "role": "system"}
        if message["role"] == "developer"
        else message
        for message in messages
    ]
    places = [index for index, message in enumerate(messages) if message["role"] == "system"]
    if places == [0]:
        return messages
    texts = [_plain(messages[index].get("content", "")) for index in places]
    merged = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [merged, *(message for message in messages if message["role"] != "system")]


def _message(message: Message, content: ContentFormat) -> Message:
    role = message["role"]
    parts = _parts(message.get("content"))
    if role == "system":
        parts = _without_billing(parts)
    found: Message = {"role": role}
    if content is ContentFormat.STRING or (role == "tool" and _is_plain_text(parts)):
        found["content"] = "\n".join(part["text"] if part["type"] == "text" else part["name"] for part in parts)
    else:
        found["content"] = parts
    if role == "assistant":
        _add_assistant_fields(found, message)
    elif role == "tool" and message.get("tool_call_id") is not None:
        found["tool_call_id"] = message["tool_call_id"]
    for key in ("name", "task"):
        if isinstance(message.get(key), str):
            found[key] = message[key]
    if role == "developer" and message.get("tools") is not None:
        found["tools"] = message["tools"]
    return found


def _parts(content: str | list[Any] | None) -> list[Message]:
    """Content as parts, each {"type": "text", "text", ...} or {"type": "tool_reference", "name"}."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in map(_part, content) if part is not None]


def _part(part: object) -> Message | None:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise NoTokensError(Reason.INVALID, "a content part is neither text nor an object")
    kind = part.get("type")
    if kind == "tool_reference":
        if not isinstance(part.get("name"), str):
            raise NoTokensError(Reason.INVALID, "a tool_reference without a name")
        return {"type": "tool_reference", "name": part["name"]}
    if kind not in _TEXT_FIELDS or part.get("uuid") is not None:
        raise NoTokensError(Reason.MEDIA, f"a content part of type {str(kind)[:40]!r}")
    text = part.get(_TEXT_FIELDS[kind])
    if text is None and kind in ("text", "refusal"):
        return None
    if not isinstance(text, str):
        raise NoTokensError(Reason.INVALID, f"a content part of type {kind!r} without its text")
    return {"type": "text", "text": text, **{key: value for key, value in part.items() if key not in _PART_FIELDS}}


def _is_plain_text(parts: list[Message]) -> bool:
    return all(part["type"] == "text" for part in parts)


def _without_billing(parts: list[Message]) -> list[Message]:
    found = []
    for part in parts:
        if part["type"] == "text" and part["text"].startswith(_BILLING):
            rest = part["text"].partition("\n")[2]
            if rest:
                found.append({**part, "text": rest})
        else:
            found.append(part)
    return found


def _add_assistant_fields(found: Message, message: Message) -> None:
    reasoning = message.get("reasoning")
    if reasoning is None:
        reasoning = message.get("reasoning_content")
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise NoTokensError(Reason.INVALID, "an assistant's reasoning is not text")
        found["reasoning"] = found["reasoning_content"] = reasoning  # templates look for either
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise NoTokensError(Reason.INVALID, "tool_calls is not a list")
    if calls:
        found["tool_calls"] = [_call(call) for call in calls]


def _call(call: object) -> Message:
    if not isinstance(call, dict) or call.get("type", "function") != "function":
        raise NoTokensError(Reason.INVALID, "a tool call that is not a function call")
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise NoTokensError(Reason.INVALID, "a tool call without a function's name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}  # as vLLM does: a broken call in the history must not end the conversation
    if not isinstance(arguments, dict):
        arguments = {}
    found = {"id": call.get("id"), "function": {"arguments": arguments, "name": function["name"]}, "type": "function"}
    return {key: value for key, value in found.items() if value is not None}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise NoTokensError(Reason.INVALID, "a tool that is not a function")
    if not isinstance(function.get("name"), str):
        raise NoTokensError(Reason.INVALID, "a function without a name")
    shown = {key: function.get(key) for key in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        shown["strict"] = function["strict"]
    deferred = tool.get("defer_loading")
    loading = function.get("defer_loading") if function.get("defer_loading") is not None else deferred
    if loading is not None:
        shown["defer_loading"] = loading
    found = {"type": "function", "function": shown}
    return found if deferred is None else {**found, "defer_loading": deferred}


def _plain(content: str | list[Message]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if "text" in part)
