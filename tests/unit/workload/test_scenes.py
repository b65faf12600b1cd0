"""Agents and questions over documents."""

from itertools import islice, pairwise
from random import Random

from beaconry.workload.arrivals import fixed
from beaconry.workload.plan import Plan
from beaconry.workload.scenes import Agents, Documents, agents, questions
from beaconry.workload.synthetic import Bounds


def some(low, high):
    return Bounds(low=low, high=high)


AGENTS = Agents(
    preambles=2, preamble_tokens=some(4000, 5000), task_tokens=some(50, 100), steps=some(2, 4), call_tokens=some(10, 20),
    result_tokens=some(200, 300), tool_s=1.0, answer_tokens=some(300, 400),
)  # fmt: skip
DOCUMENTS = Documents(
    library=50, chunk_tokens=some(100, 200), retrieved=5, zipf=1.0, system_tokens=some(300, 300), question_tokens=some(10, 20),
    output_tokens=some(30, 40),
)  # fmt: skip


def test_an_agent_s_prompts_grow_by_call_and_result_and_end_with_an_answer():
    plan = Plan(islice(agents(AGENTS, fixed(1.0), Random(1)), 1))
    sent = []
    while plan.peek() is not None:
        sent.append(plan.take())
        plan.answered(sent[-1], sent[-1].at_s + 0.5)
    assert 3 <= len(sent) <= 5
    assert all(10 <= request.output_tokens <= 20 for request in sent[:-1])
    assert 300 <= sent[-1].output_tokens <= 400
    for before, after in pairwise(sent):
        assert after.messages[: len(before.messages)] == before.messages
        assert after.ideal_cached_tokens == before.prompt_tokens + before.output_tokens
        assert after.at_s > before.at_s + 0.5


def test_agents_share_their_preambles():
    requests = list(islice(agents(AGENTS, fixed(1.0), Random(1)), 30))
    assert len({request.messages[0] for request in requests}) == 2


def test_popular_chunks_are_retrieved_more_often_and_none_twice_for_one_question():
    requests = list(islice(questions(DOCUMENTS, fixed(1.0), Random(1)), 200))
    seen = [[span.id for span in request.messages[1].spans[:-1]] for request in requests]
    assert all(len(set(ids)) == len(ids) == 5 for ids in seen)
    counts = [sum(number in ids for ids in seen) for number in range(1, 51)]
    assert counts[0] > 3 * max(counts[40:])
    assert len({request.messages[1].spans[-1].id for request in requests}) == 200
