"""YAML text to a tree of plain values that remember their line.

A strict subset, so that a file means what it looks like: `true`/`false` are the only booleans (not `on`, `no`), numbers are decimal
(`010` and `1:30` stay strings), keys are strings and appear once, tags are refused. Anchors and aliases work, without merge keys; size,
depth and the number of values after expansion are bounded. Scalars follow the core schema of YAML 1.2 otherwise.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from beaconry.values.errors import OperatorError

LIMIT_BYTES = 1_048_576
LIMIT_DEPTH = 32
LIMIT_VALUES = 100_000
"""Values after aliases are expanded: a megabyte of plain text holds fewer."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?([0-9]{1,18}\.[0-9]*|\.[0-9]+|[0-9]{1,18}(?=[eE]))([eE][-+]?[0-9]{1,2})?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}
_STRING_TAGS = {None, "!", "tag:yaml.org,2002:str"}


class Node(msgspec.Struct, frozen=True):
    """A value and where it stands. Mappings hold `(key line, node)` by key, sequences hold nodes, `value` is None for both."""

    line: int
    value: str | int | float | bool | None = None
    fields: dict[str, tuple[int, "Node"]] | None = None
    items: list["Node"] | None = None

    def plain(self) -> Any:
        """The value as dict, list, str, int, float, bool or None."""
        if self.fields is not None:
            return {key: node.plain() for key, (_, node) in self.fields.items()}
        if self.items is not None:
            return [node.plain() for node in self.items]
        return self.value


def parse_yaml(text: str, source: str) -> Node:
    """Parse one document. Raises OperatorError naming `source:line`."""
    if len(text.encode(errors="surrogatepass")) > LIMIT_BYTES:
        raise OperatorError(
            f"{source}: larger than {LIMIT_BYTES} bytes; a configuration is far smaller: is it the right file?"
        )
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        return _Composer(source, yaml.parse(text, Loader=loader)).compose()
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        line = mark.line + 1 if mark else 1
        what = ", ".join(part for part in (fault.problem, fault.context) if part)
        raise OperatorError(f"{source}:{line}: not YAML: {what}") from None
    except yaml.YAMLError as fault:
        what = " ".join(str(fault).split())
        raise OperatorError(f"{source}: not YAML: {what}") from None


class _Composer:
    """Builds the tree from parser events without recursing deeper than `LIMIT_DEPTH`."""

    def __init__(self, source: str, events: Iterator[Any]) -> None:
        self._source = source
        self._events = events
        self._anchors: dict[
            str, tuple[Node, int]
        ] = {}  # complete nodes only, so no node contains itself; with their size
        self._values = 0  # nodes made so far, aliased ones counted at each use

    def compose(self) -> Node:
        """Return the root of the only document."""
        self._take()  # the stream's start
        if isinstance(self._take(), yaml.StreamEndEvent):
            raise OperatorError(f"{self._source}: the file is empty")
        root = self._node(self._take(), 0)
        self._take()  # the document's end
        following = self._take()
        if not isinstance(following, yaml.StreamEndEvent):
            raise self._fault(following.start_mark.line + 1, "a second document begins (`---`); keep one per file")
        return root

    def _node(self, event: Any, depth: int) -> Node:
        line = event.start_mark.line + 1
        if depth > LIMIT_DEPTH:
            raise self._fault(line, f"nested deeper than {LIMIT_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor or "", line)
        before = self._values
        self._count(1, line)
        if isinstance(event, yaml.ScalarEvent):
            node = Node(line, value=self._scalar(event, line))
        elif event.tag is not None:
            raise self._fault(line, f"tag {event.tag!r} is not supported; remove it")
        elif isinstance(event, yaml.MappingStartEvent):
            node = Node(line, fields=self._mapping(depth))
        else:
            node = Node(line, items=self._sequence(depth))
        if event.anchor is not None:
            self._anchors[event.anchor] = (node, self._values - before)
        return node

    def _mapping(self, depth: int) -> dict[str, tuple[int, Node]]:
        fields: dict[str, tuple[int, Node]] = {}
        while not isinstance(event := self._take(), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                raise self._fault(line, "a key must be a plain word or a string")
            key = event.value
            if key in fields:
                raise self._fault(line, f'key "{key}" stands twice (first in line {fields[key][0]}); remove one')
            fields[key] = (line, self._node(self._take(), depth + 1))
        return fields

    def _sequence(self, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := self._take(), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return items

    def _alias(self, anchor: str, line: int) -> Node:
        if anchor not in self._anchors:
            raise self._fault(line, f"alias *{anchor} has no complete anchor &{anchor} before it")
        node, size = self._anchors[anchor]
        self._count(size, line)
        return node

    def _scalar(self, event: Any, line: int) -> str | int | float | bool | None:
        text: str = event.value
        if event.tag not in _STRING_TAGS:
            raise self._fault(line, f"tag {event.tag!r} is not supported; remove it")
        if event.tag is not None or event.style not in (None, ""):
            return text
        if text in _WORDS:
            return _WORDS[text]  # type: ignore[no-any-return]  # the table holds True, False and None
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        return text

    def _take(self) -> Any:
        return next(self._events)

    def _count(self, values: int, line: int) -> None:
        self._values += values
        if self._values > LIMIT_VALUES:
            raise self._fault(line, f"more than {LIMIT_VALUES} values once aliases are expanded")

    def _fault(self, line: int, what: str) -> OperatorError:
        return OperatorError(f"{self._source}:{line}: {what}")
