"""Strict loading: every fault of a file with line, path, what was found and what to do."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

import pytest
from msgspec import Meta, Struct

from beaconry.config.gateway import GatewayConfig
from beaconry.config.loading import SHOWN_FAULTS, load_yaml
from beaconry.values.endpoint import SchedulingPolicy
from beaconry.values.errors import OperatorError


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Round(Strict, frozen=True, tag_field="type", tag="round"):
    radius: float


class Square(Strict, frozen=True, tag_field="type", tag="square"):
    side_length: float


class Inner(Strict, frozen=True):
    name: Annotated[str, Meta(pattern="^[a-z]+$", description="a name of a-z")]
    max_size: Annotated[int, Meta(ge=1)] = 1
    flag: bool = False

    def __post_init__(self):
        if self.max_size == 13:
            raise ValueError("13 brings bad luck: choose another maxSize")


class Outer(Strict, frozen=True):
    kind: Literal["Thing"]
    colour: Colour = Colour.RED
    inner: Inner | None = None
    items: tuple[Inner, ...] = ()
    env: dict[str, str] = {}
    shape: Round | Square | None = None
    ratio: float | None = None
    words: Annotated[tuple[str, ...], Meta(min_length=1)] = ("a",)
    NOT_YET: ClassVar[Mapping[str, str]] = {"later": "leave it out"}


def refusal(text, kind=Outer):
    with pytest.raises(OperatorError) as caught:
        load_yaml(text, kind, "f.yaml")
    return str(caught.value)


def test_a_whole_file_becomes_the_struct_with_camel_case_names():
    text = """
kind: Thing
colour: green
inner: {name: x, maxSize: 3, flag: true}
items:
- {name: y}
env: {A: "1"}
shape: {type: square, sideLength: 2}
ratio: 1
words: [b]
"""
    assert load_yaml(text, Outer, "f.yaml") == Outer(
        kind="Thing",
        colour=Colour.GREEN,
        inner=Inner(name="x", max_size=3, flag=True),
        items=(Inner(name="y"),),
        env={"A": "1"},
        shape=Square(side_length=2.0),
        ratio=1.0,
        words=("b",),
    )


def test_null_leaves_an_optional_section_out():
    assert load_yaml("kind: Thing\ninner:\nratio: null\n", Outer, "f.yaml") == Outer(kind="Thing")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "itms: []",
            'itms: unknown key; did you mean "items"? There is: kind, colour, inner, items, env, shape, ratio, words',
        ),
        (
            "zzz: 1",
            "zzz: unknown key; there is: kind, colour, inner, items, env, shape, ratio, words",
        ),
        (
            "inner: {name: x, max_size: 2}",
            'inner.max_size: unknown key; did you mean "maxSize"? There is: name, maxSize, flag',
        ),
        (
            "items: [{name: x, flg: true}]",
            'items[0].flg: unknown key; did you mean "flag"? There is: name, maxSize, flag',
        ),
        ("later: 1", "later: understood, but not acted on in this version: leave it out"),
        ("inner: {}", 'inner: "name" is missing; add it'),
        ("inner: 3", "inner: expected a mapping, found 3"),
        ("inner: [1]", "inner: expected a mapping, found a list"),
        ("inner: {name: x, maxSize: four}", 'inner.maxSize: expected a whole number, found "four"'),
        ('inner: {name: x, maxSize: "4"}', 'inner.maxSize: expected a whole number, found "4"'),
        ("inner: {name: x, maxSize: 4.5}", "inner.maxSize: expected a whole number, found 4.5"),
        ("inner: {name: x, maxSize: 0}", "inner.maxSize: expected a whole number >= 1, found 0"),
        ("inner: {name: x, flag: yes}", 'inner.flag: expected true or false, found "yes"'),
        ("inner: {name: X}", 'inner.name: expected a name of a-z, found "X"'),
        ("inner: {name: 5}", "inner.name: expected a name of a-z, found 5; put it in quotes"),
        ("inner: {name: x, maxSize: 13}", "inner: 13 brings bad luck: choose another maxSize"),
        ("items: {name: x}", "items: expected a list, found a mapping"),
        ("items: [{name: x}, y]", 'items[1]: expected a mapping, found "y"'),
        ("colour: rd", 'colour: "rd" is no choice; did you mean "red"? There is: red, green'),
        ("colour:", "colour: nothing is no choice; there is: red, green"),
        ("env: {A: 1}", "env.A: expected a string, found 1; put it in quotes"),
        ("shape: {radius: 1}", 'shape: "type" is missing; add one of round, square'),
        ("shape: {type: rond}", 'shape.type: "rond" is no choice; did you mean "round"? There is: round, square'),
        ("shape: {type: round, sideLength: 1}", "shape.sideLength: unknown key; there is: radius, type"),
        ("shape: 1", "shape: expected a mapping, found 1"),
        ("ratio: high", 'ratio: expected a number, found "high"'),
        ("words: []", "words: expected a list of length >= 1"),
        ("words: [a, 2]", "words[1]: expected a string, found 2; put it in quotes"),
    ],
)
def test_a_fault_is_refused_with_its_place_and_remedy(line, message):
    text = f"kind: Thing\n{line}\n"
    assert f"f.yaml:2: {message}" in refusal(text).split("\n")


def test_all_faults_are_reported_at_once_in_the_order_of_the_file():
    text = "kind: Thng\nclour: red\nitems:\n- name: x\n  flag: 1\n- {}\n"
    assert refusal(text).split("\n") == [
        'f.yaml:1: kind: "Thng" is no choice; did you mean "Thing"? There is: Thing',
        'f.yaml:2: clour: unknown key; did you mean "colour"? There is: ' + ", ".join(Outer.__struct_fields__),
        "f.yaml:5: items[0].flag: expected true or false, found 1",
        'f.yaml:6: items[1]: "name" is missing; add it',
    ]


def test_a_missing_key_of_the_file_itself_is_named():
    assert refusal("colour: red\n") == 'f.yaml:1: "kind" is missing; add it'


def test_a_file_that_is_no_mapping_is_refused():
    assert refusal("- 1\n") == "f.yaml:1: expected a mapping, found a list"


def test_a_flood_of_faults_is_cut():
    lines = refusal("kind: Thing\n" + "".join(f"a{i}: 1\n" for i in range(50))).split("\n")
    assert len(lines) == SHOWN_FAULTS + 1
    assert lines[-1] == "f.yaml: and 30 more"


def test_long_values_are_shown_shortened():
    assert len(refusal(f"kind: Thing\nratio: {'x' * 5000}\n")) < 200


def test_a_gateway_configuration_is_loaded_by_the_same_rules():
    assert load_yaml("policy: random\nretry: {attempts: 2}\n", GatewayConfig, "g").retry.attempts == 2
    assert refusal("retry: {atempts: 2}\n", GatewayConfig) == (
        'f.yaml:1: retry.atempts: unknown key; did you mean "attempts"? There is: attempts, budgetRatio, budgetFloor'
    )
    said = refusal("forecasts: {coverage: 1}\n", GatewayConfig)
    assert said == "f.yaml:1: forecasts.coverage: expected a number <= 0.99, found 1"


def test_an_engine_that_takes_no_priority_cannot_be_said_to_serve_by_it():
    endpoint = "{name: a, host: h, port: 1, model: m, engine: %s, schedulingPolicy: priority}"
    said = refusal(f"endpoints: [{endpoint % 'llamacpp'}]\n", GatewayConfig)
    assert said.startswith('f.yaml:1: endpoints[0]: endpoint "a": engine "llamacpp" does not take a priority')
    assert said.endswith("remove schedulingPolicy")
    (one,) = load_yaml(f"endpoints: [{endpoint % 'sglang'}]\n", GatewayConfig, "g").endpoints
    assert one.scheduling_policy is SchedulingPolicy.PRIORITY
