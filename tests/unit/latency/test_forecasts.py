"""Forecasts through a router's life: right after a hundred requests, ranges that hold, and a fallback that comes and goes."""

from itertools import islice
from random import Random

import pytest
from msgspec.structs import replace

from beaconry.config.gateway import GatewayConfig
from beaconry.engine_model.engine import Engine
from beaconry.engine_model.presets import variant
from beaconry.engine_model.values import EngineSettings
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.rates import RateBook
from beaconry.latency.track_record import Quantity
from beaconry.latency.variant_book import Raw, VariantBook
from beaconry.plugins.registry import Registry
from beaconry.router.caches import Caches
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.sim.fleet import Fleet
from beaconry.values.candidate import Candidate, Source
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.request import Api, Request, Usage
from beaconry.workload.arrivals import poisson
from beaconry.workload.plan import Plan
from beaconry.workload.synthetic import Bounds, Shape, conversations

PRESET = "qwen3-32b/h100x2"
ENDPOINT = Endpoint(name="a", host="h", port=1, model="m", variant=PRESET)
SHAPE = Shape(prompt_tokens=Bounds(low=50, high=4000), output_tokens=Bounds(low=20, high=300))


def request(number=0, *, prompt=1000, stream=True, **fields):
    return Request(
        id=str(number), model="m", api=Api.CHAT, arrived_s=0.0, prompt_tokens=prompt, stream=stream, **fields
    )


def candidate(endpoint=ENDPOINT, **fields):
    return Candidate(endpoint=endpoint, **fields)


def fleet(forecasts, rates, *, named=True, engines=2):
    router = Router(
        GatewayConfig(),
        scheduler=make_scheduler("expected-cost", rates, Registry.installed(), forecasts),
        caches=Caches(ApproximateIndex(), ExactIndex()),
        rates=rates,
        rng=Random(1),
        forecasts=forecasts,
    )
    names = [f"engine-{i}" for i in range(engines)]
    label = PRESET if named else "default"
    settings = EngineSettings(num_blocks=20_000, step_noise=0.03)
    return Fleet(
        [router],
        {name: Engine(settings, variant(PRESET).step_time(), rng=Random(i)) for i, name in enumerate(names)},
        {name: Endpoint(name=name, host="h", port=1, model="m", variant=label) for name in names},
    )


@pytest.mark.parametrize("named", [True, False])
def test_after_a_few_hundred_requests_ttft_is_right_and_its_range_holds(named):
    rates = RateBook()
    forecasts = Forecasts(rates)
    virtual = fleet(forecasts, rates, named=named)
    virtual.run(Plan(islice(conversations(SHAPE, poisson(6.0, Random(1)), Random(2)), 400)), until_s=1e6)
    virtual.check()
    (found,) = forecasts.statistics().values()
    shadow, closed = (found.accuracy[source, Quantity.TTFT] for source in (Source.SHADOW, Source.CLOSED_FORM))
    assert found.source is Source.SHADOW
    assert shadow.median_error < 0.05 < closed.median_error
    assert shadow.mape < 0.1
    assert shadow.coverage == pytest.approx(0.9, abs=0.05)
    assert found.accuracy[Source.SHADOW, Quantity.ITL].median_error < 0.2


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_the_ranges_hold_as_often_as_is_asked_for(coverage):
    rates = RateBook()
    forecasts = Forecasts(rates, coverage)
    virtual = fleet(forecasts, rates)
    virtual.run(Plan(islice(conversations(SHAPE, poisson(6.0, Random(1)), Random(2)), 400)), until_s=1e6)
    found = forecasts.statistics()[PRESET].accuracy[Source.SHADOW, Quantity.TTFT]
    assert found.coverage == pytest.approx(coverage, abs=0.03)
    assert forecasts.forecast(request(), candidate(), 1e6).tail == pytest.approx(1.0 - coverage)


class Kept(Forecasts):
    """Keeps the ITL that was to be expected beside the one that came."""

    def __init__(self, rates):
        super().__init__(rates)
        self.expected, self.came, self.first = {}, {}, {}

    def dispatched(self, leg, request, candidate, now_s):
        self.expected[leg] = self.forecast(request, candidate, now_s).itl_mean_s
        super().dispatched(leg, request, candidate, now_s)

    def first_byte(self, leg, now_s):
        self.first[leg] = now_s
        super().first_byte(leg, now_s)

    def ended(self, leg, usage, now_s, *, finished):
        self.came[leg] = (now_s - self.first[leg]) / (usage.completion_tokens - 1)
        super().ended(leg, usage, now_s, finished=finished)


def test_replies_are_slowed_down_by_prompts_yet_to_come_as_much_as_expected():
    rates = RateBook()
    kept = Kept(rates)
    virtual = fleet(kept, rates)
    virtual.run(Plan(islice(conversations(SHAPE, poisson(7.0, Random(1)), Random(2)), 900)), until_s=1e6)
    (book,) = kept.statistics().values()
    legs = sorted(kept.came)[100:800]
    expected, came = (sum(times[leg] for leg in legs) for times in (kept.expected, kept.came))
    alone_s = book.steps.seconds(8, 8 * 2000, 0, 0.0)
    assert came / len(legs) > 1.5 * alone_s  # what each batch costs by itself is no answer
    assert expected == pytest.approx(came, rel=0.05)


def test_an_engine_s_own_speed_is_learnt_from_its_replies():
    """One of two equal engines is slow, and hardly used for it."""
    rates = RateBook()
    forecasts = Forecasts(rates)
    for number in range(60):
        for name, slow in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
            leg, now_s = 10 * number + ord(name), 10.0 * number
            forecasts.dispatched(leg, request(leg), candidate(replace(ENDPOINT, name=name)), now_s)
            forecasts.first_byte(leg, now_s + slow * 0.05)
            usage = Usage(prompt_tokens=1000, completion_tokens=101, cached_tokens=0)
            forecasts.ended(leg, usage, now_s + slow * 1.55, finished=True)
    quick, slow = (
        forecasts.forecast(request(), candidate(replace(ENDPOINT, name=name)), 1e4).itl_s for name in ("a", "b")
    )
    assert slow / quick == pytest.approx(2.0, rel=0.1)


def serve(forecasts, number, now_s, ttft_s):
    """One request on an idle engine; the time at which it ended."""
    forecasts.dispatched(number, request(number), candidate(), now_s)
    forecasts.first_byte(number, now_s + ttft_s)
    end_s = now_s + ttft_s + 0.5
    usage = Usage(prompt_tokens=1000, completion_tokens=20, cached_tokens=0)
    forecasts.ended(number, usage, end_s, finished=True)
    forecasts.check()
    return end_s


def test_nothing_is_followed_before_somebody_has_an_objective():
    forecasts = Forecasts(RateBook(), idle=True)
    serve(forecasts, 1, 0.0, 0.2)
    assert forecasts.statistics() == {}
    forecasts.dispatched(2, request(2), candidate(), 1.0)
    forecasts.dispatched(3, replace(request(3), slo_ttft_s=1.0), candidate(), 1.5)
    assert len(forecasts.statistics()) == 1
    forecasts.first_byte(2, 1.6)
    forecasts.ended(2, None, 1.7, finished=False)  # it was there before: unknown, and no harm
    forecasts.check()
    forecasts.ended(3, None, 1.8, finished=False)
    serve(forecasts, 4, 2.0, 0.2)


@pytest.mark.parametrize(("per_s", "taught_per_s"), [(5, 5), (10, 10), (500, 10)])
def test_of_many_legs_a_second_some_teach_and_all_are_judged(per_s, taught_per_s):
    book = VariantBook("v", 0.9)
    for number in range(300):  # settled
        book.teaches(number)
    taught = 0
    for number in range(10 * per_s):
        now_s = 1000.0 + number / per_s
        teaches = book.teaches(now_s)
        taught += teaches
        book.judge_ttft(book.foresee(Raw(0.1, 0, 0.02, 0.02, 100)), None, 0.1, teaches=teaches)
    assert taught == pytest.approx(10 * taught_per_s, abs=taught_per_s)
    assert book.statistics().accuracy[Source.SHADOW, Quantity.TTFT].outcomes == 10 * per_s


def test_an_engine_beyond_prediction_is_forecast_by_the_closed_form_or_nobody_and_again_when_it_calms_down():
    forecasts, rng, now_s = Forecasts(RateBook()), Random(1), 0.0
    for number in range(100):
        now_s = serve(forecasts, number, now_s, 0.1)
    assert forecasts.forecast(request(), candidate(), now_s).source is Source.SHADOW
    for number in range(100):
        now_s = serve(forecasts, number, now_s, rng.choice((0.02, 0.1, 2.0, 20.0)))
    assert forecasts.forecast(request(), candidate(), now_s).source is not Source.SHADOW
    assert forecasts.statistics()[PRESET].fallbacks >= 1
    for number in range(300):
        now_s = serve(forecasts, number, now_s, 0.1)
    assert forecasts.forecast(request(), candidate(), now_s).source is Source.SHADOW


def test_the_first_legs_of_an_engine_teach_nothing():
    forecasts = Forecasts(RateBook())
    now_s = 0.0
    for number in range(3):
        now_s = serve(forecasts, number, now_s, 30.0)  # graphs are captured
    found = forecasts.statistics()[PRESET]
    assert found.lessons == 0
    assert found.accuracy[Source.SHADOW, Quantity.TTFT].outcomes == 0


def test_the_strictest_objective_running_there_is_told_until_it_is_gone():
    forecasts = Forecasts(RateBook())
    assert forecasts.forecast(request(), candidate(), 0.0).strictest_itl_s is None
    forecasts.dispatched(1, request(1, slo_itl_s=0.05), candidate(), 0.0)
    forecasts.dispatched(2, request(2, slo_itl_s=0.02), candidate(), 0.0)
    assert forecasts.forecast(request(), candidate(), 0.0).strictest_itl_s == 0.02
    forecasts.ended(2, None, 1.0, finished=False)
    assert forecasts.forecast(request(), candidate(), 1.0).strictest_itl_s == 0.05


def test_scrapes_cost_nothing_until_somebody_has_an_objective_and_then_the_latest_one_counts_at_once():
    forecasts = Forecasts(RateBook(), idle=True)
    busy = LoadSample(at_s=0.0, running=60, waiting=0)
    for _ in range(5):
        forecasts.sampled(ENDPOINT, busy)
    assert forecasts.statistics() == {}
    alone_s = Forecasts(RateBook()).forecast(request(), candidate(), 0.0).itl_s
    strict = request(slo_itl_s=0.1)
    assert forecasts.forecast(strict, candidate(sample=busy), 0.0).itl_s > 1.1 * alone_s
    for at_s in range(1, 4):
        forecasts.sampled(ENDPOINT, LoadSample(at_s=at_s, running=0, waiting=0))
    assert forecasts.forecast(strict, candidate(), 4.0).itl_s == pytest.approx(alone_s)


def test_a_reply_is_counted_as_cached_in_the_next_turn_once_the_engine_has_reported_such():
    forecasts = Forecasts(RateBook())
    first = request(0, prompt=1280, prefix=tuple(range(20)))
    further = request(0, prompt=3000, prefix=tuple(range(46)))
    follows = candidate(matched_tokens=1280)

    def take(leg, wanted, where, cached, now_s):
        forecasts.dispatched(leg, wanted, where, now_s)
        forecasts.first_byte(leg, now_s + 0.2)
        usage = Usage(prompt_tokens=wanted.prompt_tokens, completion_tokens=800, cached_tokens=cached)
        forecasts.ended(leg, usage, now_s + 5.0, finished=True)

    take(1, first, candidate(), 0, 0.0)
    before_s = forecasts.forecast(further, follows, 9.0).ttft_s
    take(2, further, follows, 2080, 10.0)
    take(3, first, candidate(), 0, 20.0)
    assert forecasts.forecast(further, follows, 29.0).ttft_s < 0.8 * before_s
    told = candidate(matched_tokens=1280, exact=True)  # by events, which name replies too
    assert forecasts.forecast(further, told, 29.0).ttft_s > 0.8 * before_s


def test_sequences_of_others_count_once_three_scrapes_agree():
    forecasts = Forecasts(RateBook())
    plain_s = forecasts.forecast(request(), candidate(), 0.0).itl_s
    for at_s in range(2):
        forecasts.sampled(ENDPOINT, LoadSample(at_s=at_s, running=60, waiting=0))
    assert forecasts.forecast(request(), candidate(), 0.0).itl_s == plain_s
    forecasts.sampled(ENDPOINT, LoadSample(at_s=2, running=60, waiting=0))
    assert forecasts.forecast(request(), candidate(), 0.0).itl_s > plain_s


def test_a_request_that_does_not_stream_takes_its_part_of_the_engine_and_is_not_judged():
    forecasts = Forecasts(RateBook())
    forecasts.dispatched(1, request(1, prompt=20_000, stream=False), candidate(), 0.0)
    busy_s = forecasts.forecast(request(), candidate(), 0.01).ttft_s
    assert busy_s > 3 * Forecasts(RateBook()).forecast(request(), candidate(), 0.01).ttft_s
    forecasts.first_byte(1, 9.0)
    forecasts.ended(1, Usage(prompt_tokens=20_000, completion_tokens=50), 9.0, finished=True)
    forecasts.check()
    assert forecasts.statistics()[PRESET].accuracy[Source.SHADOW, Quantity.TTFT].outcomes == 0


def test_a_forgotten_endpoint_starts_anew_and_its_late_legs_change_nothing():
    forecasts = Forecasts(RateBook())
    for number in range(5):
        forecasts.dispatched(number, request(number, prompt=8000), candidate(), 0.0)
    forecasts.forget("a")
    forecasts.first_byte(0, 1.0)
    forecasts.ended(1, None, 1.0, finished=False)
    forecasts.check()
    assert forecasts.forecast(request(), candidate(), 1.0) == Forecasts(RateBook()).forecast(
        request(), candidate(), 1.0
    )


@pytest.mark.parametrize("seed", range(8))
def test_engines_that_take_no_time_or_lie_break_nothing(seed):
    """Answers at once, in any order, of any length, with and without usage."""
    rng, forecasts, now_s = Random(seed), Forecasts(RateBook()), 0.0
    without, streaming = set(), set()
    for number in range(1500):
        now_s += rng.choice((0.0, 1e-6, 1e-4, 1e-3))
        if rng.random() < 0.4:
            wanted = request(number, prompt=rng.choice((0, 1, 20, 300)), stream=rng.random() < 0.7)
            forecasts.dispatched(number, wanted, candidate(), now_s)
            without.add(number)
        elif without and rng.random() < 0.5:
            forecasts.first_byte(leg := without.pop(), now_s)
            streaming.add(leg)
        elif streaming:
            usage = Usage(prompt_tokens=20, completion_tokens=rng.choice((1, 2, 200)), cached_tokens=0)
            known = usage if rng.random() < 0.9 else None
            forecasts.ended(streaming.pop(), known, now_s, finished=rng.random() < 0.9)
        forecasts.check()
        found = forecasts.forecast(request(), candidate(), now_s)
        assert 0 < found.ttft_low_s <= found.ttft_s <= found.ttft_high_s < 1e6
        assert 0 < found.itl_low_s <= found.itl_s <= found.itl_high_s < 1e6
