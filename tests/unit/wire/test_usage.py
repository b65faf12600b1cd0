"""Streams pass byte-exact, usage is found however the bytes are cut, and only our own usage event is taken out."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.values.request import Usage
from beaconry.wire.usage import StreamWatch, usage_of

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
FOUND = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=4)


def event(document: object, newline: str = "\n") -> bytes:
    return f"data: {json.dumps(document)}{newline}{newline}".encode()


def stream(newline: str = "\n") -> tuple[bytes, bytes]:
    """A stream with a usage event of its own, and what is left without that."""
    tokens = [
        event({"choices": [{"delta": {"content": text}}], "usage": None}, newline) for text in ("a", '"usage"', "ü")
    ]
    usage = event({"choices": [], "usage": USAGE}, newline)
    done = f"data: [DONE]{newline}{newline}".encode()
    return b"".join([*tokens, usage, done]), b"".join([*tokens, done])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@given(places=st.lists(st.integers(0, 400), max_size=12), strip=st.booleans())
def test_usage_is_found_and_only_its_event_removed_however_the_stream_is_cut(
    newline: str, places: list[int], strip: bool
):
    whole, without = stream(newline)
    watch = StreamWatch(strip=strip)
    passed = b"".join([watch.feed(piece) for piece in cut(whole, places)] + [watch.finish()])
    assert passed == (without if strip else whole)
    assert watch.usage == FOUND


EVENTS = st.sampled_from(
    [
        {"choices": [{"delta": {"content": "x"}}]},
        {"choices": [{"delta": {"content": '"usage": {'}}], "usage": None},
        {"choices": [{"delta": {}}], "usage": USAGE},
        {"choices": [], "usage": USAGE},
        {"choices": [], "usage": {**USAGE, "completion_tokens": 9}},
        {"usage": {}},
    ]
)


@given(documents=st.lists(st.tuples(EVENTS, st.sampled_from(["\n", "\r\n"])), max_size=12), strip=st.booleans())
def test_looking_only_where_usage_stands_finds_what_looking_at_each_event_finds(
    documents: list[tuple[dict[str, object], str]], strip: bool
):
    watch = StreamWatch(strip=strip)
    passed = watch.feed(b"".join(event(*one) for one in documents)) + watch.finish()
    kept = [one for one in documents if not (strip and one[0].get("choices") == [] and one[0].get("usage"))]
    assert passed == b"".join(event(*one) for one in kept)
    tokens = [one["usage"].get("completion_tokens", 0) for one, _ in documents if one.get("usage") is not None]
    assert (watch.usage.completion_tokens if watch.usage else None) == (tokens[-1] if tokens else None)


@given(pieces=st.lists(st.binary(max_size=40), max_size=10), strip=st.booleans())
def test_bytes_that_are_no_events_pass_unchanged(pieces: list[bytes], strip: bool):
    watch = StreamWatch(strip=strip)
    assert b"".join([*map(watch.feed, pieces), watch.finish()]) == b"".join(pieces)


def test_an_event_that_names_usage_twice_is_counted_once():
    twice = {"choices": [], "nested": {"usage": {"prompt_tokens": 1}}, "usage": USAGE}
    watch = StreamWatch(strip=True)
    assert watch.feed(event({"choices": [1]}) + event(twice) + event({"choices": [2]})) == event(
        {"choices": [1]}
    ) + event({"choices": [2]})
    assert watch.usage == FOUND


def test_a_broken_event_that_names_usage_passes_and_the_next_one_counts():
    broken = b'data: {"choices":[],"usage":{"prompt_tokens":\n\n'
    watch = StreamWatch(strip=True)
    assert watch.feed(broken + event({"choices": [], "usage": USAGE})) == broken
    assert watch.usage == FOUND


def test_usage_beside_content_stays():
    whole = event({"choices": [{"delta": {}}], "usage": USAGE})
    watch = StreamWatch(strip=True)
    assert watch.feed(whole) == whole
    assert watch.usage == FOUND


def test_an_endless_event_is_not_held_back():
    watch = StreamWatch(strip=True)
    assert watch.feed(b"data: " + b"x" * 100_000) != b""


def test_usage_of_a_responses_stream_is_found():
    usage = {"input_tokens": 7, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}
    watch = StreamWatch(strip=False)
    watch.feed(event({"type": "response.completed", "response": {"usage": usage}}))
    assert watch.usage == FOUND


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (json.dumps({"choices": [], "usage": USAGE}).encode(), FOUND),
        (b'{"choices":[{"text":"\\"usage\\":{"}],"usage":null}', None),
        (b'{"usage":3}', None),
        (b'"usage"', None),
        (b"", None),
        (json.dumps({"usage": {"prompt_tokens": 5}}).encode(), Usage(prompt_tokens=5, completion_tokens=0)),
        (b'{"usage": {"prompt_tokens":5},"service_tier":null} \n', Usage(prompt_tokens=5, completion_tokens=0)),
        (
            b'{"usage":{"prompt_tokens":5},"a":[{"usage":{"prompt_tokens":9}}]}',
            Usage(prompt_tokens=5, completion_tokens=0),
        ),
        (
            b'{"usage":{"prompt_tokens":5},"a":{"usage":{"prompt_tokens":9}}}',
            Usage(prompt_tokens=5, completion_tokens=0),
        ),
        (b'{"usage":{"prompt_tokens":5},"a":"usage"}', Usage(prompt_tokens=5, completion_tokens=0)),
        (b'{"usage":{"prompt_tokens":-5,"completion_tokens":-1}}', Usage(prompt_tokens=0, completion_tokens=0)),
        (
            b'{"usage":{"prompt_tokens":100,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":500}}}',
            Usage(prompt_tokens=100, completion_tokens=5, cached_tokens=100),
        ),
    ],
)
def test_usage_of_a_whole_answer(body: bytes, usage: Usage | None):
    assert usage_of(body) == usage
