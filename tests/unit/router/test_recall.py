"""What a lower band has waiting for prefill gives way to a higher one, and loses nothing but time."""

import pytest

from beaconry.config.flow import BandConfig
from beaconry.router.effects import Answer, CancelLeg, Effect, Ended, StartLeg
from beaconry.router.exchange import RECALLS
from beaconry.router.facts import ClientLeft, LegFinished, LegStarted, LoadSampled
from beaconry.values.endpoint import LoadSample
from beaconry.values.outcome import Outcome
from beaconry.values.request import Usage
from tests.unit.router.test_admission import Bench, outcomes

PREFIX = tuple(range(30))
BLOCK_TOKENS = 64


def kinds(effects: list[Effect]) -> list[tuple[type, str]]:
    return [(type(effect), effect.request_id) for effect in effects]


def leg_of(effects: list[Effect]) -> int:
    (start,) = (effect for effect in effects if isinstance(effect, StartLeg))
    return start.leg


class Contest(Bench):
    """One engine, both bands known, and a long prompt of the lower one in prefill since a tenth of a second."""

    def __init__(self, **knobs: object) -> None:
        super().__init__("a", **knobs)
        for name, priority in (("first low", 0), ("first high", 1)):
            leg = leg_of(self.arrive(name, prompt_tokens=10, priority=priority))
            self.tell(LegStarted(leg))
            self.tell(LegFinished(leg, 200, Usage(prompt_tokens=10, completion_tokens=1)))
        self.low = leg_of(self.arrive("low", prefix=PREFIX, block_tokens=BLOCK_TOKENS))
        self.now_s += 0.1

    def high(self, name: str = "high", **fields: object) -> list[Effect]:
        return self.arrive(name, **{"priority": 1, "prompt_tokens": 500, **fields})


def test_it_is_taken_back_and_goes_on_once_the_higher_one_has_its_first_byte():
    contest = Contest()
    effects = contest.high()
    assert kinds(effects) == [(CancelLeg, "low"), (StartLeg, "high")]
    assert contest.router.statistics(contest.now_s).recalls == 1
    (again,) = contest.tell(LegStarted(leg_of(effects)), after_s=0.25)
    assert again.request_id == "low"
    assert (again.decision.queued_s, again.decision.waited_for) == (pytest.approx(0.25), "recalled")
    contest.tell(LegStarted(again.leg), after_s=0.1)
    (ended,) = contest.tell(LegFinished(again.leg, 200, Usage(prompt_tokens=2000, completion_tokens=5)))
    assert (ended.outcome, ended.attempts) == (Outcome.COMPLETED, 1)


def test_what_was_computed_counts_as_cached_where_it_was():
    contest = Contest()
    computed_tokens = 0.1 / 1e-4  # by the rates believed at the start
    effects = contest.high()
    (again,) = contest.tell(LegStarted(leg_of(effects)), after_s=0.25)
    (candidate,) = again.decision.candidates
    assert candidate.matched_tokens == pytest.approx(computed_tokens, abs=BLOCK_TOKENS)
    assert 0 < candidate.matched_tokens < 2000


@pytest.mark.parametrize(
    ("knobs", "fields"),
    [({"recall": False}, {}), ({}, {"priority": 0}), ({}, {"priority": -1}), ({"enabled": False}, {})],
    ids=["turned off", "same band", "lower band", "no flow control"],
)
def test_nothing_is_taken_back_for(knobs: dict[str, bool], fields: dict[str, int]):
    contest = Contest(**knobs)
    assert not any(isinstance(effect, CancelLeg) for effect in contest.high(**fields))


def test_without_flow_control_nothing_is_taken_back_however_full_the_engine_is():
    contest = Contest(enabled=False)
    full = LoadSample(at_s=contest.now_s, running=1, kv_usage=1.0, kv_blocks=10, block_tokens=16)
    contest.tell(LoadSampled("a", full))
    for name in ("high", "higher"):
        assert kinds(contest.high(name)) == [(StartLeg, name)]


def test_who_has_a_first_byte_stays():
    contest = Contest()
    contest.tell(LegStarted(contest.low))
    assert kinds(contest.high()) == [(StartLeg, "high")]


def test_who_would_be_done_within_a_step_stays_where_there_is_room():
    contest = Contest()
    contest.tell(LegStarted(contest.low))
    contest.arrive("short", prompt_tokens=50)
    assert kinds(contest.high()) == [(StartLeg, "high")]


def test_who_is_taken_back_stays_first_of_its_flow_and_pays_once():
    contest = Contest(bands=(BandConfig(name="d", priority=0, fairness="least-attained"),))
    charged = contest.router._exchanges["low"].ticket.charged
    assert charged > 0
    for name in ("later", "latest"):
        assert contest.arrive(name) == []
    effects = contest.high(prompt_tokens=1500)
    starts = [
        effect for effect in contest.tell(LegStarted(leg_of(effects)), after_s=0.25) if isinstance(effect, StartLeg)
    ]
    assert starts[0].request_id == "low"
    assert contest.router._exchanges["low"].ticket.charged < charged + 1  # less: part of the prompt is cached by now


def test_its_time_to_live_stands_still_while_it_is_away_and_is_never_too_short_to_be_sent_again():
    contest = Contest(ttl_s=1.0)
    effects = contest.high()
    assert contest.wake_s <= 1.0 + 0.1
    while contest.now_s < 1.0:
        effects = contest.timer()
        if effects:
            break
    assert contest.now_s == pytest.approx(1.0 + 0.1)  # it waited 0.1 s less
    assert outcomes(effects) == {"low": Outcome.QUEUE_EXPIRED}


def test_nobody_is_sent_and_taken_back_for_ever():
    contest = Contest()
    leg = None
    for number in range(RECALLS):
        effects = contest.high(f"high {number}")
        assert kinds(effects) == [(CancelLeg, "low"), (StartLeg, f"high {number}")]
        (again,) = contest.tell(LegStarted(leg_of(effects)), after_s=0.25)
        assert again.request_id == "low"
        leg = again.leg
        contest.now_s += 0.01
    assert kinds(contest.high("one too many")) in ([], [(StartLeg, "one too many")])
    (ended,) = contest.tell(LegFinished(leg, 200, Usage(prompt_tokens=2000, completion_tokens=5)))[:1]
    assert ended.request_id == "low"


def test_a_client_that_leaves_meanwhile_leaves_nothing_behind():
    contest = Contest()
    effects = contest.high()
    assert outcomes(contest.tell(ClientLeft("low"))) == {"low": Outcome.CLIENT_GONE}
    assert contest.tell(LegStarted(contest.low)) == []  # late news of the leg that was cancelled
    contest.tell(LegStarted(leg_of(effects)))
    assert outcomes(contest.tell(LegFinished(leg_of(effects), 200))) == {"high": Outcome.COMPLETED}
    assert contest.router.statistics(contest.now_s).in_flight == 0


def test_of_two_in_prefill_what_the_first_has_computed_is_kept():
    contest = Contest()
    contest.tell(LegStarted(contest.low))
    contest.arrive("before", prefix=(100, 101), prompt_tokens=2 * BLOCK_TOKENS, block_tokens=BLOCK_TOKENS)
    contest.arrive("behind", prompt_tokens=10)
    contest.now_s += 0.1
    assert kinds(contest.high())[:2] == [(CancelLeg, "behind"), (CancelLeg, "before")]
    assert contest.router._caches.approximate.match((100, 101))["a"].blocks == 2


def test_where_the_queue_has_no_room_for_it_it_stays_with_its_engine():
    contest = Contest(queued_tokens=1999)
    assert kinds(contest.high()) == [(StartLeg, "high")]
    (lane,) = contest.router._admission.queue._lanes.values()
    assert list(lane.bands) == [0], "no band is left behind"


def test_who_leaves_after_it_was_taken_back_has_paid_nothing():
    contest = Contest(bands=(BandConfig(name="d", priority=0, fairness="least-attained"),))
    contest.high(prompt_tokens=1500)
    ticket = contest.router._exchanges["low"].ticket
    assert ticket.waiting
    assert ticket.charged > 0
    contest.tell(ClientLeft("low"))
    assert ticket.charged == 0


def test_in_a_full_queue_who_came_last_of_its_band_gives_way_to_who_is_taken_back():
    contest = Contest(queued_requests=2)
    assert contest.arrive("second") == contest.arrive("third") == []
    effects = contest.high(prompt_tokens=1500)
    assert kinds(effects) == [(CancelLeg, "low"), (Answer, "third"), (Ended, "third"), (StartLeg, "high")]
    assert outcomes(effects) == {"third": Outcome.DISPLACED}


def test_what_is_sent_again_is_one_request_for_those_that_keep_room():
    def pace_per_s(prompt_tokens: int, *, again: bool) -> float:
        contest = Contest()
        effects = contest.high(prompt_tokens=prompt_tokens)
        assert (kinds(effects)[-1] == (StartLeg, "low")) == again
        return contest.router._admission.queue.lane("m").demand._pace.per_s(contest.now_s)

    assert pace_per_s(10, again=True) == pace_per_s(1500, again=False)
