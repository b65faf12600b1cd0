"""What the rate book learns, how fast, and what must not mislead it."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.latency.rates import LegTimes, RateBook
from beaconry.values.candidate import Candidate
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.request import Api, Request

ENDPOINT = Endpoint(name="a", host="h", port=1, model="m")
BASE_S, TOKEN_S, STEP_S, STEP_SEQ_S = 0.03, 1 / 30_000, 0.02, 0.0005
POSITIVE = st.floats(1e-6, 1e4)


def request(prompt=1000, output=50):
    return Request(id="r", model="m", api=Api.CHAT, arrived_s=0.0, prompt_tokens=prompt, output_tokens=output)


def candidate(endpoint=ENDPOINT, **fields):
    return Candidate(endpoint=endpoint, **fields)


def leg(uncached, batch, *, ahead=0, output=50, stalled=0, slow=1.0, late_s=0.0, in_flight=0):
    """A leg as the engine above would serve it."""
    return LegTimes(
        now_s=0.0,
        ttft_s=slow * (BASE_S + (uncached + ahead) * TOKEN_S) + late_s,
        decode_s=slow * ((output - 1) * (STEP_S + STEP_SEQ_S * batch) + stalled * TOKEN_S),
        uncached_tokens=uncached,
        tokens_ahead=ahead,
        in_flight=in_flight,
        batch=batch,
        output_tokens=output,
        prefilled_tokens=stalled,
    )


def taught(legs=300, seed=1):
    rates, rng = RateBook(), Random(seed)
    for _ in range(legs):
        rates.observe_end(
            ENDPOINT, leg(rng.choice((50, 200, 4000, 8000)), rng.randint(1, 16), stalled=rng.choice((0, 6000)))
        )
    return rates


def test_an_untaught_book_predicts_from_sensible_priors():
    prediction = RateBook().predict(request(), candidate())
    assert 0.01 < prediction.ttft_s < 1.0
    assert 0.005 < prediction.itl_s < 0.05
    assert prediction.decode_s == pytest.approx(50 * prediction.itl_s)


def test_prefill_rate_and_base_are_learnt():
    rates = taught().rates("default")
    assert rates.token_s == pytest.approx(TOKEN_S, rel=0.1)
    assert rates.base_s == pytest.approx(BASE_S, rel=0.15)


def test_itl_is_learnt_without_the_stalls_of_others_prefills():
    rates = taught().rates("default")
    assert rates.itl_s + 8 * rates.itl_batch_s == pytest.approx(STEP_S + 8 * STEP_SEQ_S, rel=0.1)


def test_twenty_legs_are_enough_to_come_near():
    rates = taught(legs=60).rates("default")
    assert rates.token_s == pytest.approx(TOKEN_S, rel=0.35)


def test_a_warm_cache_does_not_make_prefill_look_free():
    rates, rng = taught(), Random(2)
    for _ in range(20_000):
        rates.observe_end(ENDPOINT, leg(rng.randint(60, 120), 10, late_s=rng.uniform(-0.01, 0.03)))
    assert rates.rates("default").token_s == pytest.approx(TOKEN_S, rel=0.6)


def test_an_outlier_moves_little():
    rates = taught()
    before = rates.predict(request(), candidate()).ttft_s
    rates.observe_end(ENDPOINT, leg(1000, 8, late_s=500.0))
    assert rates.predict(request(), candidate()).ttft_s < 1.1 * before


def test_a_real_change_is_followed():
    rates, rng = taught(), Random(3)
    for _ in range(400):
        rates.observe_end(ENDPOINT, leg(rng.choice((50, 4000)), 8, slow=5.0))
    assert rates.predict(request(4000), candidate()).ttft_s == pytest.approx(5 * (BASE_S + 4000 * TOKEN_S), rel=0.35)


def test_one_slow_endpoint_gets_its_own_factor():
    rates, rng = taught(), Random(4)
    slow = Endpoint(name="slow", host="h", port=2, model="m")
    for _ in range(300):
        rates.observe_end(slow, leg(rng.choice((50, 4000)), 8, slow=2.0))
        for _ in range(3):
            rates.observe_end(ENDPOINT, leg(rng.choice((50, 4000)), 8))
    assert rates.factor("slow") / rates.factor("a") == pytest.approx(2.0, rel=0.25)
    assert rates.predict(request(), candidate(slow)).itl_s > 1.5 * rates.predict(request(), candidate()).itl_s
    rates.forget("slow")
    assert rates.factor("slow") == 1.0


def test_variants_do_not_mix():
    other = Endpoint(name="b", host="h", port=2, model="m", variant="other")
    assert taught().predict(request(), candidate(other)) == RateBook().predict(request(), candidate(other))


def test_first_bytes_teach_a_young_variant():
    rates = RateBook()
    for tokens in (50, 5000) * 15:
        rates.observe_first_token(ENDPOINT, ttft_s=BASE_S + tokens * TOKEN_S, tokens=tokens, in_flight=0, decoding=1)
    assert rates.rates("default").token_s == pytest.approx(TOKEN_S, rel=0.25)


def test_answers_that_are_no_streams_say_nothing_of_prefill():
    rates = RateBook()
    before = rates.rates("default")
    for _ in range(50):
        rates.observe_end(
            ENDPOINT, LegTimes(**{**{f: getattr(leg(100, 1), f) for f in LegTimes.__struct_fields__}, "ttft_s": None})
        )
    after = rates.rates("default")
    assert (after.base_s, after.token_s) == (before.base_s, before.token_s)


def test_places_are_learnt_from_an_engine_that_lets_requests_wait():
    rates = RateBook()
    rates.observe_sample(ENDPOINT, LoadSample(at_s=0.0, running=12, waiting=0))
    assert rates.rates("default").slots == float("inf")
    rates.observe_sample(ENDPOINT, LoadSample(at_s=1.0, running=16, waiting=3))
    assert rates.rates("default").slots == 16
    rates.observe_sample(ENDPOINT, LoadSample(at_s=2.0, running=20, waiting=None))
    assert rates.rates("default").slots == 20


def test_requests_that_wait_for_their_kv_teach_no_places():
    rates = RateBook()
    rates.observe_sample(ENDPOINT, LoadSample(at_s=0.0, running=1, waiting=2, deferred=2))
    assert rates.rates("default").slots == float("inf")
    rates.observe_sample(ENDPOINT, LoadSample(at_s=1.0, running=16, waiting=3, deferred=2))
    assert rates.rates("default").slots == 16


def test_places_are_learnt_from_first_bytes_that_came_late():
    rates = RateBook()
    rates.observe_first_token(ENDPOINT, ttft_s=0.05, tokens=100, in_flight=9, decoding=9)
    assert rates.rates("default").slots == float("inf")
    rates.observe_first_token(ENDPOINT, ttft_s=5.0, tokens=100, in_flight=30, decoding=16)
    assert rates.rates("default").slots == 16


def test_who_finds_no_place_waits_for_one():
    rates = taught()
    rates.observe_sample(ENDPOINT, LoadSample(at_s=0.0, running=16, waiting=1))
    free = rates.predict(request(), candidate(decoding=15))
    queued = rates.predict(request(), candidate(decoding=16, prefilling=15))
    assert free.wait_s == 0
    assert queued.wait_s == pytest.approx(16 * rates.rates("default").decode_s / 16, rel=0.1)


def test_nobody_waits_less_than_the_oldest_has():
    prediction = RateBook().predict(request(), candidate(prefilling=1, oldest_wait_s=7.0))
    assert prediction.wait_s == 7.0
    assert prediction.ttft_s > 7.0


def test_the_expected_output_is_the_usual_one_not_the_callers_cap():
    rates = taught()
    assert rates.predict(request(output=100_000), candidate()).decode_s < 100 * rates.rates("default").itl_s * 3
    assert rates.predict(request(output=1), candidate()).decode_s < 2 * rates.rates("default").itl_s + 0.01


@given(
    st.lists(
        st.tuples(POSITIVE, POSITIVE, st.integers(0, 200_000), st.integers(1, 500), st.integers(0, 500)), max_size=40
    )
)
def test_whatever_is_observed_predictions_stay_finite_and_positive(observations):
    rates = RateBook()
    for ttft_s, decode_s, tokens, batch, output in observations:
        rates.observe_first_token(ENDPOINT, ttft_s=ttft_s, tokens=tokens, in_flight=batch, decoding=batch)
        times = LegTimes(
            now_s=0.0, ttft_s=ttft_s, decode_s=decode_s, uncached_tokens=tokens, tokens_ahead=0, in_flight=0,
            batch=float(batch), output_tokens=output, prefilled_tokens=tokens,
        )  # fmt: skip
        rates.observe_end(ENDPOINT, times)
    p = rates.predict(request(), candidate(prefilling=3, decoding=20, prefill_tokens=5000))
    assert all(0 < t < 1e9 for t in (p.ttft_s, p.itl_s, p.decode_s))
