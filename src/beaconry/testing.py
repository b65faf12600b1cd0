"""Contract suites for plugins: call one with your plugin in a test of your own, and it says what breaks the contract.

    from beaconry.testing import check_scorer
    def test_my_scorer_keeps_its_contract():
        check_scorer(MyScorer())

Each suite runs the plugin on a few hundred made-up requests and fleets, odd ones included: one candidate, no samples, empty prompts,
everything equal. A breach raises AssertionError with the case at hand. Plugins must answer from their arguments alone: the same question
asked twice has the same answer, unless an rng is among the arguments.
"""

from collections.abc import Iterator, Sequence
from math import isfinite
from random import Random

from beaconry.plugins.kinds import CostTerm, Filter, Picker, Policy, PredictorSource, Scorer
from beaconry.values.candidate import Candidate, Prediction
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.request import Api, Request

_CASES = 300


def cases(seed: int = 0, count: int = _CASES) -> Iterator[tuple[Request, list[Candidate]]]:
    """Made-up requests with the candidates for them."""
    rng = Random(seed)
    for number in range(count):
        request = Request(
            id=str(number),
            model="m",
            api=Api.CHAT,
            arrived_s=float(number),
            prompt_tokens=rng.choice((0, 1, 63, 64, 900, 30_000)),
            output_tokens=rng.choice((None, 1, 300)),
            stream=rng.random() < 0.5,
        )
        yield request, [_candidate(i, request, rng) for i in range(rng.choice((1, 2, 4, 16)))]


def check_filter(plugin: Filter) -> None:
    """A filter returns some of the candidates it got, each at most once, in their order."""
    for request, candidates in cases():
        kept = list(plugin.keep(request, candidates))
        names = [c.endpoint.name for c in candidates]
        places = [names.index(c.endpoint.name) for c in kept if c.endpoint.name in names]
        assert len(places) == len(kept), f"{plugin} returned a candidate that it did not get: {kept}"
        assert places == sorted(set(places)), f"{plugin} repeated or reordered candidates: {places}"
        assert kept == list(plugin.keep(request, candidates)), f"{plugin} answered differently when asked again"


def check_scorer(plugin: Scorer) -> None:
    """A scorer returns one finite score from 0 to 1 for each candidate, in their order."""
    for request, candidates in cases():
        scores = list(plugin.score(request, candidates))
        assert len(scores) == len(candidates), (
            f"{plugin} returned {len(scores)} scores for {len(candidates)} candidates"
        )
        assert all(0 <= score <= 1 for score in scores), f"{plugin} left the range 0..1: {scores}"
        assert scores == list(plugin.score(request, candidates)), f"{plugin} answered differently when asked again"


def check_cost_term(plugin: CostTerm) -> None:
    """A cost term returns finite seconds."""
    for request, candidates in cases():
        for candidate in candidates:
            prediction = Prediction(ttft_s=0.1, wait_s=0.0, itl_s=0.02, decode_s=2.0, token_s=1e-4)
            cost_s = plugin.cost_s(request, candidate, prediction)
            assert isfinite(cost_s), f"{plugin} returned {cost_s} for {candidate}"
            assert cost_s == plugin.cost_s(request, candidate, prediction), (
                f"{plugin} answered differently when asked again"
            )


def check_picker(plugin: Picker) -> None:
    """A picker returns the index of one of the totals; the same chance gives the same pick."""
    rng = Random(0)
    for number in range(_CASES):
        totals = [rng.choice((-2.0, 0.0, 0.5, 1e9)) for _ in range(rng.choice((1, 2, 5)))]
        winner = plugin.pick(totals, Random(number))
        assert winner in range(len(totals)), f"{plugin} picked {winner} of {len(totals)}"
        assert winner == plugin.pick(totals, Random(number)), f"{plugin} drew on other chance than its rng"


def check_predictor(plugin: PredictorSource) -> None:
    """A predictor returns finite times of at least zero; more tokens never take less time."""
    for request, candidates in cases():
        for candidate in candidates:
            p = plugin.predict(request, candidate)
            times = (p.ttft_s, p.wait_s, p.itl_s, p.decode_s, p.token_s)
            assert all(isfinite(t) and t >= 0 for t in times), f"{plugin} predicted {p}"
            assert p.wait_s <= p.ttft_s, f"{plugin} predicted a wait longer than the TTFT it is part of: {p}"


def check_policy(plugin: Policy) -> None:
    """A policy picks one of the candidates, and its numbers run parallel to them."""
    rng = Random(0)
    for request, candidates in cases():
        ranking = plugin.rank(request, candidates, request.arrived_s, rng)
        assert ranking.winner in range(len(candidates)), f"{plugin} picked {ranking.winner} of {len(candidates)}"
        _parallel(plugin, "totals", ranking.totals, candidates)
        _parallel(plugin, "rows", ranking.rows, candidates)
        _parallel(plugin, "predictions", ranking.predictions, candidates)
        assert all(map(isfinite, ranking.totals)), f"{plugin} has totals that are not finite: {ranking.totals}"
        assert all(len(row) == len(ranking.terms) for row in ranking.rows), f"{plugin} has rows unlike its terms"
        assert ranking.why, f"{plugin} does not say why"


def _parallel(plugin: Policy, what: str, values: Sequence[object], candidates: Sequence[Candidate]) -> None:
    assert len(values) in {0, len(candidates)}, f"{plugin} has {len(values)} {what} for {len(candidates)} candidates"


def _candidate(i: int, request: Request, rng: Random) -> Candidate:
    sample = None
    if rng.random() < 0.7:
        sample = LoadSample(
            at_s=0.0,
            running=rng.choice((None, 0, 20)),
            waiting=rng.choice((None, 0, 300)),
            kv_usage=rng.choice((None, 0.0, 1.0)),
        )
    known = rng.randint(0, max(request.prompt_tokens - 1, 0))
    return Candidate(
        endpoint=Endpoint(name=f"e{i}", host="127.0.0.1", port=9000 + i, model="m"),
        prefilling=rng.choice((0, 0, 3)),
        prefill_tokens=rng.choice((0, 50_000)),
        decoding=rng.choice((0, 1, 40)),
        matched_tokens=rng.choice((0, known)),
        known_tokens=known,
        sharers=rng.choice((0, 2)),
        displaced_tokens=rng.choice((0.0, 512.0)),
        oldest_wait_s=rng.choice((0.0, 0.3)),
        sample=sample,
    )
