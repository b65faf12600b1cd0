"""YAML text to plain values with lines: what is accepted, and how the rest is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.config.yaml_tree import LIMIT_BYTES, LIMIT_DEPTH, parse_yaml
from beaconry.values.errors import OperatorError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("7", 7),
        ("-3", -3),
        ("+3", 3),
        ("1.5", 1.5),
        (".5", 0.5),
        ("2.", 2.0),
        ("1e3", 1000.0),
        ("-2.5e-3", -0.0025),
        # Words and numbers that YAML 1.1 turns into something else stay strings:
        ("on", "on"),
        ("no", "no"),
        ("True", "True"),
        ("010", "010"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("'7'", "7"),
        ('"true"', "true"),
        ("!!str 7", "7"),
        ("''", ""),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_a_scalar_means_what_it_looks_like(text, value):
    found = parse_yaml(text, "f").plain()
    assert found == value
    assert type(found) is type(value)


def test_values_keep_the_line_they_begin_in():
    root = parse_yaml("a: 1\nb:\n  - x\n  - {c: y}\n", "f")
    assert root.plain() == {"a": 1, "b": ["x", {"c": "y"}]}
    assert [root.fields[key][0] for key in "ab"] == [1, 2]
    assert [item.line for item in root.fields["b"][1].items] == [3, 4]


def test_an_alias_repeats_its_anchor():
    assert parse_yaml("a: &x [1, {b: 2}]\nc: *x\n", "f").plain() == {"a": [1, {"b": 2}], "c": [1, {"b": 2}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: the file is empty"),
        ("# nothing\n", "f: the file is empty"),
        ("a: 1\n---\nb: 2\n", "f:2: a second document begins (`---`); keep one per file"),
        ("a: 1\nb: 2\na: 3\n", 'f:3: key "a" stands twice (first in line 1); remove one'),
        ("? [1]\n: 2\n", "f:1: a key must be a plain word or a string"),
        (
            "a: !!python/name:os.system x\n",
            "f:1: tag 'tag:yaml.org,2002:python/name:os.system' is not supported; remove it",
        ),
        ("a: !thing [1]\n", "f:1: tag '!thing' is not supported; remove it"),
        ("x: &a [*a]\n", "f:1: alias *a has no complete anchor &a before it"),
        ("\nx: *lost\n", "f:2: alias *lost has no complete anchor &lost before it"),
        ("a: b\n c: d\n", "f:2: not YAML: mapping values are not allowed"),
        ("a: 1\n\tb: 2\n", "f:2: not YAML: "),
        ("a: 'open\n", "f:"),
        ("a: \x00\n", "f: not YAML: "),
    ],
)
def test_what_is_not_this_subset_is_refused_with_its_line(text, message):
    with pytest.raises(OperatorError) as refusal:
        parse_yaml(text, "f")
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("opening", ["[", "- ", "{a: ", "? "])
def test_deep_nesting_is_refused_early(opening):
    with pytest.raises(OperatorError, match=f"nested deeper than {LIMIT_DEPTH} levels|not YAML|key must be"):
        parse_yaml(opening * 100_000, "f")


def test_a_large_file_is_refused_unread():
    with pytest.raises(OperatorError, match="is it the right file"):
        parse_yaml("#" * (LIMIT_BYTES + 1), "f")


def test_aliases_cannot_multiply_without_bound():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(OperatorError, match="values once aliases are expanded"):
        parse_yaml("\n".join(levels), "f")


@given(st.text(alphabet="ab:-[]{}&*!|>'\"\n #,?%@`~0.1\t", max_size=60))
def test_any_text_is_parsed_or_refused_with_an_operator_error(text):
    with contextlib.suppress(OperatorError):
        parse_yaml(text, "f").plain()
