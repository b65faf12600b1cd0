"""Running sheddable requests end for higher ones that starve: the right ones, no more than needed, and only where that is wanted."""

import pytest
from hypothesis import settings

from beaconry.config.flow import BandConfig
from beaconry.router.effects import Answer, BreakStream, CancelLeg, Effect, StartLeg
from beaconry.router.facts import LegFinished, LegStarted
from beaconry.values.outcome import Outcome
from tests.unit.router.test_admission import Bench, Life, outcomes

PATIENCE_S = 0.1
"""`engineWaitS` of the bench."""


def bench_with(**knobs: object) -> Bench:
    return Bench("a", **{"evict_sheddable": True, "recall": False, "ttl_s": 60.0, **knobs})


def decoding(bench: Bench, *names: str, **fields: object) -> list[int]:
    """Requests that have their first byte, one after the other."""
    legs = []
    for name in names:
        (start,) = bench.arrive(name, **{"prompt_tokens": 100, **fields})
        bench.tell(LegStarted(start.leg), after_s=0.05)
        legs.append(start.leg)
    return legs


def wait(bench: Bench, until_s: float) -> list[Effect]:
    """All that happens by itself until then."""
    effects = []
    while bench.wake_s <= until_s:
        effects += bench.timer()
    bench.now_s = max(bench.now_s, until_s)
    return effects


def test_the_last_one_of_the_lowest_band_ends_for_one_that_waits_in_the_engine():
    bench = bench_with()
    decoding(bench, "low", "lowest-first", priority=-1)
    decoding(bench, "lowest", "lowest-last", priority=-2)
    decoding(bench, "even-later", priority=-1)
    bench.arrive("top", priority=5, prompt_tokens=100)
    effects = wait(bench, bench.now_s + 0.35)
    assert outcomes(effects) == {"lowest-last": Outcome.EVICTED, "lowest": Outcome.EVICTED}
    broken = [effect for effect in effects if isinstance(effect, BreakStream)]
    assert [effect.code for effect in broken] == ["evicted", "evicted"]
    assert sum(isinstance(effect, CancelLeg) for effect in effects) == 2


def test_no_more_end_once_it_has_begun():
    bench = bench_with()
    decoding(bench, "a", "b", "c", priority=-1)
    (start,) = bench.arrive("top", priority=5, prompt_tokens=100)
    first = wait(bench, bench.now_s + 0.25)
    assert list(outcomes(first)) == ["c"]
    bench.tell(LegStarted(start.leg))
    assert outcomes(wait(bench, bench.now_s + 5.0)) == {}


def test_what_has_no_first_byte_is_told_429_with_a_time_to_come_back():
    bench = bench_with()
    (low,) = bench.arrive("low", priority=-1)
    assert bench.arrive("top", priority=5) == []
    effects = wait(bench, PATIENCE_S)
    (answer,) = [effect for effect in effects if isinstance(effect, Answer)]
    assert (answer.request_id, answer.status, answer.outcome, answer.retry_after_s) == (
        "low",
        429,
        Outcome.EVICTED,
        1.0,
    )
    (start,) = [effect for effect in effects if isinstance(effect, StartLeg)]
    assert start.request_id == "top"
    assert bench.tell(LegFinished(low.leg)) == []


@pytest.mark.parametrize(
    ("waiting", "running", "knobs"),
    [
        pytest.param(5, -1, {"evict_sheddable": False}, id="not wanted"),
        pytest.param(5, 0, {}, id="not sheddable"),
        pytest.param(-1, -2, {}, id="sheddable itself"),
    ],
)
def test_nobody_ends_otherwise(waiting: int, running: int, knobs: dict[str, bool]):
    bench = bench_with(**knobs)
    decoding(bench, "a", "b", priority=running)
    bench.arrive("waiting", priority=waiting, prompt_tokens=100)
    assert outcomes(wait(bench, bench.now_s + 3.0)) == {}


def test_what_was_sent_after_the_other_one_began_to_wait_is_left_alone():
    bench = bench_with()
    bench.arrive("top", priority=5, prompt_tokens=100)
    bench.now_s += 0.01
    (low,) = bench.arrive("low", priority=-1, prompt_tokens=100)
    assert isinstance(low, StartLeg)
    assert outcomes(wait(bench, bench.now_s + 2.0)) == {}


def test_never_more_than_ten_in_a_second_however_many_starve():
    bench = bench_with(bands=(BandConfig(name="top", priority=5, ceiling=1.0),))
    decoding(bench, *(f"low-{i}" for i in range(40)), priority=-1)
    for number in range(30):
        bench.arrive(f"top-{number}", priority=5, prompt_tokens=10)
    ended = [
        name
        for name, outcome in outcomes(wait(bench, bench.now_s + 1.0)).items()
        if outcome is Outcome.EVICTED and name.startswith("low")
    ]
    assert 1 <= len(ended) <= 11


class EvictingLife(Life):
    """`Life` where what may be shed may end at any time: each request still has one outcome."""

    def __init__(self) -> None:
        super().__init__()
        low = BandConfig(name="low", priority=-1, ceiling=0.5)
        self.bench = Bench("ab", queued_requests=4, ttl_s=6.0, hold_s=3.0, bands=(low,), evict_sheddable=True)


EvictingLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestEvictingLife = EvictingLife.TestCase
