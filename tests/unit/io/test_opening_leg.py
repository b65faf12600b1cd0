"""A stream that fails before it says anything is told from one that answers, whatever pieces it comes in."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.io.opening_leg import OPENING_BYTES, OpeningLeg
from beaconry.router.facts import Fault

STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
FIRST = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null}]}\n\n'
)
TOKEN = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"so "}}]}\n\n'
TEXT = b'data: {"id":"cmpl-1","choices":[{"index":0,"text":"so "}]}\n\n'
QUOTED = b'data: {"id":"cmpl-1","choices":[{"index":0,"text":"data: {\\"error\\""}]}\n\n'
ERROR = b'data: {"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
DONE = b"data: [DONE]\n\n"
ANNOUNCED = (
    b'event: response.created\ndata: {"response":{"id":"resp_1","output":[]},"type":"response.created"}\n\n'
    b'event: response.in_progress\ndata: {"response":{"id":"resp_1","output":[]},"type":"response.in_progress"}\n\n'
)
ITEM = b'event: response.output_item.added\ndata: {"item":{"id":"msg_1"},"type":"response.output_item.added"}\n\n'
COMPLETED = b'event: response.completed\ndata: {"response":{"id":"resp_1"},"type":"response.completed"}\n\n'
FAILED = b'event: response.failed\ndata: {"response":{"error":{"code":"server_error"}},"type":"response.failed"}\n\n'
ERROR_EVENT = b'event: error\ndata: {"code":null,"message":"no KV","type":"error"}\n\n'


class Passed:
    """A leg that keeps what it is told."""

    def __init__(self):
        self.status = 0
        self.data = b""
        self.pieces = 0
        self.ended = False
        self.failed = 0
        self.fault = None

    def on_answer(self, status, headers, length):
        self.status = status

    def on_data(self, data, *, ended):
        assert not self.ended
        self.data += data
        self.pieces += 1
        self.ended = ended

    def on_failure(self, fault, detail):
        self.fault = fault

    def fail(self):
        self.failed += 1


def pass_on(pieces, *, status=200, headers=STREAM, ended=True):
    passed = Passed()
    leg = OpeningLeg(passed, passed.fail)
    leg.on_answer(status, headers, None)
    for number, piece in enumerate(pieces, start=1):
        leg.on_data(piece, ended=ended and number == len(pieces))
        if passed.failed:
            break  # the call is cancelled
    return passed


def cut(data, places):
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


ANSWERS = [
    FIRST + TOKEN + DONE, TEXT + DONE, QUOTED + DONE, FIRST + DONE, TEXT + ERROR, FIRST + TOKEN + ERROR, b"",
    ANNOUNCED + ITEM + COMPLETED, ANNOUNCED + COMPLETED, ANNOUNCED, ANNOUNCED + ITEM + FAILED, ITEM + ERROR_EVENT,
]  # fmt: skip


@given(
    stream=st.sampled_from(ANSWERS),
    places=st.lists(st.integers(0, 150)),
)
def test_an_answer_passes_byte_for_byte(stream, places):
    passed = pass_on(cut(stream, [min(place, len(stream)) for place in places]))
    assert (passed.data, passed.ended, passed.failed) == (stream, True, 0)


@given(
    stream=st.sampled_from(
        [FIRST + ERROR + DONE, ERROR + DONE, ERROR, ANNOUNCED + ERROR_EVENT, ANNOUNCED + FAILED, FAILED]
    ),
    places=st.lists(st.integers(0, 400)),
)
def test_an_error_before_anything_else_fails_the_leg_and_nothing_of_it_passes(stream, places):
    passed = pass_on(cut(stream, [min(place, len(stream)) for place in places]))
    assert (passed.data, passed.pieces, passed.failed) == (b"", 0, 1)


def test_a_first_chunk_is_held_until_the_next_one():
    assert pass_on([FIRST], ended=False).pieces == 0
    assert pass_on([FIRST, TOKEN], ended=False).data == FIRST + TOKEN
    assert pass_on([TEXT], ended=False).data == TEXT
    assert pass_on([ANNOUNCED], ended=False).pieces == 0
    assert pass_on([ANNOUNCED, ITEM], ended=False).data == ANNOUNCED + ITEM


def test_nothing_is_held_for_ever():
    assert pass_on([b"data: " + b"x" * OPENING_BYTES], ended=False).pieces == 1


@pytest.mark.parametrize(("status", "headers"), [(500, STREAM), (200, [(b"content-type", b"application/json")])])
def test_what_is_no_stream_passes_at_once(status, headers):
    passed = pass_on([b'data: {"error"'], status=status, headers=headers, ended=False)
    assert (passed.status, passed.data, passed.failed) == (status, b'data: {"error"', 0)


@pytest.mark.parametrize(
    ("before", "failed"),
    [(b"", False), (FIRST, False), (FIRST + TOKEN, False), (ANNOUNCED, True), (ANNOUNCED + ITEM, False)],
)
def test_a_response_that_breaks_off_behind_its_announcement_has_failed_as_by_an_error(before, failed):
    passed = Passed()
    leg = OpeningLeg(passed, passed.fail)
    leg.on_answer(200, STREAM, None)
    leg.on_data(before, ended=False)
    leg.on_failure(Fault.RESET, "closed")
    assert (passed.failed, passed.fault) == ((1, None) if failed else (0, Fault.RESET))
