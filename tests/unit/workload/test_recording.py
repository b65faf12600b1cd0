"""Recordings: numbered blocks, and reading them back as a trace."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.values.errors import OperatorError
from beaconry.workload.recording import Numbering, Opening, Recorded, RecordedModel
from beaconry.workload.request import Span
from beaconry.workload.traces import Replay, read_trace, replay


def lines(*parts: msgspec.Struct) -> list[str]:
    return [msgspec.json.encode(part).decode() for part in parts]


OPENING = Opening(started=1.0, policy="p")
MODEL = RecordedModel(model="m", block_tokens=50)


def request(**what: object) -> Recorded:
    return Recorded(**{"at_s": 0.0, "model": "m", "prompt_tokens": 120, "output_tokens": 7} | what)


def chains(texts: list[str]) -> list[list[int]]:
    """Chained hashes of each prefix, as the gateway makes them."""
    return [[hash(text[: i + 1]) for i in range(len(text))] for text in texts]


def test_a_shared_prefix_is_a_shared_run_and_consecutive_numbers_are_one_run():
    numbering = Numbering(100)
    first, second, third = chains(["abc", "abde", "abc"])
    assert numbering.runs(first) == ((0, 3),)
    assert numbering.runs(second) == ((0, 2), (3, 2))
    assert numbering.runs(third) == ((0, 3),)
    assert numbering.runs([]) == ()


@given(st.lists(st.text("ab", min_size=1, max_size=12), max_size=30))
def test_equal_numbers_stand_for_equal_texts(texts: list[str]):
    numbering = Numbering(10_000)
    meaning: dict[int, int] = {}
    for chain in chains(texts):
        numbers = [start + i for start, count in numbering.runs(chain) for i in range(count)]
        assert len(numbers) == len(chain)
        for number, block in zip(numbers, chain, strict=True):
            assert meaning.setdefault(number, block) == block
    assert len(set(meaning.values())) == len(meaning)


def test_memory_is_bounded_and_what_is_in_use_keeps_its_number():
    numbering = Numbering(100)
    kept = numbering.of("kept")
    for i in range(10_000):
        numbering.of(i)
        assert numbering.of("kept") == kept
        assert len(numbering) <= 100
    assert numbering.of(0) > 10_000


def test_a_recording_is_read_as_a_trace_by_arrival():
    text = lines(
        OPENING, MODEL, request(at_s=3.0, runs=((0, 2),)), request(at_s=1.0, prompt_tokens=250, runs=((0, 1), (2, 3)))
    )
    first, second = replay(read_trace(text, "r"), Replay())
    assert (first.at_s, second.at_s) == (0.0, 2.0)
    assert first.messages[0].spans[:2] == (Span(id=0, tokens=50), Span(id=2, tokens=150))
    assert second.messages[0].spans[0] == Span(id=0, tokens=100)
    assert (first.prompt_tokens, second.prompt_tokens) == (250, 120)
    tails = [request.messages[0].spans[-1].id for request in (first, second)]
    assert min(tails) < 0
    assert tails[0] != tails[1]


def test_blocks_beyond_the_reported_length_are_cut():
    (only,) = replay(read_trace(lines(OPENING, MODEL, request(prompt_tokens=60, runs=((4, 9),))), "r"), Replay())
    assert only.messages[0].spans == (Span(id=4, tokens=60),)


def test_a_request_without_an_answer_is_as_long_as_it_asked_to_be():
    unanswered = request(output_tokens=None, cap_tokens=33, outcome="client-gone")
    (only,) = replay(read_trace(lines(OPENING, MODEL, unanswered), "r"), Replay())
    assert only.output_tokens == 33


def test_one_of_several_models_has_to_be_chosen():
    text = lines(OPENING, MODEL, request(), RecordedModel(model="n", block_tokens=64), request(model="n", at_s=1.0))
    with pytest.raises(OperatorError, match="choose one"):
        list(read_trace(text, "r"))
    assert [row.at_s for row in read_trace(text, "r", model="n")] == [1.0]
    with pytest.raises(OperatorError, match="no requests for the model 'x'; there are m, n"):
        list(read_trace(text, "r", model="x"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lines(OPENING, request()), "r:2: no line of kind model"),
        ([*lines(OPENING), "{"], "r:2: not a line of a recording"),
        (lines(OPENING, RecordedModel(model="m", block_tokens=0)), "r:2: block_tokens is 0"),
        (lines(Opening(version=9, started=0.0, policy="p")), "version 9"),
        (lines(OPENING, MODEL, request(prompt_tokens=0)), "r:3: lengths must be positive"),
    ],
)
def test_a_broken_recording_is_refused_with_its_place(text: list[str], said: str):
    with pytest.raises(OperatorError, match=said):
        list(read_trace(text, "r"))
