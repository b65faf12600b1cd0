"""A model's directory, as downloaded from the Hugging Face hub, to its tokenizer and chat template.

It needs the extra `[tokenizers]`, which is imported only here. Which file has the template, and which one wins, is as in transformers 5
and vLLM: `chat_template.jinja` over `tokenizer_config.json` over the older `chat_template.json` of processors.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from beaconry.io.local_tokens import LocalTokens
from beaconry.values.errors import OperatorError
from beaconry.wire.piece_cache import PieceCache
from beaconry.wire.tokens import Chat, NoTokensError, Reason, Text

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OWN_RENDERERS = {
    "gpt_oss": "Harmony",
    "deepseek_v32": "its own encoder",
    "deepseek_v4": "its own encoder",
    "kimi_k3": "its own encoder",
}
"""Model types whose conversations vLLM renders without a chat template."""
_SAMPLE = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)


def local_tokens(
    directory: Path,
    executor: Executor,
    *,
    cache_bytes: int = 134_217_728,
    template: str | None = None,
    strftime_now: Callable[[str], str] | None = None,
) -> LocalTokens:
    """Load the tokenizer and chat template of a model. `template` stands for the engine's `--chat-template`.

    Raises OperatorError: the extra is not installed, a file is missing or cannot be used. Takes up to some seconds: call it in a thread.
    """
    try:
        from beaconry.wire.chat_template import ChatTemplate  # noqa: PLC0415 (an optional dependency)
        from beaconry.wire.vocabulary import Vocabulary, token_text  # noqa: PLC0415
    except ImportError as error:
        raise OperatorError(f"{directory}: {error}: run pip install 'beaconry[tokenizers]'") from None
    settings = _json(directory / "tokenizer_config.json") or {}
    named = {**(_json(directory / "special_tokens_map.json") or {}), **settings}
    special = {name: text for name in SPECIAL if (text := token_text(named.get(name))) is not None}
    own_renderer = _OWN_RENDERERS.get(str((_json(directory / "config.json") or {}).get("model_type")))
    try:
        vocabulary = Vocabulary(_text(directory / "tokenizer.json"), {**settings, **special})
        sources = {"default": template} if template is not None else _templates(directory, settings)
        chats = ChatTemplate(
            sources, special, strftime_now or (lambda form: datetime.now().astimezone().strftime(form))
        )
    except OperatorError as error:
        raise OperatorError(f"{directory}: {error}") from None

    def prompt(ask: Text | Chat, body: bytes) -> str:  # noqa: ARG001 (others need the body as it came)
        if isinstance(ask, Text):
            return ask.text
        if own_renderer is not None:
            raise NoTokensError(Reason.TEMPLATE, f"vLLM renders this model's conversations by {own_renderer}")
        return chats.render(ask)

    try:
        sample = chats.render(Chat(model="", messages=list(_SAMPLE), template_values={"add_generation_prompt": True}))
    except NoTokensError:
        sample = ""  # no conversations, or none of this form: its texts are not cut
    cache = PieceCache(vocabulary.marker(sample), cache_bytes)
    return LocalTokens(prompt, vocabulary.encode, executor, cache, (vocabulary.before, vocabulary.after))


def _templates(directory: Path, settings: dict[str, Any]) -> dict[str, str]:
    """The chat templates by name; none for a model without."""
    found: dict[str, str] = {}
    listed = settings.get("chat_template")
    if listed is None:
        listed = (_json(directory / "chat_template.json") or {}).get("chat_template")
    if isinstance(listed, str):
        found["default"] = listed
    elif isinstance(listed, list):
        try:
            found = {one["name"]: one["template"] for one in msgspec.convert(listed, list[dict[str, str]])}
        except (msgspec.ValidationError, KeyError) as error:
            raise OperatorError(f"tokenizer_config.json: chat_template: {error}") from None
    alone = directory / "chat_template.jinja"
    if alone.exists():
        found["default"] = _text(alone)
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _text(path)
    return found


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise OperatorError(f"{path}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(
            f"{path.name} cannot be read ({error}): a local tokenizer needs it; without one, leave the directory out of the "
            "configuration and the engines are asked for tokens"
        ) from None
