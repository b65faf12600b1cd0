"""What one replica can give at the very best."""

import pytest

from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.sim.bounds import Demand, demand_of, most_per_s
from beaconry.workload.plan import Plan
from beaconry.workload.request import Message, PlannedRequest, Span

SETTINGS = EngineSettings(num_blocks=1000, max_num_seqs=64)
STEP = LinearStepTime(fixed_s=0.01, per_seq_s=0.001, prefill_tps=10_000)


def request(at_s: float, prefix: int) -> PlannedRequest:
    spans = (Span(id=prefix, tokens=100), Span(id=-1000 - int(at_s), tokens=20))
    return PlannedRequest(
        at_s=at_s, messages=(Message(role="user", spans=spans),), output_tokens=10, reply_id=-int(at_s) - 1
    )


def test_demand_is_in_means_and_knows_what_endless_caches_would_save():
    demand = demand_of(Plan([request(float(i), prefix=i % 2) for i in range(11)]))
    assert demand.requests_per_s == pytest.approx(1.1)
    assert (demand.prompt_tokens, demand.output_tokens) == (120, 10)
    assert demand.uncached_tokens < 50


def test_a_plan_without_requests_is_refused():
    with pytest.raises(ValueError, match="no traffic"):
        demand_of(Plan([]))


def test_the_target_between_tokens_bounds_the_batch_and_so_the_rate():
    demand = Demand(requests_per_s=1.0, prompt_tokens=100, uncached_tokens=0, output_tokens=100)
    loose = most_per_s(demand, SETTINGS, STEP, None)
    assert loose == pytest.approx(64 / (100 * 0.074))
    assert most_per_s(demand, SETTINGS, STEP, 0.03) == pytest.approx(20 / (100 * 0.03))
    assert most_per_s(demand, SETTINGS, STEP, 0.0105) == 0.0


def test_prefill_bounds_the_rate_of_long_prompts():
    demand = Demand(requests_per_s=1.0, prompt_tokens=20_000, uncached_tokens=20_000, output_tokens=1)
    assert most_per_s(demand, SETTINGS, STEP, None) == pytest.approx(0.5)
