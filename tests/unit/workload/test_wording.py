import pytest
from msgspec.structs import replace

from beaconry.workload.distribution import distribution
from beaconry.workload.result import Result
from beaconry.workload.summary import Summary
from beaconry.workload.wording import change_in_short, in_short, remarks

GOOD = Summary(
    requests=2, succeeded=2, failed=0, hit_rate=0.5, ttft_s=distribution([0.2]), lag_s=distribution([0.001, 0.002])
)


def remarks_on(client_cpu=0.1, **changes):
    summary = replace(GOOD, **changes)
    result = Result(
        label="a", target="t", model="m", started_at="", workload={}, summary=summary, client_cpu=client_cpu
    )
    return " ".join(remarks(result))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (7, "7"),
        (1234.5, "1,234"),
        (99.96, "100.0"),
        (45.678, "45.7"),
        (4.5678, "4.57"),
        (0.45678, "0.457"),
        (0.0123456, "0.012"),
        (0.00012345, "0.00012"),
    ],
)
def test_numbers_keep_about_three_digits(value, words):
    assert in_short(value) == words


def test_changes_are_percents_or_factors():
    assert [change_in_short(change) for change in (0.123, -0.5, 3.2)] == ["+12%", "-50%", "x4.20"]


def test_a_good_result_needs_no_remark():
    assert remarks_on() == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interrupted": 3}, "3 requests were cut off"),
        ({"requests": 0, "succeeded": 0}, "no request is counted"),
        ({"lag_s": distribution([0.5])}, "--max-connections"),
        ({"client_cpu": 0.95}, "95%"),
        ({"hit_rate": None}, "does not report cached tokens"),
        ({"short_replies": 2}, "ignore_eos"),
    ],
)
def test_every_doubt_has_its_remark(changes, words):
    assert words in remarks_on(**changes)
