"""OpenAI request bodies to what routing needs, and the few edits a body may need on its way to an engine.

A body is decoded once, with only the fields that routing reads; it is forwarded as received unless it carries a field that no client
may set, or lacks the usage report that we need. Wrong types are refused here with the place, so that no engine sees them.
"""

import re
from array import array
from collections.abc import Callable

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from beaconry.values.errors import CallerError
from beaconry.values.request import Api
from beaconry.wire.prefix import BLOCK_BYTES, chain, digest

Reserved = Raw | UnsetType
TOKEN_BYTES = 4
COUNT_LIMIT = 2**31 - 1
"""Of tokens or sequences asked for: no engine takes more, and arithmetic in floats has an end."""
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<where>.*)`)?$")

RESERVED_KEYS = frozenset(
    {
        "kv_transfer_params",
        "ec_transfer_params",
        "disagg_spec",
        "disaggregated_params",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "priority",
    }
)
"""Where a leg's peer is named (vLLM, LMCache, TensorRT-LLM, SGLang): from a client they can hang or kill an engine. And what lets a
request pass all others that wait in an engine which schedules by priority: who may go first is for objectives and tenants to say."""
_NOT_ASKED = (b"null", b"false")
RESERVED_XARGS = RESERVED_KEYS | {"kv_cache_report_mode"}
"""In `vllm_xargs` also what makes an engine report blocks as stored that it has reported before: others' cache views would be wrong."""


class StreamOptions(Struct, frozen=True, gc=False):
    """`stream_options`."""

    include_usage: bool | None = None


class Body(Struct, kw_only=True, gc=False):
    """The fields common to all bodies that routing reads."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    cache_salt: str | None = None
    vllm_xargs: dict[str, Raw] | None = None
    kv_transfer_params: Reserved = UNSET
    ec_transfer_params: Reserved = UNSET
    disagg_spec: Reserved = UNSET
    disaggregated_params: Reserved = UNSET
    bootstrap_host: Reserved = UNSET
    bootstrap_port: Reserved = UNSET
    bootstrap_room: Reserved = UNSET
    priority: Reserved = UNSET
    use_beam_search: Reserved = UNSET
    prompt_logprobs: Reserved = UNSET
    echo: Reserved = UNSET
    truncate_prompt_tokens: Reserved = UNSET

    def prompt(self) -> tuple[bytes, int | None]:
        """Canonical text, and the exact token count if it is token ids."""
        return b"", None

    def output_limit(self) -> int | None:
        """The caller's cap on output tokens."""
        return None

    def divisible(self) -> bool:
        """One engine may compute the prompt and another one answer: both are to see the same single prompt, and neither tells of it.

        How much is cut off a prompt that is too long depends on `max_tokens`, which differs between the legs.
        """
        if self.use_beam_search is self.prompt_logprobs is self.echo is self.truncate_prompt_tokens is UNSET:
            return True  # nearly always
        return not _ask(self.use_beam_search, self.prompt_logprobs, self.echo, self.truncate_prompt_tokens)


class Message(Struct):
    """One chat message."""

    role: str
    content: str | list[Raw] | None = None
    tool_calls: Reserved = UNSET
    name: str | None = None

    def canonical(self) -> str:
        """The message as one run of text."""
        content = self.content
        if content is None:
            content = ""
        elif not isinstance(content, str):
            content = "".join(map(_part, content))
        calls = "" if self.tool_calls is UNSET else str(self.tool_calls, "utf-8")
        return f"{self.role}\x1f{content}\x1f{calls}\x1e"


class TextPart(Struct):
    """A part of a message's content, of which only text is looked into; or a tool, of which only the type."""

    type: str = ""
    text: str | None = None


class ChatBody(Body, kw_only=True, gc=False):
    """`/v1/chat/completions`."""

    messages: list[Message]
    tools: Reserved = UNSET
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    def prompt(self) -> tuple[bytes, int | None]:
        """Tools come first, as chat templates put them."""
        text = "".join([message.canonical() for message in self.messages]).encode("utf-8", "surrogatepass")
        return text if self.tools is UNSET else bytes(self.tools) + text, None

    def output_limit(self) -> int | None:
        """The newer name wins, as in vLLM."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


Prompt = str | list[str | int | list[int]]


class CompletionBody(Body, kw_only=True, gc=False):
    """`/v1/completions`."""

    prompt_: Prompt | None = msgspec.field(name="prompt", default=None)
    max_tokens: int | None = None

    def prompt(self) -> tuple[bytes, int | None]:
        """Text, token ids, or several of either."""
        return _flatten(self.prompt_, "prompt")

    def output_limit(self) -> int | None:
        """`max_tokens`; engines default to 16."""
        return 16 if self.max_tokens is None else self.max_tokens

    def divisible(self) -> bool:
        """Not several prompts: an engine's answer names the KV of the first one only."""
        prompt = self.prompt_
        several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
        return not several and super().divisible()


class EmbeddingBody(Body, kw_only=True, gc=False):
    """`/v1/embeddings`."""

    input: Prompt

    def prompt(self) -> tuple[bytes, int | None]:
        """Text, token ids, or several of either."""
        return _flatten(self.input, "input")

    def output_limit(self) -> int | None:
        """Nothing is generated."""
        return 0


class ResponsesBody(Body, kw_only=True, gc=False):
    """`/v1/responses`."""

    input: str | list[Raw]
    instructions: str | None = None
    tools: Reserved = UNSET
    max_output_tokens: int | None = None
    background: Reserved = UNSET
    previous_response_id: Reserved = UNSET
    truncation: str | None = None

    def prompt(self) -> tuple[bytes, int | None]:
        """Instructions, tools and input items, in the order a template has them."""
        parts = [] if self.tools is UNSET else [bytes(self.tools)]
        if self.instructions:
            parts.append(self.instructions.encode("utf-8", "surrogatepass") + b"\x1e")
        if isinstance(self.input, str):
            parts.append(self.input.encode("utf-8", "surrogatepass"))
        else:
            parts.extend(bytes(item) for item in self.input)
        return b"".join(parts), None

    def output_limit(self) -> int | None:
        """`max_output_tokens`."""
        return self.max_output_tokens

    def divisible(self) -> bool:
        """Not with tools that the engine runs itself, since the prompt of its next turn is longer than the KV; nor what it is to keep."""
        return (
            not _ask(self.background, self.previous_response_id)
            and self.truncation in (None, "disabled")
            and (self.tools is UNSET or _are_functions(self.tools))
            and super().divisible()
        )


class Parsed(Struct, frozen=True, kw_only=True, gc=False):
    """What a body says, for routing and for the way back."""

    api: Api
    model: str
    """As the engines call it."""
    asked_model: str
    """As the client calls it."""
    prompt_bytes: int
    prompt_tokens: int | None
    """Exact, if the prompt came as token ids."""
    prefix: tuple[int, ...]
    output_tokens: int | None
    sequences: int
    divisible: bool
    stream: bool
    wants_usage: bool
    """The client asked for usage in its stream itself."""
    body: bytes
    """What to send to the engine."""


_TYPES: dict[Api, type[Body]] = {
    Api.CHAT: ChatBody,
    Api.COMPLETIONS: CompletionBody,
    Api.EMBEDDINGS: EmbeddingBody,
    Api.RESPONSES: ResponsesBody,
    Api.OTHER: Body,
}
_DECODERS = {api: msgspec.json.Decoder(kind) for api, kind in _TYPES.items()}
_TEXT_PART = msgspec.json.Decoder(TextPart)
_TOOLS = msgspec.json.Decoder(list[TextPart] | None)
_OTHER = Api.OTHER
_PATHS = {
    "/v1/chat/completions": Api.CHAT,
    "/v1/completions": Api.COMPLETIONS,
    "/v1/embeddings": Api.EMBEDDINGS,
    "/v1/responses": Api.RESPONSES,
}


def api_of(path: str) -> Api:
    """Which API a path belongs to."""
    return _PATHS.get(path, _OTHER)


def parse(api: Api, body: bytes, target_of: Callable[[str], str] | None = None) -> Parsed:
    """Decode a body; `target_of` gives the engines' name of a model. Raises CallerError with the place of what is wrong."""
    fields = _decode(api, body)
    model = fields.model if target_of is None else target_of(fields.model)
    text, tokens = fields.prompt()
    stream = fields.stream is True
    wants_usage = fields.stream_options is not None and fields.stream_options.include_usage is True
    prefix: tuple[int, ...] = ()
    if len(text) >= BLOCK_BYTES:
        prefix = chain(text, f"{model}\0{fields.cache_salt or ''}".encode("utf-8", "surrogatepass"))
    return Parsed(
        api=api,
        model=model,
        asked_model=fields.model,
        prompt_bytes=len(text),
        prompt_tokens=tokens,
        prefix=prefix,
        output_tokens=_positive(fields.output_limit(), "max_tokens"),
        sequences=1 if fields.n is None else _positive(fields.n, "n") or 1,
        divisible=fields.divisible(),
        stream=stream,
        wants_usage=wants_usage,
        body=_edited(fields, body, model, ask_usage=stream and not wants_usage and api in (Api.CHAT, Api.COMPLETIONS)),
    )


def with_priority(body: bytes, priority: int) -> bytes:
    """The body for an engine that serves by priority. It is one from `parse`, or made of one: an object that has no such field."""
    return b"".join((memoryview(body.rstrip())[:-1], b',"priority":%d}' % priority))  # one copy


def _decode(api: Api, body: bytes) -> Body:
    try:
        if not body.isascii():
            body.decode()  # the decoder looks only into strings that it returns, engines into all
        return _DECODERS[api].decode(body)
    except msgspec.ValidationError as error:
        match = _PLACE.match(str(error))
        where = match["where"] if match else None
        raise CallerError(f"the request body is not valid: {error}", param=where or None, code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise CallerError("the request body is nested too deeply", code="invalid_json") from None


def _edited(fields: Body, body: bytes, model: str, *, ask_usage: bool) -> bytes:
    """The body for the engine: unchanged in the common case, spliced for usage, re-encoded if a field must go or change."""
    xargs = fields.vllm_xargs
    reserved = (
        fields.kv_transfer_params is not UNSET
        or fields.ec_transfer_params is not UNSET
        or fields.disagg_spec is not UNSET
        or fields.disaggregated_params is not UNSET
        or fields.bootstrap_host is not UNSET
        or fields.bootstrap_port is not UNSET
        or fields.bootstrap_room is not UNSET
        or fields.priority is not UNSET
        or (xargs is not None and not RESERVED_XARGS.isdisjoint(xargs))
    )
    if not reserved and model == fields.model:
        if not ask_usage:
            return body
        if fields.stream_options is None and b'"stream_options"' not in body:
            return body.rstrip()[:-1] + b',"stream_options":{"include_usage":true}}'
    document: dict[str, Raw] = msgspec.json.decode(body, type=dict[str, Raw])
    document["model"] = Raw(msgspec.json.encode(model))
    for key in RESERVED_KEYS:
        document.pop(key, None)
    if xargs is not None:
        document["vllm_xargs"] = Raw(msgspec.json.encode({k: v for k, v in xargs.items() if k not in RESERVED_XARGS}))
    if ask_usage:
        options = msgspec.json.decode(document.get("stream_options", Raw(b"{}"))) or {}
        document["stream_options"] = Raw(msgspec.json.encode({**options, "include_usage": True}))
    return msgspec.json.encode(document)


def _ask(*fields: Reserved) -> bool:
    """One of the fields is there, and neither null nor false."""
    return any(field is not UNSET and bytes(field) not in _NOT_ASKED for field in fields)


def _are_functions(tools: Raw) -> bool:
    """All tools are the client's to call."""
    try:
        return all(tool.type == "function" for tool in _TOOLS.decode(tools) or ())
    except msgspec.ValidationError:
        return False


def _positive(value: int | None, name: str) -> int | None:
    if value is not None and not 0 <= value <= COUNT_LIMIT:
        raise CallerError(
            f"{name} must not be below 0 or above {COUNT_LIMIT}, got {value}", param=name, code="invalid_value"
        )
    return value


def _part(raw: Raw) -> str:
    """A content part: text as it is, anything else (image, audio, file) by digest."""
    try:
        part = _TEXT_PART.decode(raw)
    except msgspec.ValidationError as error:
        raise CallerError(
            f"a message's content parts must be objects: {error}", param="messages", code="invalid_type"
        ) from None
    return part.text if part.text is not None else digest(bytes(raw))


def _flatten(prompt: Prompt | None, name: str) -> tuple[bytes, int | None]:
    """Canonical bytes of a prompt of any form; token ids as four bytes each."""
    if prompt is None:
        return b"", None
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass"), None
    if not prompt:
        raise CallerError(f"{name} must not be empty", param=name, code="invalid_value")
    try:
        if isinstance(prompt[0], int):
            return array("I", prompt).tobytes(), len(prompt)  # type: ignore[type-var]
        if isinstance(prompt[0], list):
            ids = [token for one in prompt for token in one]  # type: ignore[union-attr]
            return array("I", ids).tobytes(), len(ids)  # type: ignore[type-var]
        return "\x1e".join(prompt).encode("utf-8", "surrogatepass"), None  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        raise CallerError(
            f"{name} must be a string, a list of strings, or token ids from 0 to 2**32 - 1",
            param=name,
            code="invalid_type",
        ) from None
