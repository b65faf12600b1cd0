"""How much an engine still has room for: places in its batch, and KV memory.

Places are learnt (`latency/places.py`). Memory is what the engine says of its size, less what our own legs hold: their prompts, each block
of which the prefix index counts once, and what has been generated since their first byte. Scraped usage corrects that: how fast they
generate, and what others than we have there. What is unknown does not bind: room is endless.
"""

from collections.abc import Iterable, Sequence
from math import inf

from beaconry.flowcontrol.demand import Claim
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.latency.places import Places
from beaconry.latency.rates import RateBook
from beaconry.router.exchange import Leg
from beaconry.router.member import Ahead, Member
from beaconry.values.endpoint import LoadSample, Role
from beaconry.values.stage import Stage

_GAIN = 0.3
"""Of one scrape."""
_FRESH_GAIN = 0.05
"""Of one leg."""
_FULL = 0.9
"""Share of the memory from which on a request may be waiting for blocks and not for a place."""
_LEAST = 0.02
"""Share of the memory below which a comparison says nothing."""
_SLOWEST = 0.2
"""Share of their own pace to which prefills slow down those that decode, at most."""
_MOST = 0.125
"""Share of all room that may be kept free for higher bands."""
_ENOUGH = 1e6
"""Requests: endless, but it can be subtracted."""
_ROOM_S = 0.05
"""For so long it is left alone what an engine has left, while nothing begins or ends there: the tokens generated meanwhile are a thousandth
of its memory, and a router of hundreds of engines has no time to count all of them anew for each request."""
_FRESH_S = 10.0
"""Beyond that age a scrape does not tell who else is there."""


class _Seen:
    """What scrapes have told of one engine."""

    __slots__ = ("at_s", "capacity", "fresh", "pace", "places", "room", "stranger_tokens", "strangers")

    def __init__(self) -> None:
        self.places = Places()
        self.capacity = inf
        """KV tokens."""
        self.pace = 1.0
        """Tokens really generated, of those to be expected since the first bytes: prefills beside them slow it down."""
        self.fresh = 1.0
        """Prompt tokens that take room of their own, of all that are sent there."""
        self.strangers = 0.0
        """Requests there that are not ours."""
        self.stranger_tokens = 0.0
        """Tokens held there beyond what we count."""
        self.at_s = -inf
        self.room: _Room | None = None
        """As it was counted last; None since a scrape."""


class _Room:
    """What one endpoint has left."""

    __slots__ = ("changes", "fresh", "limit", "memory", "name", "places", "there", "tokens", "trial", "until_s")

    changes: int
    """The member's, when this was counted."""
    until_s: float
    """When it is to be counted anew, whatever happens."""
    name: str
    there: int
    """Requests, whosever they are."""
    limit: float
    places: float
    trial: float
    """Places beyond, for lower bands to find out whether there are more."""
    tokens: float
    fresh: float
    """Of a prompt that takes room of its own."""
    memory: float
    """KV tokens in all."""

    def fits(self, need: float) -> bool:
        """It would run one more request of so many tokens, on trial perhaps."""
        return self.places + self.trial >= 1 and self.tokens >= need

    def holds(self, tokens: float) -> bool:
        """It has memory for so large a prompt."""
        return self.tokens >= self.fresh * tokens

    def takes(self, claim: Claim) -> float:
        """Usual requests of higher bands that it would run."""
        return self.after(0.0, claim) if self.places >= 1 else 0.0

    def after(self, need: float, claim: Claim) -> float:
        """What it takes once a request is there that needs so many tokens; 0 for none."""
        places = self.places - (need > 0)
        return max(min(places, (self.tokens - need) / max(self.fresh * claim.tokens, 1.0), _ENOUGH), 0.0)


class Capacity:
    """Of all endpoints."""

    def __init__(self, rates: RateBook, index: ApproximateIndex) -> None:
        self._rates = rates
        self._index = index
        self._seen: dict[str, _Seen] = {}
        self._least = inf
        """No endpoint is believed to have fewer places: what runs in smaller numbers proves nothing new."""

    def places_left(self, member: Member, now_s: float) -> float:
        """How many more it would run at once."""
        return self._of(member).places.limit - self._there(member, now_s)

    def tokens_left(self, member: Member, now_s: float) -> float:
        """KV tokens that it has left, beside what those running are going to take until one of them ends: an output's worth."""
        seen = self._of(member)
        if seen.capacity == inf:
            return inf
        strangers = max(seen.stranger_tokens, 0.0) if now_s - seen.at_s < _FRESH_S else 0.0
        growth = self._rates.output_tokens(member.endpoint.variant) if member.decoding else 0.0
        return seen.capacity - self._held(member, now_s) - strangers - growth

    def needs(self, member: Member, prompt_tokens: float) -> float:
        """KV tokens that a prompt takes there, by what others have shared."""
        return self._of(member).fresh * prompt_tokens

    def dispatched(self, leg: Leg) -> None:
        """A leg was sent."""
        seen = self._of(leg.member)
        if leg.prompt_tokens:
            seen.fresh += _FRESH_GAIN * (leg.fresh_tokens / leg.prompt_tokens - seen.fresh)

    def fits(self, member: Member, needed: float, now_s: float) -> bool:
        """It would run one more request that takes so many tokens at once."""
        return self.places_left(member, now_s) >= 1 and self.tokens_left(member, now_s) >= needed

    def room_s(self, member: Member, ahead: Ahead | None, needed: float, now_s: float) -> float:
        """How long it takes until it runs one more that takes so many tokens: until enough of those that decode there, or are in prefill if
        none does yet, have ended, each of which leaves a place and its share of what they hold. `ahead`: what stays in prefill; None:
        everything."""
        places, tokens = self.places_left(member, now_s), self.tokens_left(member, now_s)
        if ahead is not None:
            places, tokens = places + ahead.freed_requests, tokens + ahead.freed_tokens
        if places >= 1 and tokens >= needed:
            return 0.0
        running, held = len(member.decoding), self._held(member, now_s)
        if running:
            held -= sum(leg.fresh_tokens for leg in member.prefilling.values())
        else:
            running = len(member.prefilling) if ahead is None else ahead.prefilling
            if not running:
                return 0.0
        ends = max(1 - places, (needed - tokens) * running / max(held, 1.0))
        return ends * self._rates.next_end_s(member.endpoint, running)

    def leaving(
        self, claim: Claim, members: Sequence[Member], asked: Iterable[tuple[Member, float]], now_s: float
    ) -> set[str]:
        """Those asked for that would run one more request at once, while `members` still have room for the claim somewhere.

        `asked`: some of `members`, and KV tokens that the request takes at each. Room for the claim: as many usual requests as it names,
        and on one endpoint a large one. It never takes more than `_MOST` of all, and nothing where nobody runs: engines of one place, or
        of memory for one request, would stand idle else.
        """
        rooms = [self._room(member, now_s) for member in members]
        if not any(room.there for room in rooms):
            return {member.endpoint.name for member, _ in asked}
        fit = [(room, need) for member, need in asked if (room := self._room(member, now_s)).fits(need)]
        if not fit:
            return set()
        memory = sum([room.memory for room in rooms])
        places = sum([room.limit for room in rooms])
        usual = max(rooms[0].fresh * claim.tokens, 1.0)
        requests = min(claim.requests, max(_MOST * min(places, memory / usual), 1.0))
        large = min(claim.large_tokens, _MOST * memory)
        total = sum([room.takes(claim) for room in rooms if room.places >= 1])
        holders = sum([room.places >= 1 and room.holds(large) for room in rooms])
        names = set()
        for room, need in fit:
            left = total - room.takes(claim) + room.after(need, claim)
            still = room.places >= 2 and room.tokens - need >= room.fresh * large
            if left >= requests and holders - room.holds(large) + still >= 1:
                names.add(room.name)
        return names

    def _room(self, member: Member, now_s: float) -> _Room:
        seen = self._of(member)
        room = seen.room
        if room is None or room.changes != member.changes or now_s >= room.until_s:
            room = seen.room = self._count_room(seen, member, now_s)
        return room

    def _count_room(self, seen: _Seen, member: Member, now_s: float) -> _Room:
        room = _Room()
        room.changes = member.changes
        room.until_s = now_s + _ROOM_S
        room.name = member.endpoint.name
        room.there = self._there(member, now_s)
        room.limit = seen.places.limit
        room.trial = seen.places.allowed(now_s) - room.limit if room.limit < inf else 0.0
        room.places = self.places_left(member, now_s)
        room.tokens = self.tokens_left(member, now_s)
        room.fresh = seen.fresh
        room.memory = seen.capacity
        return room

    def memory_short(self, member: Member, prompt_tokens: int, now_s: float) -> bool:
        """One with such a prompt may have been waiting for blocks, until somebody else's became free."""
        seen = self._of(member)
        used = self._held(member, now_s) + max(seen.stranger_tokens, 0.0)
        return used > min(_FULL * seen.capacity, seen.capacity - 3 * prompt_tokens)

    def ample(self, member: Member, claim: Claim | None, prompt_tokens: int) -> bool:
        """A quick look: there is room for a request with such a prompt and for all of the claim, without any doubt."""
        seen = self._seen.get(member.endpoint.name)
        requests, tokens = (
            (1, float(prompt_tokens)) if claim is None else (1 + claim.requests, prompt_tokens + claim.all_tokens)
        )
        there = member.in_flight
        if seen is None:
            return True
        if there + requests + max(seen.strangers, 0.0) > seen.places.limit:
            return False
        output = self._rates.output_tokens(member.endpoint.variant)
        return member.context_tokens + (there + 1) * output + tokens + max(seen.stranger_tokens, 0.0) < seen.capacity

    def first_byte(self, leg: Leg, now_s: float) -> None:
        """A stream's first byte came: one that waited for nothing but a place shows how many there are."""
        member, candidate = leg.member, leg.candidate
        running = len(member.decoding)
        if (
            candidate.in_flight >= running
            and member.ended > leg.ended_mark
            and leg.stage is Stage.WHOLE
            and leg.request.stream
            and self._rates.is_late(
                member.endpoint, now_s - leg.dispatched_s, candidate.prefill_tokens + leg.uncached_tokens
            )
            and not self.memory_short(member, leg.prompt_tokens, now_s)
        ):
            self._filled(member, running, now_s)
        elif running > self._least:
            self._ran(member, running, now_s)

    def _ran(self, member: Member, running: int, now_s: float) -> None:
        self._of(member).places.ran(running, now_s)
        self._find_least()

    def _filled(self, member: Member, running: int, now_s: float) -> None:
        self._of(member).places.filled(running, now_s)
        self._find_least()

    def _find_least(self) -> None:
        self._least = min(seen.places.limit for seen in self._seen.values())

    def sampled(self, member: Member, sample: LoadSample, now_s: float) -> None:
        """An engine's metrics were read."""
        seen = self._of(member)
        seen.at_s, seen.room = now_s, None
        if sample.kv_blocks and sample.block_tokens:
            seen.capacity = float(sample.kv_blocks * sample.block_tokens)
            if sample.kv_usage is not None and not sample.waiting:
                self._compare(seen, sample.kv_usage * seen.capacity, member, now_s)
        if sample.running is None or member.endpoint.role is Role.PREFILL:
            return  # what waits there waits for tokens, not for places
        there = sample.running + (sample.waiting or 0)
        seen.strangers += _GAIN * (there - member.in_flight - seen.strangers)
        if (
            sample.queued
            and self._rates.is_late(member.endpoint, member.oldest_wait_s(now_s), member.prefill_tokens)
            and not self.memory_short(member, _oldest_prompt(member), now_s)
        ):
            self._filled(member, sample.running, now_s)
        elif sample.running > self._least:
            self._ran(member, sample.running, now_s)

    def forget(self, name: str) -> None:
        """The endpoint is gone, or somebody else by now."""
        self._seen.pop(name, None)

    def _there(self, member: Member, now_s: float) -> int:
        """Requests at an endpoint, whosever they are."""
        seen = self._of(member)
        strangers = max(round(seen.strangers), 0) if now_s - seen.at_s < _FRESH_S else 0
        return member.in_flight + strangers

    def _of(self, member: Member) -> _Seen:
        seen = self._seen.get(member.endpoint.name)
        if seen is None:
            seen = self._seen[member.endpoint.name] = _Seen()
        return seen

    def _compare(self, seen: _Seen, really: float, member: Member, now_s: float) -> None:
        prompts, generated = self._prompts(member), self._generated(member, now_s)
        if generated > _LEAST * seen.capacity:
            pace = min(max((really - prompts) / generated, _SLOWEST), 1.0)
            seen.pace += _GAIN * (pace - seen.pace)
        seen.stranger_tokens += _GAIN * (really - prompts - seen.pace * generated - seen.stranger_tokens)

    def _held(self, member: Member, now_s: float) -> float:
        """Tokens of our legs there: their prompts, and what they have generated."""
        return self._prompts(member) + self._of(member).pace * self._generated(member, now_s)

    def _prompts(self, member: Member) -> float:
        return member.loose_tokens + member.block_tokens * self._index.pinned(member.endpoint.name)

    def _generated(self, member: Member, now_s: float) -> float:
        """Tokens to be expected of those that decode there, had nobody else's prompt been computed beside them."""
        decoding = len(member.decoding)
        if not decoding:
            return 0.0
        return (decoding * now_s - member.began_s) / self._rates.itl_s(member.endpoint, decoding)


def _oldest_prompt(member: Member) -> int:
    """Tokens of the prompt that has waited longest for its first byte."""
    for leg in member.prefilling.values():
        return leg.prompt_tokens
    return 0
