"""The name a client asked for comes back, however the answer is cut; and nothing else changes."""

import json
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from beaconry.wire.model_name import NameRestorer

TARGET, ASKED = "org/target-v2", "alias"
EVENT = b'data: {"id":"1","model":"org/target-v2","choices":[{"delta":{"content":"hi"}}]}\n\n'


def restored(pieces, target=TARGET, asked=ASKED) -> bytes:
    restorer = NameRestorer(target, asked)
    return b"".join([*map(restorer.feed, pieces), restorer.finish()])


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def naive(data: bytes) -> bytes:
    return re.sub(rb'("model"\s*:\s*)"org/target-v2"', rb'\1"alias"', data)


def in_order(data: bytes) -> bytes:
    """As `naive`, but what is a pair's value already begins no other pair."""
    pair = re.compile(rb'("model"\s*:\s*)("(?:[^"\\]|\\.)*")', re.DOTALL)
    return pair.sub(lambda m: m[1] + (b'"alias"' if m[2] == b'"org/target-v2"' else m[2]), data)


def test_a_whole_event_leaves_at_once_with_the_name_that_was_asked_for():
    restorer = NameRestorer(TARGET, ASKED)
    assert restorer.feed(EVENT) == EVENT.replace(b"org/target-v2", b"alias")
    assert restorer.finish() == b""


@pytest.mark.parametrize(
    "text",
    [
        b'{"model": "org/target-v2"}',
        b'{"model"\n:\t"org/target-v2","x":1}',
        b'{"type":"response.created","response":{"id":"r","model":"org/target-v2"}}',
    ],
)
def test_any_spacing_and_depth_will_do(text):
    assert json.loads(restored([text])) == json.loads(text.replace(b"org/target-v2", b"alias"))


def test_a_name_that_the_engine_escapes_is_known_all_the_same():
    assert restored([b'{"model":"org\\/target-v2"}']) == b'{"model":"alias"}'
    assert restored([b'{"model":"m\\u00fc"}'], "m\u00fc", "a") == b'{"model":"a"}'


def test_a_name_is_escaped_as_json_wants_it():
    assert json.loads(restored([b'{"model":"m"}'], "m", 'a"b\\\u2028')) == {"model": 'a"b\\\u2028'}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"content": 'they said {"model": "org/target-v2"}'}).encode(),
        b'{"model":"another"}',
        b'{"root":"org/target-v2"}',
        b'{"models":["model","org/target-v2"]}',
        b'{"model":null}',
        b'{"model":"\\ud800"}',
        b'"model":"' + b"x" * 5000,
        b"not JSON \x00\xff",
    ],
)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=6))
def test_everything_else_passes_byte_exact(text, cuts):
    assert restored(pieces_of(text, cuts)) == text


TEXTS = (
    st.lists(
        st.sampled_from(
            [
                EVENT,
                b'"model"',
                b' : "org/target-v2"',
                b'"',
                b"\\",
                b'"mo',
                b'del":',
                b'"org/target',
                b"-v2",
                b",",
                b"\n\n",
            ]
        ),
        max_size=12,
    )
    .map(b"".join)
    .filter(lambda text: in_order(text) == naive(text))
)
"""Hardly JSON, but as in JSON no value is followed by a colon: `"model":"model":"org/target-v2"` could be read in two ways."""


@given(TEXTS, st.lists(st.integers(0, 1000), max_size=20))
@example(b'"model","model" : "org/target-v2"', [])
def test_cuts_make_no_difference(text, cuts):
    assume(not re.search(rb'"model"\s*:\s*"model"\s*:', text))  # a value that is a key again is no JSON
    assert restored(pieces_of(text, cuts)) == naive(text)


def test_what_is_kept_is_bounded():
    restorer = NameRestorer(TARGET, ASKED)
    sent = b'{"model":"' + b"x" * 100
    came = restorer.feed(sent)
    for _ in range(100):
        sent += b"x" * 100
        came += restorer.feed(b"x" * 100)
        assert len(sent) - len(came) <= 1024
