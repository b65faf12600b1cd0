"""The next turn of a conversation finds the reply before it cached, as far as engines have been seen to keep replies."""

import pytest

from beaconry.latency.replies import Replies
from beaconry.values.request import Api, Request


def request(prompt, *prefix):
    return Request(id="r", model="m", api=Api.CHAT, arrived_s=0.0, prompt_tokens=prompt, prefix=prefix, block_tokens=64)


FIRST = request(150, 1, 2)
NEXT = request(600, 1, 2, 3, 4, 5, 6, 7, 8, 9)


def test_the_next_turn_finds_the_end_of_the_prompt_and_the_reply_in_whole_blocks():
    replies = Replies()
    assert replies.beyond(NEXT, 128) == 0
    replies.ended(FIRST, 150, 200)
    assert replies.beyond(NEXT, 128) == 350 // 16 * 16 - 128
    replies.block_tokens = 100
    assert replies.beyond(NEXT, 128) == 300 - 128


@pytest.mark.parametrize(
    ("later", "matched"),
    [
        (NEXT, 64),  # evicted but for a block
        (NEXT, 0),
        (request(600, 1, 9, 3), 128),  # another conversation that begins alike
        (request(30), 0),  # shorter than a block
    ],
)
def test_who_does_not_go_on_from_there_finds_nothing_more(later, matched):
    replies = Replies()
    replies.ended(FIRST, 150, 200)
    assert replies.beyond(later, matched) == 0


def test_a_prompt_shorter_than_a_block_leaves_nothing_that_could_be_named():
    replies = Replies()
    replies.ended(request(30), 30, 200)
    assert replies.beyond(request(300, 1, 2, 3, 4), 0) == 0


def test_no_more_is_found_than_the_prompt_has_but_its_last_token():
    replies = Replies()
    replies.ended(FIRST, 150, 2000)
    assert replies.beyond(request(321, 1, 2, 3, 4, 5), 128) == 320 - 128
    assert replies.beyond(request(320, 1, 2, 3, 4, 5), 128) == 304 - 128


def test_nothing_is_counted_on_before_an_engine_has_reported_it_and_then_its_share():
    replies = Replies()
    assert replies.share == 0.0
    replies.found(100, 100)
    assert replies.share == 1.0
    for _ in range(60):
        replies.found(100, 25)
    assert replies.share == pytest.approx(0.25, abs=0.01)
    for cached in (-500, 100_000):  # evicted meanwhile; more than that for other reasons
        replies.found(100, cached)
        assert 0.0 <= replies.share <= 1.0


def test_the_latest_conversations_are_remembered():
    replies = Replies()
    for number in range(600):
        replies.ended(request(64, number), 64, 64)
        replies.ended(request(64, 0), 64, 64)
    found = [replies.beyond(request(500, number, -1), 64) for number in range(600)]
    assert found[0] == found[599] == found[100] == 64
    assert not any(found[1:88])
