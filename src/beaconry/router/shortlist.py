"""Which endpoints of a large fleet are worth judging for one request.

Predicting a placement costs some ten microseconds, so judging a thousand endpoints for each request would make the router the
bottleneck. What can win is an endpoint that holds the prompt's prefix, or one with little to do; so those are judged that hold most of
it, and the least busy ones of a random draw: the least busy of many drawn ones is nearly as good as the least busy of all (the power
of several choices), and replicas of the router that draw for themselves do not all run to the same endpoint. A few are judged whatever
their load, so that whoever became slow or fast, or was wrongly believed busy, is met again.
"""

from collections.abc import Mapping, Sequence
from random import Random

from beaconry.router.caches import Finding
from beaconry.router.member import Member
from beaconry.values.endpoint import Role

HOLDERS_SEEN = 16
"""Holders looked at; a hot prefix has hundreds, and any sixteen will do."""
HOLDERS = 6
DEEPEST = 2
"""Of those, so many are taken for what they hold whatever their load."""
DRAWN = 48
LEAST_BUSY = 6
BY_CHANCE = 4


def shortlist(
    model: str, members: Sequence[Member], by_name: Mapping[str, Member], finding: Finding, now_s: float, rng: Random
) -> list[Member]:
    """Some of `members`, those that serve `model` in one stage; open ones only, at most sixteen, perhaps none if few are open.

    `by_name` may have others too, which are left out.
    """
    prefill = members[0].endpoint.role is Role.PREFILL
    holders = [
        member
        for name in finding.holders(HOLDERS_SEEN, rng)
        if (member := by_name.get(name)) is not None
        and (model == member.endpoint.model or model in member.adapters)
        and (member.endpoint.role is Role.PREFILL) == prefill
        and member.admits(now_s)
    ]
    drawn = [member for member in dict.fromkeys(rng.choices(members, k=DRAWN)) if member.admits(now_s)]
    chosen = dict.fromkeys(holders[:DEEPEST])
    chosen.update(dict.fromkeys(sorted(holders[DEEPEST:], key=_load)[: HOLDERS - DEEPEST]))
    chosen.update(dict.fromkeys(drawn[:BY_CHANCE]))
    chosen.update(dict.fromkeys(sorted(drawn[BY_CHANCE:], key=_load)[:LEAST_BUSY]))
    return list(chosen)


def _load(member: Member) -> tuple[int, int]:
    """What is ahead of a new request first, then how many share the engine."""
    return (member.prefill_tokens, member.in_flight)
