"""What a client asks of an engine: OpenAI bodies as vLLM reads them, to token ids and limits. Errors are worded as vLLM does.

Unknown fields are ignored, as vLLM ignores them; sampling parameters have no effect on pseudo-text. What `kv_transfer_params` means is
another file's: `kv_params.py`.
"""

from array import array
from typing import Any, Final, TypeVar

import msgspec
import xxhash
from msgspec import UNSET, Raw, Struct, UnsetType

from beaconry.engine_model.replies import Limits
from beaconry.engine_model.tokenizer import encode, render_chat
from beaconry.values.errors import CallerError

MAX_CHOICES: Final = 1024
"""Sequences of one request; vLLM takes 16,384."""
DEFAULT_COMPLETION_TOKENS: Final = 16
"""OpenAI's default of `max_tokens` for /v1/completions."""


Json = Raw | UnsetType
"""As the client wrote it, `null` included: a union of Raw and None would refuse all but null."""


class StreamOptions(Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool | None = None


class Message(Struct, frozen=True):
    """One chat message."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: Json = UNSET


class Body(Struct, frozen=True, kw_only=True):
    """What both kinds of body have in common."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None
    priority: int = 0
    cache_salt: str | None = None
    kv_transfer_params: Json = UNSET


class ChatBody(Body, frozen=True, kw_only=True):
    """`/v1/chat/completions`."""

    messages: list[Message]
    tools: Json = UNSET
    max_completion_tokens: int | None = None


class CompletionBody(Body, frozen=True, kw_only=True):
    """`/v1/completions`."""

    prompt: str | list[str | int | list[int]]


class TokenizeBody(Struct, frozen=True, kw_only=True):
    """`/tokenize`: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: Json = UNSET
    add_generation_prompt: bool = True
    return_token_strs: bool | None = False


class DetokenizeBody(Struct, frozen=True, kw_only=True):
    """`/detokenize`."""

    model: str | None = None
    tokens: list[int]


class Prompt(Struct, frozen=True, kw_only=True):
    """One prompt of a request."""

    tokens: "array[int]"
    limits: Limits

    def key(self, seed: int, choice: int) -> int:
        """Return what decides the reply: prompt, seed and choice."""
        return xxhash.xxh3_64_intdigest(self.tokens, (seed * 1_000_003 + choice) & 0xFFFFFFFFFFFFFFFF)


class Asked(Struct, frozen=True, kw_only=True):
    """A request for generation. Its choices are numbered prompt by prompt, `n` of each."""

    chat: bool
    model: str
    prompts: tuple[Prompt, ...]
    n: int
    stream: bool
    include_usage: bool
    seed: int
    priority: int
    salt: str | None
    max_tokens: int | None
    """As the client gave it."""
    kv_transfer_params: Json = UNSET
    """As the client gave it."""

    @property
    def sequences(self) -> int:
        """Choices of the answer."""
        return self.n * len(self.prompts)

    @property
    def prompt_tokens(self) -> int:
        """As usage counts them: each prompt once."""
        return sum(len(prompt.tokens) for prompt in self.prompts)


_Body = TypeVar("_Body")
_CHAT = msgspec.json.Decoder(ChatBody)
_COMPLETION = msgspec.json.Decoder(CompletionBody)
_TOKENIZE = msgspec.json.Decoder(TokenizeBody)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeBody)


def parse_generation(body: bytes, *, chat: bool, models: tuple[str, ...], max_model_len: int) -> Asked:
    """Return what a body asks for. CallerError with vLLM's wording if it cannot be had."""
    if chat:
        chat_body = _decode(_CHAT, body)
        prompts = [_chat_prompt(chat_body.messages, chat_body.tools, reply=True)]
        limit = chat_body.max_completion_tokens if chat_body.max_completion_tokens is not None else chat_body.max_tokens
        asked: Body = chat_body
        default = max_model_len
    else:
        completion = _decode(_COMPLETION, body)
        prompts = _prompts(completion.prompt)
        limit = completion.max_tokens
        asked = completion
        default = DEFAULT_COMPLETION_TOKENS
    check_model(asked.model, models)
    n = 1 if asked.n is None else asked.n
    _validate(asked, limit, n * len(prompts))
    return Asked(
        chat=chat,
        model=asked.model or models[0],
        prompts=tuple(
            Prompt(tokens=tokens, limits=_limits(asked, limit, default, len(tokens), max_model_len))
            for tokens in prompts
        ),
        n=n,
        stream=bool(asked.stream),
        include_usage=bool(asked.stream_options is not None and asked.stream_options.include_usage),
        seed=asked.seed or 0,
        priority=asked.priority,
        salt=asked.cache_salt,
        max_tokens=limit,
        kv_transfer_params=asked.kv_transfer_params,
    )


def parse_tokenize(body: bytes, models: tuple[str, ...]) -> tuple["array[int]", bool]:
    """Return the tokens that a `/tokenize` body asks for, and whether their strings are wanted too."""
    asked = _decode(_TOKENIZE, body)
    check_model(asked.model, models)
    if asked.messages is not None:
        tokens = _chat_prompt(asked.messages, asked.tools, reply=asked.add_generation_prompt)
    elif asked.prompt is not None:
        tokens = encode(asked.prompt)
    else:
        raise CallerError("Either prompt or messages must be given", param="prompt")
    return tokens, bool(asked.return_token_strs)


def parse_detokenize(body: bytes, models: tuple[str, ...]) -> list[int]:
    """Return the tokens of a `/detokenize` body."""
    asked = _decode(_DETOKENIZE, body)
    check_model(asked.model, models)
    return asked.tokens


def check_model(model: str | None, models: tuple[str, ...]) -> None:
    """Raise vLLM's 404 for a model that is not served; none named is the served one."""
    if model and model not in models:
        raise CallerError(f"The model `{model}` does not exist.", status=404, param="model")


def _decode(decoder: "msgspec.json.Decoder[_Body]", body: bytes) -> _Body:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _bad(str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _bad(f"JSON decode error: {error}") from None


def chat_text(body: bytes) -> str:
    """Return the text of the prompt that a chat body makes. CallerError if it makes none."""
    asked = _decode(_CHAT, body)
    return _chat_text(asked.messages, asked.tools, reply=True)


def _chat_prompt(messages: list[Message], tools: Json, *, reply: bool) -> "array[int]":
    return encode(_chat_text(messages, tools, reply=reply))


def _chat_text(messages: list[Message], tools: Json, *, reply: bool) -> str:
    if not messages:
        raise _bad("List should have at least 1 item after validation, not 0", "messages")
    turns = []
    for message in messages:
        content = message.content or ""
        if not isinstance(content, str):
            content = "\n".join(map(_part_text, content))
        content += _shown(message.tool_calls)
        turns.append((message.role, content))
    return render_chat(turns, tools=_shown(tools), reply=reply)


def _shown(value: Json) -> str:
    text = bytes(value).decode() if isinstance(value, Raw) else "null"
    return "" if text == "null" else text


def _part_text(part: dict[str, Any]) -> str:
    text = part.get("text")
    if part.get("type") in ("text", "input_text", "output_text") and isinstance(text, str):
        return text
    raise _bad(f"This model takes text only, not a content part of type {part.get('type')!r}", "messages")


def _prompts(prompt: str | list[str | int | list[int]]) -> list["array[int]"]:
    """Return the prompts of one text, several texts, one list of token ids, or several of them."""
    if isinstance(prompt, str):
        found = [encode(prompt)]
    elif prompt and all(isinstance(item, int) for item in prompt):
        found = [_token_ids(prompt)]
    else:
        found = [encode(item) if isinstance(item, str) else _token_ids(item) for item in prompt]
    if not found or not all(found):
        raise _bad("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    return found


def _token_ids(ids: object) -> "array[int]":
    if not isinstance(ids, list):
        raise _bad("prompt must be a string, a list of strings, a list of token ids, or a list of such lists", "prompt")
    try:
        return array("I", ids)
    except (TypeError, OverflowError):
        raise _bad("a prompt's token ids must be integers from 0 to 4294967295", "prompt") from None


def _validate(asked: Body, limit: int | None, sequences: int) -> None:
    if limit is not None and limit < 1:
        raise _bad(f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    if asked.min_tokens < 0 or (limit is not None and asked.min_tokens > limit):
        raise _bad(f"min_tokens must be from 0 to max_tokens={limit}, got {asked.min_tokens}.", "min_tokens")
    if asked.n is not None and asked.n < 1:
        raise _bad(f"n must be at least 1, got {asked.n}.", "n")
    if sequences > MAX_CHOICES:
        raise _bad(f"n times the number of prompts must be at most {MAX_CHOICES}, got {sequences}.", "n")
    if asked.stream_options is not None and not asked.stream:
        raise _bad("Stream options can only be defined when `stream=True`.", "stream_options")
    if asked.cache_salt == "":
        raise _bad("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    if asked.stop and "" in asked.stop and not isinstance(asked.stop, str):
        raise _bad("stop cannot contain an empty string.", "stop")


def _limits(asked: Body, limit: int | None, default: int, prompt_tokens: int, max_model_len: int) -> Limits:
    room = max_model_len - prompt_tokens
    if room < 1 or (limit is not None and limit > room):
        wanted = 1 if limit is None else limit
        raise _bad(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested {wanted} output tokens "
            f"and your prompt contains {prompt_tokens} input tokens, for a total of {wanted + prompt_tokens} tokens. Please "
            "reduce the length of the input prompt or the number of requested output tokens.",
            "input_tokens",
        )
    stop = asked.stop or []
    return Limits(
        max_tokens=limit if limit is not None else min(default, room),
        min_tokens=asked.min_tokens,
        ignore_eos=asked.ignore_eos,
        stops=(stop,) if isinstance(stop, str) else tuple(stop),
        keep_stop=asked.include_stop_str_in_output,
    )


def _bad(message: str, param: str | None = None) -> CallerError:
    return CallerError(message, param=param)
