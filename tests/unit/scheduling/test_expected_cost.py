"""The default policy, one decision at a time: what each part of the cost is there for."""

from random import Random

import pytest
from msgspec import structs

from beaconry.latency.rates import RateBook
from beaconry.scheduling.expected_cost import ExpectedCost
from beaconry.values.candidate import Candidate, Prediction
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.request import Api, Request
from beaconry.values.stage import Stage

REQUEST = Request(id="r", model="m", api=Api.CHAT, arrived_s=0.0, prompt_tokens=6000, output_tokens=50)


def candidate(name, **fields):
    return Candidate(endpoint=Endpoint(name=name, host="h", port=1, model="m"), **fields)


def rates_with(slots):
    """A book that has seen an engine full at `slots`."""
    rates = RateBook()
    rates.observe_sample(candidate("x").endpoint, LoadSample(at_s=0.0, running=slots, waiting=1))
    return rates


class TwoSpeeds:
    """Half a second of decode on the endpoint "fast", one and a half on any other; a wait of `wait_s` at the fast one."""

    def __init__(self, wait_s):
        self.wait_s = wait_s

    def predict(self, request, candidate):
        fast = candidate.endpoint.name == "fast"
        wait_s = self.wait_s if fast else 0.0
        decode_s = 0.5 if fast else 1.5
        return Prediction(ttft_s=wait_s + 0.04, wait_s=wait_s, itl_s=0.01, decode_s=decode_s, token_s=1e-5)


def choose(candidates, rates=None, request=REQUEST):
    ranking = ExpectedCost(rates or RateBook()).rank(request, candidates, 0.0, Random(1))
    return candidates[ranking.winner].endpoint.name


def test_a_new_prompt_goes_where_least_waits():
    assert choose([candidate("busy", prefilling=2, prefill_tokens=8000), candidate("idle")]) == "idle"


def test_a_follow_up_stays_with_its_holder_though_others_are_idle():
    assert choose([candidate("holder", decoding=12, matched_tokens=5900), candidate("idle")]) == "holder"


def test_among_holders_the_least_busy_is_taken():
    busy = candidate("busy", decoding=12, matched_tokens=5900)
    assert choose([busy, candidate("calm", decoding=3, matched_tokens=5900)]) == "calm"


def test_a_saturated_holder_is_left():
    full = candidate("full", prefilling=80, decoding=16, matched_tokens=5900)
    assert choose([full, candidate("idle")], rates_with(16)) == "idle"


def test_a_holder_that_hangs_is_left():
    hung = candidate("hung", prefilling=1, matched_tokens=5900, oldest_wait_s=30.0)
    assert choose([hung, candidate("idle")]) == "idle"


@pytest.mark.parametrize(("wait_s", "chosen"), [(0.0, "fast"), (0.1, "fast"), (0.4, "slow")])
def test_a_faster_endpoint_is_worth_a_short_wait_and_no_long_one(wait_s, chosen):
    assert choose([candidate("fast"), candidate("slow")], TwoSpeeds(wait_s)) == chosen


def test_a_placement_that_evicts_what_others_need_costs_more():
    full = candidate("full", displaced_tokens=6000.0)
    assert choose([full, candidate("roomy", decoding=2)]) == "roomy"


def test_those_who_wait_for_a_prefix_share_the_price_of_its_copy():
    alone = candidate("holder", prefilling=25, decoding=16, matched_tokens=5900, sharers=0)
    hot = candidate("holder", prefilling=25, decoding=16, matched_tokens=5900, sharers=30)
    other = candidate("other", decoding=16)
    assert choose([alone, other], rates_with(16)) == "holder"
    assert choose([hot, other], rates_with(16)) == "other"


def test_a_shared_system_prompt_does_not_hold_new_conversations_together():
    request = Request(id="r", model="m", api=Api.CHAT, arrived_s=0.0, prompt_tokens=2000, output_tokens=50)
    everywhere = [candidate(f"e{i}", decoding=12 - i, matched_tokens=800) for i in range(4)]
    assert choose(everywhere, request=request) == "e3"


def test_a_prefix_held_by_one_of_idle_endpoints_decides():
    candidates = [candidate(f"e{i}", matched_tokens=2000 if i == 2 else 0) for i in range(4)]
    assert choose(candidates) == "e2"


def test_equal_candidates_are_taken_by_chance():
    rng, policy = Random(1), ExpectedCost(RateBook())
    candidates = [candidate("a"), candidate("b"), candidate("c")]
    assert {policy.rank(REQUEST, candidates, 0.0, rng).winner for _ in range(50)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("matched", "why"),
    [((0, 0), "nobody holds"), ((0, 5900), "at a holder"), ((5900, 0), "at a holder")],
)
def test_the_reason_says_whether_the_prefix_was_followed(matched, why):
    candidates = [candidate(f"e{i}", matched_tokens=m) for i, m in enumerate(matched)]
    assert why in ExpectedCost(RateBook()).rank(REQUEST, candidates, 0.0, Random(1)).why


def decode(name, held, fetch_token_s, **fields):
    """An endpoint for a prompt that is computed elsewhere: it holds `held` tokens and fetches the rest."""
    fetched = REQUEST.prompt_tokens - 1 - held
    return candidate(
        name,
        stage=Stage.DECODE,
        matched_tokens=held,
        fetched_tokens=fetched,
        load_s=fetched * fetch_token_s,
        **fields,
    )


def test_an_answer_goes_to_the_smaller_batch_unless_fetching_costs_more():
    full = {"decoding": 20}
    assert choose([decode("holder", 5000, 1e-6, **full), decode("calm", 0, 1e-6)]) == "calm"
    assert choose([decode("holder", 5000, 1e-3, **full), decode("calm", 0, 1e-3)]) == "holder"


def test_of_equal_batches_the_one_that_fetches_least_is_taken():
    assert choose([decode("none", 0, 1e-6), decode("most", 5000, 1e-6), decode("some", 640, 1e-6)]) == "most"


def test_an_answer_pays_for_what_it_takes_from_everybody_there():
    candidates = [decode("a", 0, 0.0, decoding=10), decode("b", 0, 0.0)]
    ranking = ExpectedCost(RateBook()).rank(REQUEST, candidates, 0.0, Random(1))
    per_sequence_s = RateBook().rates("default").itl_batch_s
    assert ranking.rows[0][2] == pytest.approx(10 * REQUEST.output_tokens * per_sequence_s)
    assert ranking.rows[1][2] == 0.0
    assert ranking.terms == ("ttft", "decode", "others")


def test_a_prefill_leg_has_no_price_for_an_answer():
    prompt = structs.replace(REQUEST, output_tokens=0)
    candidates = [candidate("a", stage=Stage.PREFILL), candidate("b", stage=Stage.PREFILL)]
    ranking = ExpectedCost(RateBook()).rank(prompt, candidates, 0.0, Random(1))
    assert {row[1] for row in ranking.rows} == {0.0}
