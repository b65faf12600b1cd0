"""The requests that a scenario's workload sections make."""

from itertools import islice

import pytest

from beaconry.sim.workloads import AgentRuns, Arrivals, Prompts, Rag, Reasoning, Sessions, Trace, openings
from beaconry.workload.traces import TraceRow

ROWS = [TraceRow(at_s=10.0 + i, input_tokens=600, output_tokens=9, blocks=(0, 1 + i % 3)) for i in range(20)]
KINDS = [
    Prompts(arrivals=Arrivals(rate=5.0), groups=3),
    Sessions(arrivals=Arrivals(rate=5.0, pattern="even")),
    AgentRuns(arrivals=Arrivals(rate=5.0, pattern="bursts")),
    Rag(arrivals=Arrivals(rate=5.0)),
    Reasoning(arrivals=Arrivals(rate=5.0, pattern="diurnal", period_s=10.0)),
]


def read(file, block_tokens, model):
    assert (file, block_tokens) == ("t", 512)
    return iter(ROWS)


def made(*workloads, load=1.0, seed=1, count=200):
    return list(islice(openings(workloads, load, seed, read), count))


def spans(requests):
    return {span.id for request in requests for message in request.messages for span in message.spans}


@pytest.mark.parametrize("workload", KINDS, ids=lambda one: type(one).__name__)
def test_equal_seeds_make_equal_requests_and_a_load_makes_them_come_faster(workload):
    assert made(workload) == made(workload)
    assert made(workload) != made(workload, seed=2)
    assert made(workload, load=2.0)[-1].at_s == pytest.approx(made(workload)[-1].at_s / 2, rel=0.3)


def test_workloads_side_by_side_come_in_order_and_share_no_text():
    both = made(KINDS[0], KINDS[3], count=400)
    assert [one.at_s for one in both] == sorted(one.at_s for one in both)
    rag = [one for one in both if one.output_tokens and one.session is None and one.reply_id >= 1 << 40]
    assert rag
    assert not spans(rag) & spans(one for one in both if one.reply_id < 1 << 40)
    alone = {one.messages for one in made(KINDS[0], count=100)}
    assert alone <= {one.messages for one in both}


def test_a_trace_keeps_its_times_and_its_copies_are_other_texts_at_other_moments():
    once = made(Trace(file="t"))
    assert [one.at_s for one in once] == [float(i) for i in range(20)]
    assert [one.at_s for one in made(Trace(file="t"), load=2.0)] == [i / 2 for i in range(20)]
    thrice = made(Trace(file="t", copies=3))
    assert len(thrice) == 60
    assert len(spans(thrice)) == 3 * len(spans(once)) == 12
    assert [one.at_s for one in thrice] == sorted(one.at_s for one in thrice)
    assert all(0.0 <= one.at_s <= 19.0 for one in thrice)


def test_a_trace_may_come_at_other_times_than_its_own():
    timed = made(Trace(file="t", arrivals=Arrivals(rate=2.0, pattern="even")))
    assert [one.at_s for one in timed] == [i / 2 for i in range(20)]


def test_reasoning_has_long_answers_of_uneven_length_up_to_its_bound():
    tokens = sorted(one.output_tokens for one in made(KINDS[4], count=400))
    assert 2000 < tokens[200] < 3200
    assert tokens[-1] == 16_000 or tokens[-1] > 10_000
    assert tokens[20] < 1000
