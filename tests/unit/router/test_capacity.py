"""What an engine has room for: what its metrics say, corrected by our own legs, and never a guess where nothing is known."""

from math import inf

import pytest

from beaconry.config.gateway import Health
from beaconry.flowcontrol.demand import Claim
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.latency.rates import RateBook
from beaconry.router.capacity import Capacity
from beaconry.router.member import Ahead, Member
from beaconry.values.endpoint import LoadSample
from tests.unit.router.made import endpoint
from tests.unit.router.test_shortlist import Work

BLOCKS, BLOCK_TOKENS = 1000, 16
TOKENS = BLOCKS * BLOCK_TOKENS


def known(rates: RateBook | None = None, index: ApproximateIndex | None = None) -> Capacity:
    return Capacity(rates or RateBook(), index or ApproximateIndex())


def sample(running: int, waiting: int = 0, usage: float = 0.0) -> LoadSample:
    return LoadSample(
        at_s=0.0, running=running, waiting=waiting, kv_usage=usage, kv_blocks=BLOCKS, block_tokens=BLOCK_TOKENS
    )


def members(*prompts: list[int], began_s: float = 0.0) -> list[Member]:
    """Endpoints that decode such prompts since then."""
    made = []
    for number, tokens in enumerate(prompts):
        member = Member(endpoint("abc"[number]), Health())
        for leg, one in enumerate(tokens):
            work = Work(100 * number + leg, one)
            member.dispatch(work)
            member.first_byte(work, began_s)
        made.append(member)
    return made


def test_what_is_unknown_does_not_bind():
    capacity, (member,) = known(), members([500] * 100)
    assert capacity.places_left(member, 0.0) == capacity.tokens_left(member, 0.0) == inf
    assert capacity.fits(member, 1e9, 0.0)


def test_memory_is_what_the_engine_says_less_our_prompts_and_answers_and_one_answer_more():
    rates = RateBook()
    capacity, (member,) = known(rates), members([1000, 3000])
    capacity.sampled(member, sample(2, usage=0.25), 0.0)
    expected = TOKENS - 4000 - rates.output_tokens("default")
    assert capacity.tokens_left(member, 0.0) == pytest.approx(expected)
    grown = 2 * 3.0 / rates.itl_s(member.endpoint, 2)
    assert capacity.tokens_left(member, 3.0) == pytest.approx(expected - grown)


def test_blocks_that_requests_share_count_once():
    index = ApproximateIndex()
    capacity, (member,) = known(index=index), members([0, 0])
    for tail in (3, 4):
        index.routed("a", (1, 2, tail))
    capacity.sampled(member, sample(2, usage=4 * 64 / TOKENS), 0.0)
    assert capacity.tokens_left(member, 0.0) == pytest.approx(TOKENS - 4 * 64 - RateBook().output_tokens("default"))


def test_requests_of_others_show_in_the_engines_usage_while_it_is_fresh():
    capacity, (member,) = known(), members([1000])
    for _ in range(30):
        capacity.sampled(member, sample(5, usage=5000 / TOKENS), 0.0)
    output = RateBook().output_tokens("default")
    assert capacity.tokens_left(member, 0.0) == pytest.approx(TOKENS - 5000 - output, rel=0.01)
    assert capacity.tokens_left(member, 60.0) > TOKENS - 5000 - output - 60 / 0.015  # who else was there is long ago


def test_answers_that_grow_slower_than_expected_show_in_the_engines_usage():
    rates = RateBook()
    capacity, (member,) = known(rates), members([1000] * 4)
    grown = 4 * 30.0 / rates.itl_s(member.endpoint, 4)
    for _ in range(30):
        capacity.sampled(member, sample(4, usage=(4000 + grown / 2) / TOKENS), 30.0)
    expected = TOKENS - 4000 - grown / 2 - rates.output_tokens("default")
    assert capacity.tokens_left(member, 30.0) == pytest.approx(expected, rel=0.01)


def test_room_comes_as_what_decodes_there_ends():
    rates = RateBook()
    capacity, (member,) = known(rates), members([3000] * 5)
    capacity.sampled(member, sample(5, usage=15_000 / TOKENS), 0.0)
    left = capacity.tokens_left(member, 0.0)
    assert capacity.room_s(member, None, left, 0.0) == 0.0
    one_end_s = rates.next_end_s(member.endpoint, 5)
    assert capacity.room_s(member, None, left + 3000, 0.0) == pytest.approx(one_end_s)
    assert capacity.room_s(member, None, left + 6000, 0.0) == pytest.approx(2 * one_end_s)
    gone = Ahead(prefilling=0, prefill_tokens=0, oldest_wait_s=0.0, freed_requests=1, freed_tokens=6000)
    assert capacity.room_s(member, gone, left + 6000, 0.0) == 0.0


def filled(capacity: Capacity, member: Member, places: int) -> None:
    """It shows how many it runs: one waits for longer than any prefill takes."""
    waiting = Work(999, 10)
    member.dispatch(waiting)
    for second in range(3):
        capacity.sampled(member, sample(places, waiting=1), 10.0 + second)
    member.end(waiting, 13.0)


def test_places_show_in_requests_that_wait_while_the_same_number_runs():
    capacity, (member,) = known(), members([10] * 8, began_s=10.0)
    filled(capacity, member, 8)
    assert capacity.places_left(member, 13.0) == 0
    assert not capacity.fits(member, 10.0, 13.0)


def test_waiting_for_memory_tells_nothing_of_places():
    capacity, (member,) = known(), members([1900] * 8, began_s=10.0)
    filled(capacity, member, 8)
    assert capacity.places_left(member, 13.0) == inf


@pytest.mark.parametrize(
    ("claimed", "open_to_lower"), [(1, {"a", "b"}), (2, {"a", "b"}), (3, set())], ids=["little", "just enough", "all"]
)
def test_lower_bands_may_take_what_leaves_room_for_the_claim_somewhere(claimed: int, open_to_lower: set[str]):
    """Forty-eight places on two engines, three of them free."""
    capacity = known()
    busy = members([10] * 24, [10] * 24, began_s=10.0)
    for member, ending in zip(busy, (2, 1), strict=True):
        filled(capacity, member, 24)
        for leg in list(member.decoding.values())[:ending]:
            member.end(leg, 13.0)
    claim = Claim(claimed, 10.0, 10.0)
    assert capacity.leaving(claim, busy, zip(busy, [10.0, 10.0], strict=True), 13.0) == open_to_lower


def test_a_claim_takes_an_eighth_of_all_room_at_most_so_lower_bands_cannot_starve():
    capacity, (member,) = known(), members([10] * 16, began_s=10.0)
    filled(capacity, member, 16)
    for leg in list(member.decoding.values())[:12]:
        member.end(leg, 13.0)
    claim = Claim(1000, 10.0, 1e9)
    assert capacity.leaving(claim, [member], zip([member], [10.0], strict=True), 13.0) == {"a"}


def test_nothing_is_kept_free_where_nobody_runs():
    capacity, (single, other) = known(), members([10], [10], began_s=10.0)
    claim = Claim(1, 10.0, 8000.0)
    for member in (single, other):
        filled(capacity, member, 1)
        for leg in list(member.decoding.values()):
            member.end(leg, 13.0)
    assert capacity.leaving(claim, [single], zip([single], [10.0], strict=True), 40.0) == {"a"}
    assert capacity.leaving(claim, [single], zip([single], [15_000.0], strict=True), 40.0) == {"a"}
    assert capacity.leaving(claim, [single, other], zip([single, other], [10.0, 10.0], strict=True), 40.0) == {"a", "b"}
    single.dispatch(Work(1, 10))
    assert capacity.leaving(claim, [single, other], zip([single, other], [10.0, 10.0], strict=True), 40.0) == set()


def test_what_is_left_for_the_claim_follows_each_leg_and_scrape_at_once():
    capacity, (member, other) = known(), members([10] * 24, [10] * 24, began_s=10.0)
    for one in (member, other):
        filled(capacity, one, 24)
    claim = Claim(1, 10.0, 10.0)

    def is_left() -> bool:
        return bool(capacity.leaving(claim, [member, other], [(member, 10.0)], 13.0))

    first, second = list(member.decoding.values())[:2]
    last = Work(1000, 10)
    assert not is_left()
    member.end(first, 13.0)
    assert not is_left()  # the only place
    member.end(second, 13.0)
    assert is_left()
    member.dispatch(last)
    assert not is_left()
    member.first_byte(last, 13.0)
    member.end(last, 13.0)
    assert is_left()
    capacity.sampled(member, sample(22, waiting=9), 13.0)  # strangers came
    assert not is_left()


def test_the_last_place_for_a_large_request_is_kept():
    capacity = known()
    roomy, tight = members([10], [12_000])
    for member, usage in ((roomy, 10), (tight, 12_000)):
        capacity.sampled(member, sample(1, usage=usage / TOKENS), 0.0)
    claim = Claim(1, 100.0, 4000.0)
    assert capacity.leaving(claim, [roomy, tight], zip([roomy, tight], [13_000.0, 1000.0], strict=True), 0.0) == {"b"}
    assert capacity.leaving(claim, [roomy, tight], zip([roomy, tight], [5000.0, 1000.0], strict=True), 0.0) == {
        "a",
        "b",
    }
