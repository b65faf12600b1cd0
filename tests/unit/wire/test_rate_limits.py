"""Limits as headers, in the words of OpenAI."""

import pytest

from beaconry.values.tenant import Allowance, LimitKind
from beaconry.wire.rate_limits import duration, rate_limit_headers


def test_each_limit_has_three_headers():
    assert rate_limit_headers([Allowance(LimitKind.REQUESTS, 60, 59, 1.0)]) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1s"),
    ]


def test_tokens_are_those_of_the_scarcer_direction():
    plenty = Allowance(LimitKind.INPUT_TOKENS, 1000, 900, 6.0)
    scarce = Allowance(LimitKind.OUTPUT_TOKENS, 100, 10, 54.0)
    headers = dict(rate_limit_headers([plenty, scarce]))
    assert headers[b"x-ratelimit-remaining-tokens"] == b"10"
    assert headers[b"x-ratelimit-remaining-input-tokens"] == b"900"
    assert headers[b"x-ratelimit-reset-output-tokens"] == b"54s"


def test_no_limits_no_headers():
    assert rate_limit_headers(()) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, b"0ms"), (0.0204, b"20ms"), (1, b"1s"), (1.5, b"1.5s"), (59.9996, b"1m0s"), (361.2, b"6m1s")],
)
def test_durations_are_written_as_openai_does(seconds, text):
    assert duration(seconds) == text
