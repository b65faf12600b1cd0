"""A model's tokenizer (a `tokenizer.json` of Hugging Face `tokenizers`) as an engine uses it: text to token ids.

Beside the ids it knows which special token texts may be cut at (see `piece_cache.py`), and what the tokenizer puts around a plain prompt.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from beaconry.values.errors import OperatorError


class Vocabulary:
    """Token ids of text. Immutable; `encode` may be called from any thread, and lets others run meanwhile."""

    def __init__(self, tokenizer_json: str, settings: Mapping[str, Any]) -> None:
        """`settings` is the content of `tokenizer_config.json`. OperatorError if the two cannot be used."""
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
            raise OperatorError(f"tokenizer.json cannot be read: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        _add_missing(self._tokenizer, settings.get("added_tokens_decoder") or {})
        self.before, self.after = self._affixes(settings)
        """Ids put around a plain prompt, unless the request says otherwise."""

    def encode(self, text: str) -> "array[int]":
        """The ids of a text, nothing added."""
        return array("I", self._tokenizer.encode(text, add_special_tokens=False).ids)

    def marker(self, sample: str) -> str | None:
        """The special token to cut conversations at, given one rendered; None if there is none that is sound.

        Sound is one that is split off before anything else happens to the text (`normalized` false), takes no white space in front of it
        along (`lstrip`), does not depend on its neighbours (`single_word`), and cannot be part of or overlapped by another such token.
        """
        added = [token for token in self._tokenizer.get_added_tokens_decoder().values() if not token.normalized]
        if any(token.single_word for token in added):
            return None
        sound = [
            token.content
            for token in added
            if not token.lstrip
            and sample.count(token.content) > 1
            and not any(_may_hide(other.content, token.content) for other in added)
        ]
        return max(sound, key=sample.count, default=None)

    def _affixes(self, settings: Mapping[str, Any]) -> "tuple[array[int], array[int]]":
        """As transformers: configured in so many words, or as the tokenizer's post-processor does."""
        if "add_bos_token" in settings or "add_eos_token" in settings:
            return self._named(settings, "bos"), self._named(settings, "eos")
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return array("I", full[:start]), array("I", full[start + len(bare) :])
        raise OperatorError(
            "tokenizer.json: its post-processor changes a text's own tokens, which is not reproduced here"
        )

    def _named(self, settings: Mapping[str, Any], which: str) -> "array[int]":
        token = token_text(settings.get(f"{which}_token"))
        if not settings.get(f"add_{which}_token") or token is None:
            return array("I")
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise OperatorError(f"tokenizer_config.json: {which}_token {token!r} is not in tokenizer.json")
        return array("I", [number])


def token_text(value: object) -> str | None:
    """A token of a tokenizer's settings, which is written as a text or as an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _add_missing(tokenizer: Tokenizer, listed: Mapping[str, Any]) -> None:
    """Add the tokens that only the settings have. OperatorError if they would get other ids than the settings say."""
    known = tokenizer.get_added_tokens_decoder()
    missing: Sequence[tuple[int, Any]] = sorted(
        (int(number), token) for number, token in listed.items() if int(number) not in known
    )
    for number, token in missing:
        content = token_text(token)
        if content is None:
            raise OperatorError(f"tokenizer_config.json: added_tokens_decoder[{number}] has no content")
        flags = {
            name: bool(token[name])
            for name in ("single_word", "lstrip", "rstrip", "normalized")
            if isinstance(token, dict) and name in token
        }
        added = AddedToken(content, special=bool(isinstance(token, dict) and token.get("special")), **flags)
        (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
        if tokenizer.token_to_id(content) != number:
            raise OperatorError(
                f"tokenizer_config.json gives {content!r} the id {number}, tokenizer.json would give it "
                f"{tokenizer.token_to_id(content)}: the files do not belong together"
            )


def _may_hide(other: str, marker: str) -> bool:
    """Whether `other` can be found in a text so that an occurrence of `marker` there is none: around it, or over its beginning."""
    if other == marker:
        return False
    longest = min(len(marker), len(other)) - 1
    return marker in other or any(other.endswith(marker[:length]) for length in range(1, longest + 1))
