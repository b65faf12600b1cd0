from random import Random

import pytest

from beaconry.workload.arrivals import fixed
from beaconry.workload.plan import Plan
from beaconry.workload.prompts import PromptText
from beaconry.workload.request import Message, PlannedRequest, Span
from beaconry.workload.synthetic import Bounds, Shape, conversations


def single(at_s, number=0):
    user = Message(role="user", spans=(Span(id=number, tokens=10),))
    return PlannedRequest(at_s=at_s, messages=(user,), output_tokens=5, reply_id=-number - 1)


def chats(turns=3, think_s=2.0, count=2):
    shape = Shape(
        prompt_tokens=Bounds(low=10, high=10), output_tokens=Bounds(low=4, high=4), turns=turns, think_s=think_s
    )
    times = fixed(1.0)
    return Plan(conversations(shape, (next(times) for _ in range(count)), Random(1)))


def run(plan, reply_s=0.5):
    """Take everything in virtual time; each reply comes `reply_s` after its request."""
    taken, replies = [], []
    while plan.peek() is not None or replies:
        due = plan.peek()
        if replies and (due is None or replies[0][0] <= due.at_s):
            at_s, request = replies.pop(0)
            plan.answered(request, at_s)
        else:
            request = plan.take()
            taken.append(request)
            replies = sorted([*replies, (request.at_s + reply_s, request)], key=lambda reply: reply[0])
        plan.check()
    return taken


def test_requests_come_in_order_and_are_numbered():
    taken = run(Plan([single(0.0), single(1.0, 1), single(1.0, 2)]))
    assert [(request.at_s, request.index) for request in taken] == [(0.0, 0), (1.0, 1), (1.0, 2)]


def test_peeking_does_not_take():
    plan = Plan([single(0.0)])
    assert plan.peek() is plan.peek()
    assert plan.take().index == 0
    assert plan.peek() is None


def test_taking_from_an_empty_plan_is_an_error():
    with pytest.raises(IndexError):
        Plan([]).take()


def test_nothing_is_due_at_or_after_the_end():
    assert len(run(Plan((single(float(second)) for second in range(10**9)), until_s=3.0))) == 3
    endless = chats(turns=50).take()
    assert len(run(Plan([endless]))) == 50
    cut = run(Plan([endless], until_s=6.0))
    assert 1 < len(cut) < 50
    assert cut[-1].at_s < 6.0


def test_a_plan_is_made_lazily():
    made = []

    def openings():
        for number in range(100):
            made.append(number)
            yield single(float(number), number)

    plan = Plan(openings())
    plan.take()
    assert len(made) == 2
    assert len(list(plan.openings_ahead(8))) == 8
    assert len(made) == 9


def test_the_next_turn_comes_after_the_reply_and_the_pause():
    taken = run(chats(count=1), reply_s=0.5)
    assert [request.turn for request in taken] == [0, 1, 2]
    opening = taken[0]
    assert taken[1].at_s == pytest.approx(opening.at_s + 0.5 + opening.later[0].think_s)


def test_a_turn_without_a_reply_ends_its_conversation():
    plan = chats(count=1)
    plan.take()
    assert plan.peek() is None


def test_the_next_prompt_holds_the_conversation_with_the_real_reply():
    plan = chats(count=1)
    first = plan.take()
    plan.answered(first, 1.0, text="as said", tokens=3)
    second = plan.take()
    before, after = PromptText().chat(first), PromptText().chat(second)
    assert after[: len(before)] == before
    assert [message["role"] for message in after] == ["user", "assistant", "user"]
    assert after[1]["content"] == "as said"
    assert second.prompt_tokens == 10 + 3 + 10
    assert second.ideal_cached_tokens == 10 + 3


def test_turns_and_openings_are_merged_by_time():
    taken = run(chats(turns=4, count=5), reply_s=0.3)
    assert len(taken) == 20
    assert [request.at_s for request in taken] == sorted(request.at_s for request in taken)


def test_statistics_sum_up_prompts_and_ideal_hits():
    plan = chats(turns=3, count=2)
    taken = run(plan)
    now = plan.statistics()
    assert (now.taken, now.scheduled) == (6, 0)
    assert now.prompt_tokens == sum(request.prompt_tokens for request in taken) == 2 * (10 + 24 + 38)
    assert now.ideal_cached_tokens == 2 * (14 + 28)
