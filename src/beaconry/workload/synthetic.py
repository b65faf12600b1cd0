"""Made-up workloads from one shape: single requests or conversations, with or without shared prefixes.

With no groups every prompt is unique. With groups, a conversation opens with the prefix of its group (a system prompt), groups being
chosen by a Zipf law.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate, count
from random import Random

from msgspec import Struct

from beaconry.workload.request import Message, PlannedRequest, Span, Turn


class Bounds(Struct, frozen=True, kw_only=True):
    """Whole numbers from `low` to `high`, both included, equally likely."""

    low: int
    high: int

    def draw(self, rng: Random) -> int:
        """One number."""
        return rng.randint(self.low, self.high)


class Shape(Struct, frozen=True, kw_only=True):
    """What made-up conversations look like. A single request is a conversation of one turn."""

    prompt_tokens: Bounds
    """The user's part of each turn."""
    output_tokens: Bounds
    turns: int = 1
    think_s: float = 0.0
    """Mean of the exponential pause between a reply and the next turn."""
    groups: int = 0
    prefix_tokens: Bounds = Bounds(low=0, high=0)
    """Length of a group's shared prefix, drawn once per group."""
    zipf: float = 1.0
    """The group of rank r has weight r ** -zipf: 0 is uniform, 1 the usual skew."""


def conversations(shape: Shape, arrivals: Iterable[float], rng: Random) -> Iterator[PlannedRequest]:
    """One opening request per arrival. Everything about a conversation is drawn when it opens, so replies cannot change what is asked."""
    prefixes = [Span(id=group, tokens=shape.prefix_tokens.draw(rng)) for group in range(shape.groups)]
    weights = list(accumulate((rank + 1) ** -shape.zipf for rank in range(shape.groups)))
    unique = count(shape.groups)
    for number, at_s in enumerate(arrivals):
        system: tuple[Message, ...] = ()
        if prefixes:
            prefix = rng.choices(prefixes, cum_weights=weights)[0]
            system = (Message(role="system", spans=(prefix,)),)
        first, *later = (_turn(shape, rng, unique) for _ in range(shape.turns))
        yield PlannedRequest(
            at_s=at_s,
            messages=(*system, Message(role="user", spans=(first.user,))),
            output_tokens=first.output_tokens,
            reply_id=first.reply_id,
            session=str(number) if later else None,
            later=tuple(later),
        )


def _turn(shape: Shape, rng: Random, unique: Iterator[int]) -> Turn:
    return Turn(
        user=Span(id=next(unique), tokens=shape.prompt_tokens.draw(rng)),
        output_tokens=shape.output_tokens.draw(rng),
        reply_id=next(unique),
        think_s=rng.expovariate(1.0 / shape.think_s) if shape.think_s else 0.0,
    )
