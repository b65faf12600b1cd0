"""A plan: requests in the order they are due, made lazily, with conversations that go on when a reply comes back.

The load client reads it by a real clock, the simulator by a virtual one. Both do the same: `peek`, wait until that request is due, `take`
it, send it, and report `answered`. A plan is over when `peek` gives None and no request is in flight.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from beaconry.workload.ideal import IdealCache
from beaconry.workload.request import Message, PlannedRequest, Span


class PlanStatistics(Struct, frozen=True, kw_only=True):
    """How far a plan has come."""

    taken: int
    scheduled: int
    """Later turns whose reply has come and which are not due yet."""
    prompt_tokens: int
    ideal_cached_tokens: int


class Plan:
    """Openings (first turns and single requests, in order of time) merged with the later turns that replies bring about."""

    def __init__(
        self, openings: Iterable[PlannedRequest], *, size: int | None = None, until_s: float | None = None
    ) -> None:
        """Plan `openings`; nothing is due at or after `until_s`.

        `size` is the number of requests, later turns included, where it is known in advance.
        """
        self.size = size
        self._openings = iter(openings)
        self._until_s = until_s
        self._ideal = IdealCache()
        self._ahead: deque[PlannedRequest] = deque()
        """The next openings, in order; empty only when there are no more."""
        self._turns: list[tuple[float, int, PlannedRequest]] = []
        """Heap of later turns by due time; the number breaks ties in order of scheduling."""
        self._numbered = 0
        self._taken = 0
        self._prompt_tokens = 0
        self._ideal_cached_tokens = 0
        self._look_ahead(1)

    def peek(self) -> PlannedRequest | None:
        """The next request to become due, or None: the plan has ended, or waits for replies."""
        if self._turn_is_next():
            return self._turns[0][2]
        return self._ahead[0] if self._ahead else None

    def openings_ahead(self, count: int) -> Iterator[PlannedRequest]:
        """The next `count` openings or as many as there are, for those who prepare them before they are due."""
        self._look_ahead(count)
        return islice(self._ahead, count)

    def take(self) -> PlannedRequest:
        """Remove the next request and return it with its index and ideal hit. Raises IndexError if there is none."""
        if self._turn_is_next():
            request = heapq.heappop(self._turns)[2]
        else:
            request = self._ahead.popleft()
            self._look_ahead(1)
        cached = self._ideal.see(request)
        request = replace(request, index=self._taken, ideal_cached_tokens=cached)
        self._taken += 1
        self._prompt_tokens += request.prompt_tokens
        self._ideal_cached_tokens += cached
        return request

    def answered(
        self, request: PlannedRequest, at_s: float, *, text: str | None = None, tokens: int | None = None
    ) -> None:
        """The reply to `request` was complete at `at_s`: schedule the next turn of its conversation, if it has one.

        `text` and `tokens` are what really came; without them the reply is taken to be as planned.
        A request that failed is not reported: its conversation ends.
        """
        if not request.later:
            return
        follow_up = next_turn(request, at_s, text=text, tokens=tokens)
        if self._until_s is None or follow_up.at_s < self._until_s:
            heapq.heappush(self._turns, (follow_up.at_s, self._numbered, follow_up))
            self._numbered += 1

    def statistics(self) -> PlanStatistics:
        """How far the plan has come."""
        return PlanStatistics(
            taken=self._taken,
            scheduled=len(self._turns),
            prompt_tokens=self._prompt_tokens,
            ideal_cached_tokens=self._ideal_cached_tokens,
        )

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        self._ideal.check()
        assert self._ideal_cached_tokens <= self._prompt_tokens, "no more tokens are cached than sent"

    def _turn_is_next(self) -> bool:
        return bool(self._turns) and (not self._ahead or self._turns[0][0] < self._ahead[0].at_s)

    def _look_ahead(self, count: int) -> None:
        while len(self._ahead) < count:
            opening = next(self._openings, None)
            if opening is None:
                return
            if self._until_s is not None and opening.at_s >= self._until_s:
                self._openings = iter(())
                return
            self._ahead.append(opening)


def next_turn(request: PlannedRequest, at_s: float, *, text: str | None, tokens: int | None) -> PlannedRequest:
    """The turn after `request`, whose prompt holds the whole conversation so far."""
    turn = request.later[0]
    reply_tokens = request.output_tokens if tokens is None else tokens
    reply = Message(role="assistant", spans=(Span(id=request.reply_id, tokens=reply_tokens),), text=text)
    return PlannedRequest(
        at_s=at_s + turn.think_s,
        messages=(*request.messages, reply, Message(role="user", spans=(turn.user,))),
        output_tokens=turn.output_tokens,
        reply_id=turn.reply_id,
        session=request.session,
        turn=request.turn + 1,
        later=request.later[1:],
    )
