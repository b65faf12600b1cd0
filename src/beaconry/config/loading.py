"""Strict loading: YAML text to a msgspec Struct, or one error that names every fault with `file:line: path`, and what to do.

Unknown keys are refused with the nearest name that exists, so that a typo never becomes a silent default. A Struct may list keys of
the published spec that this version does not act on in a class variable `NOT_YET` (key -> what to do instead): they are refused
with that reason rather than ignored. Keys in YAML are the Struct's encoded names (`rename="camel"`).
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from beaconry.config.yaml_tree import Node, parse_yaml
from beaconry.values.errors import OperatorError

T = TypeVar("T", bound=msgspec.Struct)

SHOWN_FAULTS = 20
_SHOWN_CHARACTERS = 60
_WORDS = {
    "array": "a list",
    "object": "a mapping",
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}


def load_yaml(text: str, kind: type[T], source: str) -> T:
    """Return the `kind` that `text` describes. `source` is the file's name as the operator knows it.

    Raises OperatorError: one line per fault, at most `SHOWN_FAULTS`.
    """
    root = parse_yaml(text, source)
    check = _Check()
    check.struct(root, kind, "")
    if not check.faults:
        try:
            return msgspec.convert(root.plain(), kind)
        except msgspec.ValidationError as fault:
            check.note(fault, root, "")
    lines = [f"{source}:{line}: {path + ': ' if path else ''}{what}" for line, path, what in sorted(check.faults)]
    if len(lines) > SHOWN_FAULTS:
        lines[SHOWN_FAULTS:] = [f"{source}: and {len(lines) - SHOWN_FAULTS} more"]
    raise OperatorError("\n".join(lines))


class _Check:
    """Walks tree and types side by side, so that all faults are found in one go and each has its line."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, str, str]] = []  # line, path, what is wrong and what to do
        self.lines: dict[str, int] = {}  # path -> line, of every place visited

    def struct(self, node: Node, kind: type[msgspec.Struct], path: str) -> None:
        """Check the keys of one Struct, then what is behind each."""
        self.lines[path] = node.line
        if node.fields is None:
            self.faults.append((node.line, path, f"expected a mapping, found {_found(node)}"))
            return
        config = kind.__struct_config__
        known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        names = [*known, config.tag_field] if config.tag_field else list(known)
        not_yet: Mapping[str, str] = getattr(kind, "NOT_YET", {})
        for key, (line, child) in node.fields.items():
            below = f"{path}.{key}" if path else key
            if key in known:
                self.value(child, known[key].type, below)
            elif key in not_yet:
                self.faults.append((line, below, f"understood, but not acted on in this version: {not_yet[key]}"))
            elif key != config.tag_field:
                self.faults.append((line, below, f"unknown key; {_nearest(key, names)}"))
        for name, field in known.items():
            if field.required and name not in node.fields:
                self.faults.append((node.line, path, f'"{name}" is missing; add it'))

    def value(self, node: Node, kind: Any, path: str) -> None:
        """Check one value against an annotation."""
        self.lines[path] = node.line
        plain = _without_wrapping(kind)
        structs = [one for one in _alternatives(plain) if isinstance(one, type) and issubclass(one, msgspec.Struct)]
        absent = node.plain() is None and NoneType in _alternatives(kind)
        if structs and not absent:
            chosen = self._tagged(node, structs, path) if len(structs) > 1 else structs[0]
            if chosen is not None:
                self.struct(node, chosen, path)
        elif node.items is not None and get_origin(plain) in (list, tuple, Sequence):
            for index, item in enumerate(node.items):
                self.value(item, get_args(plain)[0], f"{path}[{index}]")
        elif node.fields is not None and get_origin(plain) in (dict, Mapping):
            key_kind, kind = get_args(plain)
            for key, (line, child) in node.fields.items():
                self._leaf(Node(line, value=key), key_kind, f"{path}.{key}")
                self.value(child, kind, f"{path}.{key}")
                self._entry(child, kind, f"{path}.{key}")
        else:
            self._leaf(node, kind, path)

    def _entry(self, node: Node, kind: Any, path: str) -> None:
        """Have a mapping's entry judged as a whole, since msgspec would not say which one it is that a Struct refuses."""
        if not self.faults:
            try:
                msgspec.convert(node.plain(), kind)
            except msgspec.ValidationError as fault:
                self.note(fault, node, path)

    def note(self, fault: msgspec.ValidationError, node: Node, path: str) -> None:
        """Note what a Struct below `path` says against its own values."""
        what, _, place = str(fault).partition(" - at `$")
        below = f"{path}{place.rstrip('`')}".lstrip(".")
        self.faults.append((self.lines.get(below, node.line), below, _reworded(what)))

    def _tagged(self, node: Node, structs: list[type[msgspec.Struct]], path: str) -> type[msgspec.Struct] | None:
        """Choose among Structs by their tag field; None after noting the fault."""
        field = str(structs[0].__struct_config__.tag_field)
        by_tag: dict[Any, type[msgspec.Struct]] = {struct.__struct_config__.tag: struct for struct in structs}
        if node.fields is None:
            self.faults.append((node.line, path, f"expected a mapping, found {_found(node)}"))
            return None
        if field not in node.fields:
            self.faults.append((node.line, path, f'"{field}" is missing; add one of {_listed(by_tag)}'))
            return None
        line, tag = node.fields[field]
        if tag.value not in by_tag:
            self.faults.append((line, f"{path}.{field}", f"{_found(tag)} is no choice; {_nearest(tag.value, by_tag)}"))
            return None
        return by_tag[tag.value]

    def _leaf(self, node: Node, kind: Any, path: str) -> None:
        try:
            msgspec.convert(node.plain(), kind)
        except msgspec.ValidationError as fault:
            what = str(fault).partition(" - at `$")[0]
            choices = _choices(kind)
            if choices:
                self.faults.append((node.line, path, f"{_found(node)} is no choice; {_nearest(node.value, choices)}"))
                return
            quotes = "; put it in quotes" if "`str`" in what and isinstance(node.value, bool | int | float) else ""
            expected = _description(kind)
            what = f"expected {expected}" if expected else _reworded(what)
            found = "something else" if _is_secret(kind) else _found(node) + quotes
            self.faults.append((node.line, path, f"{what}, found {found}"))


def _without_wrapping(kind: Any) -> Any:
    """Strip Annotated, and None from a union with one other member."""
    if get_origin(kind) is Annotated:
        return _without_wrapping(get_args(kind)[0])
    others = [one for one in _alternatives(kind) if one is not NoneType]
    return _without_wrapping(others[0]) if len(others) == 1 and others[0] is not kind else kind


def _description(kind: Any) -> str | None:
    """What a `Meta(description=...)` says is expected, for patterns that are hard to read."""
    metas = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((meta.description for meta in metas if isinstance(meta, msgspec.Meta) and meta.description), None)


def _is_secret(kind: Any) -> bool:
    """Whether a `Meta(extra={"secret": True})` says that what stands there by mistake may be one, and must not be shown."""
    metas = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return any(isinstance(meta, msgspec.Meta) and (meta.extra or {}).get("secret") for meta in metas)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _choices(kind: Any) -> list[str]:
    """The values an enum or a Literal takes; none for any other annotation."""
    plain = _without_wrapping(kind)
    if get_origin(plain) is Literal:
        return [str(value) for value in get_args(plain)]
    if isinstance(plain, type) and issubclass(plain, Enum):
        return [str(member.value) for member in plain]
    return []


def _nearest(found: Any, names: Sequence[Any] | Mapping[Any, Any]) -> str:
    """The remedy for a wrong name: the one probably meant, and all there are."""
    every = [str(name) for name in names]
    folded = {name.lower().replace("_", ""): name for name in every}
    close = difflib.get_close_matches(str(found).lower().replace("_", ""), folded, n=1, cutoff=0.6)
    meant = f'did you mean "{folded[close[0]]}"? There is' if close else "there is"
    return f"{meant}: {_listed(every)}"


def _listed(names: Sequence[Any] | Mapping[Any, Any]) -> str:
    return ", ".join(str(name) for name in names)


def _found(node: Node) -> str:
    if node.fields is not None:
        return "a mapping"
    if node.items is not None:
        return "a list"
    if node.value is None:
        return "nothing"
    shown = json.dumps(node.value, ensure_ascii=False)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."


def _reworded(what: str) -> str:
    """Msgspec's message in the words of a YAML file; others as they are."""
    match = re.fullmatch(r"Expected (.*?)(?:, got .*)?", what)
    if match is None:
        return what
    return "expected " + re.sub(r"`(\w+)( \| null)?`", lambda kind: _WORDS.get(kind[1], kind[1]), match[1])
