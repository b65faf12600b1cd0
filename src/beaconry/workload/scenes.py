"""Made-up workloads that `synthetic.py`'s shapes do not cover: agents that call tools, and questions over retrieved documents."""

from collections.abc import Iterable, Iterator
from itertools import accumulate, count
from random import Random

from msgspec import Struct

from beaconry.workload.request import Message, PlannedRequest, Span, Turn
from beaconry.workload.synthetic import Bounds


class Agents(Struct, frozen=True, kw_only=True):
    """An agent's run: preamble and task, then tool calls (a short output, a pause, a result as the next prompt's end), then an answer."""

    preambles: int
    """Different system prompts with tool descriptions; each run takes one, all equally likely."""
    preamble_tokens: Bounds
    task_tokens: Bounds
    steps: Bounds
    """Tool calls."""
    call_tokens: Bounds
    result_tokens: Bounds
    tool_s: float
    """Mean of the exponential time a tool takes."""
    answer_tokens: Bounds


class Documents(Struct, frozen=True, kw_only=True):
    """Questions over a library. Chunks are retrieved by popularity (Zipf), without repetition, in the order in which they were drawn."""

    library: int
    chunk_tokens: Bounds
    retrieved: int
    """At most `library`."""
    zipf: float
    system_tokens: Bounds
    question_tokens: Bounds
    output_tokens: Bounds


def agents(shape: Agents, times: Iterable[float], rng: Random) -> Iterator[PlannedRequest]:
    """One opening per arrival; the tool results follow as later turns."""
    preambles = [Span(id=number, tokens=shape.preamble_tokens.draw(rng)) for number in range(shape.preambles)]
    ids = count(shape.preambles)
    for number, at_s in enumerate(times):
        steps = shape.steps.draw(rng)
        outputs = [shape.call_tokens.draw(rng) for _ in range(steps)] + [shape.answer_tokens.draw(rng)]
        task = Span(id=next(ids), tokens=shape.task_tokens.draw(rng))
        reply_id = next(ids)
        later = tuple(
            Turn(
                user=Span(id=next(ids), tokens=shape.result_tokens.draw(rng)),
                output_tokens=tokens,
                reply_id=next(ids),
                think_s=rng.expovariate(1.0 / shape.tool_s) if shape.tool_s else 0.0,
            )
            for tokens in outputs[1:]
        )
        yield PlannedRequest(
            at_s=at_s,
            messages=(
                Message(role="system", spans=(rng.choice(preambles),)),
                Message(role="user", spans=(task,)),
            ),
            output_tokens=outputs[0],
            reply_id=reply_id,
            session=str(number),
            later=later,
        )


def questions(shape: Documents, times: Iterable[float], rng: Random) -> Iterator[PlannedRequest]:
    """One request per arrival."""
    system = Span(id=0, tokens=shape.system_tokens.draw(rng))
    chunks = [Span(id=1 + number, tokens=shape.chunk_tokens.draw(rng)) for number in range(shape.library)]
    weights = list(accumulate((rank + 1) ** -shape.zipf for rank in range(shape.library)))
    ids = count(1 + shape.library)
    for at_s in times:
        found: dict[int, Span] = {}
        while len(found) < shape.retrieved:
            chunk = rng.choices(chunks, cum_weights=weights)[0]
            found.setdefault(chunk.id, chunk)
        question = Span(id=next(ids), tokens=shape.question_tokens.draw(rng))
        yield PlannedRequest(
            at_s=at_s,
            messages=(
                Message(role="system", spans=(system,)),
                Message(role="user", spans=(*found.values(), question)),
            ),
            output_tokens=shape.output_tokens.draw(rng),
            reply_id=next(ids),
        )
