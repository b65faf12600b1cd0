"""In how many legs a request runs, and why: each reason has its case."""

import pytest

from beaconry.config.disaggregation import Disaggregation
from beaconry.disagg.plan import Plan, Prefill, Reason, plan
from beaconry.values.request import Api, Request
from beaconry.values.stage import Stage


def request(prompt: int = 5000, **fields: object) -> Request:
    given = {"api": Api.CHAT, **fields}
    return Request(id="r", model="m", arrived_s=0.0, prompt_tokens=prompt, **given)


def planned(
    asked: Request, cached: int = 0, mode: str = "auto", *, prefill: Prefill = Prefill.OPEN, ratio: float = 0.7
) -> Plan:
    return plan(Disaggregation(mode=mode, min_uncached_ratio=ratio), asked, cached_tokens=cached, prefill=prefill)


@pytest.mark.parametrize(
    ("prompt", "cached", "reason"),
    [
        (2047, 0, Reason.SHORT),
        (2048, 0, None),
        (2048, 1, Reason.CACHED),
        (10_000, 3000, None),
        (10_000, 3001, Reason.CACHED),  # more than 2048 to compute, but less than 70 % of the prompt
        (3000, 953, Reason.CACHED),  # more than 70 %, but less than 2048
    ],
)
def test_auto_splits_what_leaves_enough_to_compute(prompt: int, cached: int, reason: Reason | None):
    expected = Plan(Stage.PREFILL, Reason.UNCACHED) if reason is None else Plan(Stage.WHOLE, reason)
    assert planned(request(prompt), cached) == expected


def test_always_splits_whatever_its_length_and_never_splits_nothing():
    assert planned(request(1), 1, "always") == Plan(Stage.PREFILL, Reason.ALWAYS)
    assert planned(request(100_000), 0, "never") == Plan(Stage.WHOLE, Reason.NEVER)


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_what_engines_cannot_hand_over_runs_whole(mode: str):
    assert planned(request(sequences=2), mode=mode).reason is Reason.SEQUENCES
    assert planned(request(api=Api.EMBEDDINGS), mode=mode).reason is Reason.KIND
    assert planned(request(divisible=False), mode=mode).reason is Reason.KIND
    assert planned(request(), mode=mode, prefill=Prefill.NONE) == Plan(Stage.WHOLE, Reason.NO_PREFILL)


def test_a_short_prompt_is_called_short_even_where_nobody_prefills():
    assert planned(request(10), prefill=Prefill.NONE).reason is Reason.SHORT


def test_without_a_ratio_only_the_tokens_to_compute_count():
    assert planned(request(100_000), 100_000 - 2048, ratio=0.0).splits
    assert not planned(request(100_000), 100_000 - 2047, ratio=0.0).splits


def test_where_the_prefill_endpoints_are_full_auto_runs_it_whole_and_always_lets_it_wait():
    assert planned(request(), prefill=Prefill.FULL) == Plan(Stage.WHOLE, Reason.PREFILL_FULL)
    assert planned(request(), mode="always", prefill=Prefill.FULL).splits


@pytest.mark.parametrize("cached", [0, 4000])
def test_auto_splits_the_little_as_well_where_two_legs_are_sooner(cached: int):
    little, knobs = request(4100 if cached else 100), Disaggregation()
    for prefill in Prefill:
        found = plan(knobs, little, cached_tokens=cached, prefill=prefill, sooner_apart=True)
        assert found.splits == (prefill is Prefill.OPEN)
        assert (found.reason is Reason.BUSY) == found.splits
    never = plan(Disaggregation(mode="never"), little, cached_tokens=cached, prefill=Prefill.OPEN, sooner_apart=True)
    assert never.reason is Reason.NEVER
