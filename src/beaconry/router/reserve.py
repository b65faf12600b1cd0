"""Where a request is placed while bands compete: room is kept for higher ones, and theirs are placed where they begin soonest; and what of
lower ones is in the way there.

What is kept for whom is `flowcontrol/demand`; how much room there is, `capacity.py`. The scheduler chooses among what is left here.
"""

from collections.abc import Iterable, Sequence

from beaconry.flowcontrol.demand import Claim
from beaconry.latency.rates import RateBook
from beaconry.router.capacity import Capacity
from beaconry.router.exchange import Leg
from beaconry.router.member import Member
from beaconry.values.candidate import Candidate
from beaconry.values.request import Request

_COPY = 4.0
"""What computing anew what another engine has cached counts for: its time, and three times that for what the copy displaces; the default
policy's price. Measured: 4 to 12 are alike, with 1 a fleet whose caches are tight copies too much at full load."""
_OWN = 2.0
"""The same for a request of a higher band, which copies less often: its time, and once that for what it keeps waiting or displaces."""


class Reserve:
    """The choice. It keeps no state."""

    def __init__(self, rates: RateBook, capacity: Capacity) -> None:
        self._rates = rates
        self._capacity = capacity

    def roomy(
        self, claim: Claim, request: Request, members: Sequence[Member], asked: Iterable[Member], now_s: float
    ) -> set[str]:
        """Those `asked` for that can take the request, while all `members` together leave room for the claim."""
        needed = [(member, self._capacity.needs(member, request.prompt_tokens)) for member in asked]
        return self._capacity.leaving(claim, members, needed, now_s)

    def leaving(
        self, claim: Claim, members: Sequence[Member], candidates: Sequence[Candidate], prompt_tokens: int, now_s: float
    ) -> set[str]:
        """The same, of `members` of which it is known what they hold of the prompt: they are the `candidates`."""
        asked = [(m, _needed(prompt_tokens, c)) for m, c in zip(members, candidates, strict=True)]
        return self._capacity.leaving(claim, members, asked, now_s)

    def soonest(
        self, request: Request, urgency: int | None, pairs: Sequence[tuple[Member, Candidate]], now_s: float
    ) -> tuple[list[Candidate], bool]:
        """Candidates where the first token comes within a step of the soonest, once what gives way to `urgency` has gone; and whether the
        request would have run at once anywhere without that."""
        rates = self._rates
        times: list[float] = []
        found_room = False
        for member, candidate in pairs:
            ahead = None if urgency is None else member.ahead(urgency, now_s)
            needed = _needed(request.prompt_tokens, candidate)
            room_s = self._capacity.room_s(member, ahead, needed, now_s)
            found_room = found_room or self._capacity.fits(member, needed, now_s)
            endpoint = candidate.endpoint
            wait_s = max(room_s, candidate.oldest_wait_s, rates.prefill_s(endpoint, candidate.prefill_tokens))
            if ahead is not None and ahead.freed_requests:
                wait_s += rates.rates(endpoint.variant).base_s  # the step in progress; and better nobody is taken back
            times.append(wait_s + _OWN * rates.prefill_s(endpoint, request.prompt_tokens - candidate.matched_tokens))
        latest_s = min(times) + rates.rates(pairs[0][1].endpoint.variant).base_s
        return [c for (_, c), time_s in zip(pairs, times, strict=True) if time_s <= latest_s], found_room

    def is_in_the_way(self, request: Request, urgency: int, member: Member, now_s: float) -> bool:
        """What gives way there would keep the request waiting for more than a step, or may take the room that it needs."""
        if not member.prefilling:
            return False
        ahead = member.ahead(urgency, now_s)
        if not ahead.freed_requests:
            return False
        endpoint, rates = member.endpoint, self._rates
        prefill_s = rates.prefill_s(endpoint, member.prefill_tokens - ahead.prefill_tokens)
        wait_s = max(prefill_s, member.oldest_wait_s(now_s))
        step_s = rates.rates(endpoint.variant).base_s
        return wait_s > step_s or not self._capacity.ample(member, None, request.prompt_tokens)

    def computed_tokens(self, leg: Leg, now_s: float) -> int:
        """How much of a leg's prompt has probably been computed: engines take one after the other."""
        member = leg.member
        if next(iter(member.prefilling)) != leg.id:
            return 0
        return min(int((now_s - member.turn_s) / self._rates.prefill_s(member.endpoint, 1)), leg.uncached_tokens)

    def worth_waiting(self, candidate: Candidate, tokens: int) -> bool:
        """Computing so many more tokens elsewhere takes longer than it takes until a request ends there."""
        endpoint, rates = candidate.endpoint, self._rates
        return tokens > 0 and _COPY * rates.prefill_s(endpoint, tokens) > rates.next_end_s(endpoint, candidate.decoding)


def _needed(prompt_tokens: int, candidate: Candidate) -> int:
    """KV tokens that a prompt takes there: what those in flight share with it is held anyway."""
    return prompt_tokens - (candidate.matched_tokens if candidate.sharers else 0)
