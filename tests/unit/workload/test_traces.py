import pytest

from beaconry.values.errors import OperatorError
from beaconry.workload.prompts import PromptText
from beaconry.workload.traces import Replay, TraceRow, read_trace, replay

MOONCAKE = [
    '{"timestamp": 1000, "input_length": 1100, "output_length": 20, "hash_ids": [0, 1, 2]}\n',
    '{"timestamp": 3000, "input_length": 1100, "output_length": 7, "hash_ids": [0, 1, 5]}\n',
    '{"timestamp": 3000, "input_length": 512, "output_length": 1, "hash_ids": [0]}\n',
]
AZURE = [
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n",
    "2023-11-16 18:15:46.6805900,374,44\r\n",
    "2023-11-16 18:15:50.6805900,396,109\r\n",
]


def read(lines):
    return list(read_trace(lines, "t"))


def planned(lines, **how):
    return list(replay(read_trace(lines, "t"), Replay(**how)))


def test_a_mooncake_trace_is_read_with_its_blocks():
    assert read(MOONCAKE)[1] == TraceRow(at_s=3.0, input_tokens=1100, output_tokens=7, blocks=(0, 1, 5))


def test_an_azure_trace_is_read_without_blocks():
    first, second = read(AZURE)
    assert (first.input_tokens, first.output_tokens, first.blocks) == (374, 44, ())
    assert second.at_s - first.at_s == pytest.approx(4.0)


def test_azure_times_with_a_zone_are_read_too():
    lines = [AZURE[0], "2024-05-10 00:00:00.009930+00:00,10,5\n", "2024-05-10 01:00:01.009930+01:00,10,5\n"]
    first, second = read(lines)
    assert second.at_s - first.at_s == pytest.approx(1.0)


def test_blank_lines_are_no_obstacle():
    assert len(read(["\n", *MOONCAKE, "\n"])) == 3
    assert len(read(["\n", *AZURE, "\n"])) == 2


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        ([], "t:", "empty"),
        (["time,a,b\n"], "t:1:", "neither a Mooncake"),
        ([MOONCAKE[0], "{\n"], "t:2:", "not a Mooncake request"),
        ([MOONCAKE[0].replace("1100", '"1100"')], "t:1:", "input_length"),
        ([MOONCAKE[0].replace("hash_ids", "ids")], "t:1:", "hash_ids"),
        ([MOONCAKE[0].replace("[0, 1, 2]", "[0, 1]")], "t:1:", "--trace-block-tokens"),
        ([MOONCAKE[0].replace("[0, 1, 2]", "[0, -1, 2]")], "t:1:", "negative"),
        ([MOONCAKE[0].replace("1100", "0")], "t:1:", "positive"),
        (MOONCAKE[::-1], "t:3:", "sort the trace"),
        ([AZURE[0], "yesterday,1,2\n"], "t:2:", "not an Azure request"),
        ([AZURE[0], "2023-11-16 18:15:46,1\n"], "t:2:", "not an Azure request"),
        ([AZURE[0], "2023-11-16 18:15:46,one,2\n"], "t:2:", "not an Azure request"),
        ([AZURE[0], "2023-11-16 18:15:46,1,-2\n"], "t:2:", "positive"),
    ],
)
def test_a_bad_trace_is_refused_with_place_and_reason(lines, place, words):
    with pytest.raises(OperatorError) as refused:
        read(lines)
    assert str(refused.value).startswith(place)
    assert words in str(refused.value)


def test_replay_starts_at_zero_and_compresses_time():
    assert [request.at_s for request in planned(MOONCAKE, speedup=4.0)] == [0.0, 0.5, 0.5]
    assert [request.at_s for request in planned(MOONCAKE, skip=1)] == [0.0, 0.0]


def test_skip_and_limit_choose_a_part():
    assert [request.output_tokens for request in planned(MOONCAKE, skip=1, limit=1)] == [7]


def test_other_arrivals_replace_the_times_of_the_trace():
    requests = replay(read_trace(MOONCAKE, "t"), Replay(), iter([1.0, 2.0, 5.0]))
    assert [request.at_s for request in requests] == [1.0, 2.0, 5.0]


def test_prompts_have_the_lengths_of_the_trace():
    assert [request.prompt_tokens for request in planned(MOONCAKE)] == [1100, 1100, 512]
    assert [request.prompt_tokens for request in planned(AZURE)] == [374, 396]


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.3, 0.001, 2.0])
def test_scaling_keeps_shared_blocks_shared_exactly(scale):
    first, second, third = planned(MOONCAKE, scale_lengths=scale)
    text = PromptText()
    shared = len(text.prompt(third))
    assert text.prompt(first)[:shared] == text.prompt(second)[:shared] == text.prompt(third)
    assert first.prompt_tokens == pytest.approx(1100 * scale, abs=2)
    assert first.output_tokens == max(1, round(20 * scale))


def test_requests_without_blocks_share_nothing():
    first, second = planned([AZURE[0], AZURE[1], AZURE[1]])
    assert PromptText().prompt(first)[:64] != PromptText().prompt(second)[:64]
