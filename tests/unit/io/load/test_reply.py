import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.io.load.reply import EVENT_LIMIT_BYTES, ReplyReader

USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}}
CHUNKS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"content": "Grüße, "}}]},
    {"choices": [{"index": 0, "delta": {"content": "wor"}}]},
    {"choices": [{"index": 0, "delta": {"content": "ld"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
    {"choices": [], "usage": USAGE},
]


def stream(chunks=CHUNKS, end=b"data: [DONE]\n\n", newline=b"\n"):
    events = [b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n" for chunk in chunks]
    return (b": a comment\n\n" + b"".join(events) + end).replace(b"\n", newline)


def read(data, status=200):
    reader = ReplyReader()
    reader.status = status
    reader.feed(data, 1.0)
    return reader


def test_content_usage_and_end_are_found():
    reader = read(stream())
    assert reader.fault() is None
    assert reader.text == "Grüße, world"
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens, reader.usage.cached_tokens) == (40, 3, 16)


@given(cuts=st.lists(st.integers(0, len(stream()))), newline=st.sampled_from([b"\n", b"\r\n"]))
def test_the_answer_does_not_depend_on_how_the_bytes_are_cut(cuts, newline):
    data = stream(newline=newline)
    places = [0, *sorted(cuts), len(data)]
    reader = ReplyReader()
    reader.status = 200
    for start, end in pairwise(places):
        reader.feed(data[start:end], float(start))
    assert (reader.fault(), reader.text, reader.chunks, reader.usage) == (None, "Grüße, world", 3, read(data).usage)
    assert len(reader.gaps_s) == 2


def test_only_content_counts_as_first_token_and_in_gaps():
    reader = ReplyReader()
    reader.status = 200
    for at, chunk in enumerate(CHUNKS):
        reader.feed(stream([chunk], end=b""), float(at * at))
    assert reader.first_s == 1.0
    assert list(reader.gaps_s) == [3.0, 5.0]


def test_thoughts_and_plain_completions_are_content_too():
    chunks = [
        {"choices": [{"delta": {"reasoning_content": "hm "}}]},
        {"choices": [{"delta": {"reasoning": "so "}}]},
        {"choices": [{"text": "yes"}]},
    ]
    assert read(stream(chunks)).text == "hm so yes"


@pytest.mark.parametrize(
    ("data", "status", "kind", "words"),
    [
        (b'{"error": "busy\n now"}', 503, "status 503", "busy now"),
        (stream(end=b""), 200, "truncated", "[DONE]"),
        (stream(CHUNKS[:1]), 200, "no content", "no content"),
        (stream([*CHUNKS[:2], {"error": {"message": "out of memory"}}]), 200, "error in stream", "out of memory"),
        (b"data: {nonsense\n\n" + stream(), 200, "bad answer", "nonsense"),
        (b'{"choices": []}', 200, "truncated", "[DONE]"),
    ],
)
def test_every_kind_of_failure_is_told_apart(data, status, kind, words):
    found, detail = read(data, status).fault()
    assert found == kind
    assert words in detail


def test_neither_an_error_body_nor_an_endless_line_fills_the_memory():
    reader = read(b"x" * 1_000_000, status=500)
    assert len(reader.fault()[1]) <= 200
    endless = read(b"data: " + b"x" * (EVENT_LIMIT_BYTES + 1))
    assert endless.fault()[0] == "bad answer"
