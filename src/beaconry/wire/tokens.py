"""What a request's body says about its prompt's tokens, and what came of it.

The engines' own rules decide which tokens a prompt has (vLLM `entrypoints/openai`, `renderers/online_renderer.py`). A body is read into an
`Ask`: token ids as they are, a text, or a conversation with all that its chat template may look at. What cannot be reproduced exactly is
refused here with a reason, so that nobody makes wrong keys of it: then the request is routed by the approximate view.
"""

from array import array
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Raw, Struct

from beaconry.values.block_hash import PLAIN, Extras, MediaItem
from beaconry.values.errors import BeaconryError
from beaconry.values.request import Api

_MEDIA_KEYS = frozenset(
    {
        "image_url",
        "image_pil",
        "image_embeds",
        "audio_url",
        "input_audio",
        "audio_embeds",
        "video_url",
        "video_embeds",
        "prompt_embeds",
        "file",
    }
)
"""What marks a content part as more than text, whatever its type says."""
_TEMPLATE_ARGUMENTS = frozenset({"messages", "conversation", "tools", "tokenize", "chat_template", "return_dict"})
_TEXT_TYPES = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "tool_reference"})


class TokenSource(StrEnum):
    """Where a prompt's tokens came from."""

    GIVEN = "given"
    """The client sent them."""
    LOCAL = "local"
    """Our tokenizer and chat template."""
    ENGINE = "engine"
    """An engine of the model told them."""
    NONE = "none"
    """Nobody: the approximate view has to do."""


class Reason(StrEnum):
    """Why tokens did not come from the first source, or not at all."""

    API = "api"
    """Prompts of this API are not reproduced."""
    PROMPTS = "several-prompts"
    """One body with several prompts."""
    MEDIA = "media"
    """Images and the like: their placeholders and hashes are the engine's."""
    OPTION = "option"
    """An option that changes the prompt in a way that is not reproduced."""
    TEMPLATE = "template"
    """The chat template refuses the conversation, or there is none."""
    INVALID = "invalid"
    """A body that an engine will refuse."""
    DEADLINE = "deadline"
    """It takes, or would take, too long."""
    BUSY = "busy"
    """Too many others wait for the same source."""
    FAILED = "failed"
    """The source failed."""
    DISTRUSTED = "distrusted"
    """Its counts differed from the engine's for such requests."""
    LOADING = "loading"
    """The source is being loaded: the gateway has just started."""
    NO_SOURCE = "no-source"
    """None is configured, or none is healthy."""


class NoTokensError(BeaconryError):
    """A prompt's tokens cannot be had here. Never the caller's fault: the request goes on without."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class PromptTokens(Struct, frozen=True, kw_only=True):
    """A prompt's tokens, or why there are none."""

    ids: "array[int] | None"
    """Type code "I"; None if nobody could tell them."""
    source: TokenSource
    kind: str = ""
    """What kind of request it was: see `Chat.kind`. Empty if the body could not be read."""
    extras: Extras = PLAIN
    """Salt, media items and adapter, for the block keys."""
    reason: Reason | None = None
    """Why the tokens are not from the first source."""
    detail: str = ""

    @property
    def told(self) -> str:
        """In a few words, for traces and headers."""
        return self.source.value if self.reason is None else f"{self.source.value}; {self.reason.value}"


class Given(Struct, frozen=True, kw_only=True):
    """Token ids that the client sent."""

    ids: "array[int]"
    salt: str | None = None


class Text(Struct, frozen=True, kw_only=True):
    """A plain prompt."""

    model: str
    text: str
    special_tokens: bool = True
    """Such as one that begins the text, where the tokenizer is configured to add it."""
    salt: str | None = None

    @property
    def kind(self) -> str:
        """Always the same."""
        return "text"


class Chat(Struct, frozen=True, kw_only=True):
    """A conversation, with all that a chat template may look at."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    template_values: dict[str, Any]
    """`add_generation_prompt`, `continue_final_message`, `documents`, `reasoning_effort` and the client's own, as vLLM merges them."""
    special_tokens: bool = False
    """Added to those of the template: no."""
    salt: str | None = None
    media: bool = False
    """Some content part is not text."""

    @property
    def kind(self) -> str:
        """What is apt to go wrong together: one of 16 words."""
        parts = any(isinstance(message.get("content"), list) for message in self.messages)
        calls = self.tools is not None or any("tool_calls" in message for message in self.messages)
        options = self.template_values != {"add_generation_prompt": True, "continue_final_message": False}
        return "chat" + "+parts" * parts + "+tools" * calls + "+options" * options + "+media" * self.media


Ask = Given | Text | Chat


class _Body(Struct, kw_only=True):
    model: str
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    cache_salt: str | None = None


class _ChatBody(_Body, kw_only=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    reasoning_effort: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


class _TextBody(_Body, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None
    prompt_embeds: Any = None


_CHAT = msgspec.json.Decoder(_ChatBody)
_TEXT = msgspec.json.Decoder(_TextBody)


def ask_of(api: Api, body: bytes) -> Ask:
    """What a body asks for. NoTokensError if its prompt cannot be reproduced."""
    try:
        if api is Api.CHAT:
            return _chat(_CHAT.decode(body))
        if api is Api.COMPLETIONS:
            return _text(_TEXT.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NoTokensError(Reason.INVALID, str(error)) from None
    raise NoTokensError(Reason.API, f"prompts of the {api.value} API are not reproduced")


def _refuse_truncation(body: _Body) -> None:
    if body.truncate_prompt_tokens is not None:
        raise NoTokensError(Reason.OPTION, "truncate_prompt_tokens: what is cut off depends on the engine's limits")


def _chat(body: _ChatBody) -> Chat:
    _refuse_truncation(body)
    if body.chat_template is not None:
        raise NoTokensError(Reason.OPTION, "chat_template: the request brings its own, which most engines refuse")
    taken = _TEMPLATE_ARGUMENTS.intersection(body.chat_template_kwargs or ())
    if taken:
        raise NoTokensError(Reason.OPTION, f"chat_template_kwargs: {min(taken)} is not the request's to set")
    if body.tools and body.tool_choice == "none":
        raise NoTokensError(
            Reason.OPTION, "tool_choice none with tools: engines can be told to leave the tools out then"
        )
    if body.tools is not None and not body.tools:
        raise NoTokensError(Reason.INVALID, "tools is empty")
    for message in body.messages:
        if not isinstance(message.get("role"), str):
            raise NoTokensError(Reason.INVALID, "a message without a role")
        if not isinstance(message.get("content"), str | list | None):
            raise NoTokensError(Reason.INVALID, "a message's content is neither text nor parts")
    return Chat(
        model=body.model,
        messages=body.messages,
        tools=body.tools,
        template_values=_template_values(body),
        special_tokens=bool(body.add_special_tokens),
        salt=body.cache_salt,
        media=any(_has_media(message.get("content")) for message in body.messages),
    )


def _template_values(body: _ChatBody) -> dict[str, Any]:
    """As vLLM merges them: what the protocol names wins over the client's own values, unless it is absent."""
    own = body.chat_template_kwargs or {}
    values = dict(own)
    if body.reasoning_effort is not None:
        values["reasoning_effort"] = body.reasoning_effort
        if "enable_thinking" not in own:
            values["enable_thinking"] = body.reasoning_effort != "none"
    if body.documents is not None:
        values["documents"] = body.documents
    values["add_generation_prompt"] = body.add_generation_prompt
    values["continue_final_message"] = body.continue_final_message
    return values


def _has_media(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and (not _MEDIA_KEYS.isdisjoint(part) or part.get("type", "text") not in _TEXT_TYPES)
        for part in content
    )


def _text(body: _TextBody) -> Given | Text:
    _refuse_truncation(body)
    if body.prompt_embeds is not None:
        raise NoTokensError(Reason.OPTION, "prompt_embeds: no tokens at all")
    prompt: object = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        special = body.add_special_tokens is not False
        return Text(model=body.model, text=prompt, special_tokens=special, salt=body.cache_salt)
    if not isinstance(prompt, list) or not prompt:
        raise NoTokensError(Reason.INVALID, "no prompt")
    if not isinstance(prompt[0], int):
        raise NoTokensError(Reason.PROMPTS, f"{len(prompt)} prompts in one body")
    try:
        return Given(ids=array("I", prompt), salt=body.cache_salt)
    except (TypeError, OverflowError) as error:
        raise NoTokensError(Reason.INVALID, f"token ids: {error}") from None


# -- an engine's own endpoints


class _Tokenized(Struct):
    tokens: list[int]


class _Range(Struct):
    offset: int
    length: int


class _Features(Struct):
    mm_hashes: dict[str, list[str]]
    mm_placeholders: dict[str, list[_Range]]


class _Rendered(Struct):
    token_ids: list[int]
    features: _Features | None = None


_TOKENIZED = msgspec.json.Decoder(_Tokenized)
_RENDERED = msgspec.json.Decoder(_Rendered)


def tokenize_body(ask: Text | Chat, body: bytes) -> bytes:
    """What to POST to `/tokenize` for this body: its parts as the client wrote them."""
    if isinstance(ask, Text):
        return msgspec.json.encode({"model": ask.model, "prompt": ask.text, "add_special_tokens": ask.special_tokens})
    given = msgspec.json.decode(body, type=dict[str, Raw])
    values = dict(ask.template_values)
    asked: dict[str, Any] = {
        "model": ask.model,
        "messages": given["messages"],
        "add_generation_prompt": values.pop("add_generation_prompt"),
        "continue_final_message": values.pop("continue_final_message"),
        "add_special_tokens": ask.special_tokens,
    }
    if ask.tools is not None:
        asked["tools"] = given["tools"]
    if values:
        asked["chat_template_kwargs"] = values
    return msgspec.json.encode(asked)


def parse_tokenized(body: bytes) -> "array[int]":
    """The token ids of a `/tokenize` answer. NoTokensError if it is not one."""
    try:
        return array("I", _TOKENIZED.decode(body).tokens)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError) as error:
        raise NoTokensError(Reason.FAILED, f"the engine's /tokenize answer cannot be read: {error}") from None


def parse_rendered(body: bytes) -> "tuple[array[int], tuple[MediaItem, ...]]":
    """The token ids and media items of a `/v1/chat/completions/render` answer. NoTokensError if it is not one."""
    try:
        rendered = _RENDERED.decode(body)
        ids = array("I", rendered.token_ids)
        features = rendered.features
        items = [
            MediaItem(identifier=identifier, offset=where.offset, length=where.length)
            for modality, hashes in (features.mm_hashes.items() if features else ())
            for identifier, where in zip(hashes, features.mm_placeholders[modality], strict=True)  # type: ignore[union-attr]
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, KeyError, ValueError) as error:
        raise NoTokensError(Reason.FAILED, f"the engine's render answer cannot be read: {error}") from None
    return ids, tuple(sorted(items, key=lambda item: item.offset))
