"""The workload sections of a scenario, and the requests each of them makes.

Every kind gives openings in order of time; several kinds run side by side, their made-up texts kept apart. `load` multiplies rates.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import replace

from beaconry.config.section import ABOVE_0, Section
from beaconry.values.errors import OperatorError
from beaconry.workload import arrivals
from beaconry.workload.request import Message, PlannedRequest, Span, Turn
from beaconry.workload.scenes import Agents, Documents, agents, questions
from beaconry.workload.synthetic import Bounds, Shape, conversations
from beaconry.workload.traces import MOONCAKE_BLOCK_TOKENS, Replay, TraceRow, replay

Above0 = Annotated[float, ABOVE_0]
Number = Annotated[int, Meta(ge=1)]
Tokens = Annotated[
    Number | Annotated[tuple[Number, ...], Meta(min_length=2, max_length=2)],
    Meta(description="a whole number above 0, or [lowest, highest]"),
]
"""A fixed number, or equally likely ones from the lowest to the highest."""
ReadTrace = Callable[[str, int, str | None], Iterable[TraceRow]]
"""Rows of a trace file, given its path, the tokens per block, and of a recording the model."""
_SPAN_ROOM = 1 << 48
"""Span ids that one workload may use; each copy of a trace takes `_COPY_ROOM` of them."""
_COPY_ROOM = 1 << 32


class WorkloadSection(Section, frozen=True):
    """What all kinds share."""

    def __post_init__(self) -> None:
        for name, written in zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True):
            value = getattr(self, name)
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{written}: {value[0]} is above {value[1]}; write [lowest, highest]")


class Arrivals(Section, frozen=True):
    """When openings arrive."""

    rate: Above0
    """Mean number per second."""
    pattern: Literal["poisson", "even", "bursts", "diurnal"] = "poisson"
    burstiness: Above0 = 0.25
    """For bursts: shape of the gamma distribution of the gaps; 1 is Poisson, less comes in thicker bursts."""
    swing: Annotated[float, Meta(ge=0, le=1)] = 0.8
    """For diurnal: the rate goes from `rate * (1 - swing)` to `rate * (1 + swing)` and back, lowest first."""
    period_s: Above0 = 86_400.0
    """For diurnal: one day."""

    def times(self, load: float, rng: Random) -> Iterator[float]:
        """Seconds since the start, without end."""
        rate = self.rate * load
        match self.pattern:
            case "even":
                return arrivals.fixed(rate)
            case "bursts":
                return arrivals.gamma(rate, self.burstiness, rng)
            case "diurnal":
                return arrivals.diurnal(rate, self.swing, self.period_s, rng)
        return arrivals.poisson(rate, rng)


class Trace(WorkloadSection, frozen=True, tag_field="type", tag="trace"):
    """A trace file, its time and its lengths scaled."""

    file: str
    """Mooncake JSONL, Azure CSV or a recording of the gateway's; relative to the scenario's folder."""
    model: str | None = None
    """Which of a recording's models, if it has several."""
    speedup: Above0 = 1.0
    scale_lengths: Above0 = 1.0
    skip: Annotated[int, Meta(ge=0)] = 0
    limit: Number | None = None
    copies: Number = 1
    """So many at once, each with texts of its own, all but the first one rotated in time by chance."""
    block_tokens: Number = MOONCAKE_BLOCK_TOKENS
    arrivals: Arrivals | None = None
    """Instead of the trace's own times."""


class Prompts(WorkloadSection, frozen=True, tag_field="type", tag="prompts"):
    """Single requests, alone or behind shared prefixes."""

    arrivals: Arrivals
    prompt_tokens: Tokens = (200, 2000)
    output_tokens: Tokens = (50, 400)
    groups: Annotated[int, Meta(ge=0)] = 0
    """Shared prefixes; 0 for none."""
    prefix_tokens: Tokens = (1000, 2000)
    zipf: Annotated[float, Meta(ge=0)] = 1.0
    """Skew of the groups' popularity; 0 is even."""
    requests: Number | None = None
    """None: until the scenario's duration is over."""


class Sessions(WorkloadSection, frozen=True, tag_field="type", tag="sessions"):
    """Conversations: each turn's prompt holds all before it, and follows the reply after a pause."""

    arrivals: Arrivals
    """Of conversations."""
    turns: Number = 5
    think_s: Annotated[float, Meta(ge=0)] = 10.0
    """Mean of the pause."""
    prompt_tokens: Tokens = (20, 300)
    output_tokens: Tokens = (50, 400)
    groups: Annotated[int, Meta(ge=0)] = 1
    """System prompts that conversations begin with."""
    prefix_tokens: Tokens = 800
    zipf: Annotated[float, Meta(ge=0)] = 1.0
    requests: Number | None = None
    """Conversations; None: until the scenario's duration is over."""


class AgentRuns(WorkloadSection, frozen=True, tag_field="type", tag="agents"):
    """Agents that call tools: a long shared preamble, short outputs, results that come back soon, an answer at the end."""

    arrivals: Arrivals
    preambles: Number = 4
    """Different system prompts with tool descriptions."""
    preamble_tokens: Tokens = 6000
    task_tokens: Tokens = (100, 2000)
    steps: Tokens = (3, 20)
    """Tool calls in a run."""
    call_tokens: Tokens = (30, 150)
    result_tokens: Tokens = (100, 3000)
    tool_s: Annotated[float, Meta(ge=0)] = 1.0
    """Mean time that a tool takes."""
    answer_tokens: Tokens = (200, 800)
    requests: Number | None = None
    """Runs; None: until the scenario's duration is over."""


class Rag(WorkloadSection, frozen=True, tag_field="type", tag="rag"):
    """Questions over retrieved documents: a system prompt, some documents of a library in order of relevance, a question."""

    arrivals: Arrivals
    library: Number = 2000
    """Chunks there are."""
    chunk_tokens: Tokens = 512
    retrieved: Number = 8
    zipf: Annotated[float, Meta(ge=0)] = 0.9
    system_tokens: Tokens = 400
    question_tokens: Tokens = (20, 120)
    output_tokens: Tokens = (80, 400)
    requests: Number | None = None


class Reasoning(WorkloadSection, frozen=True, tag_field="type", tag="reasoning"):
    """Short questions with long answers, whose lengths are log-normal."""

    arrivals: Arrivals
    prompt_tokens: Tokens = (50, 800)
    output_median: Number = 2500
    output_spread: Annotated[float, Meta(ge=0)] = 0.9
    """Standard deviation of the logarithm."""
    output_most: Number = 16_000
    requests: Number | None = None


Workload = Trace | Prompts | Sessions | AgentRuns | Rag | Reasoning


def openings(workloads: Sequence[Workload], load: float, seed: int, read_trace: ReadTrace) -> Iterator[PlannedRequest]:
    """The first requests of all workloads, in order of time. Equal arguments give equal requests."""
    streams = []
    for number, workload in enumerate(workloads):
        rng = Random(f"{seed} {number}")
        stream = _openings(workload, load, rng, read_trace)
        streams.append(apart(stream, number * _SPAN_ROOM, f"{number}/") if number else stream)
    return streams[0] if len(streams) == 1 else heapq.merge(*streams, key=_at_s)


def _openings(workload: Workload, load: float, rng: Random, read_trace: ReadTrace) -> Iterator[PlannedRequest]:
    if isinstance(workload, Trace):
        return _trace(workload, load, rng, read_trace)
    times = islice(workload.arrivals.times(load, Random(rng.getrandbits(64))), workload.requests)
    match workload:
        case Prompts() | Sessions():
            return conversations(_shape(workload), times, rng)
        case AgentRuns():
            return agents(_agents(workload), times, rng)
        case Rag():
            return questions(_documents(workload), times, rng)
        case Reasoning():
            return _reasoning(workload, times, rng)


def _shape(workload: Prompts | Sessions) -> Shape:
    turns, think_s = (workload.turns, workload.think_s) if isinstance(workload, Sessions) else (1, 0.0)
    return Shape(
        prompt_tokens=_bounds(workload.prompt_tokens),
        output_tokens=_bounds(workload.output_tokens),
        turns=turns,
        think_s=think_s,
        groups=workload.groups,
        prefix_tokens=_bounds(workload.prefix_tokens),
        zipf=workload.zipf,
    )


def _agents(workload: AgentRuns) -> Agents:
    return Agents(
        preambles=workload.preambles,
        preamble_tokens=_bounds(workload.preamble_tokens),
        task_tokens=_bounds(workload.task_tokens),
        steps=_bounds(workload.steps),
        call_tokens=_bounds(workload.call_tokens),
        result_tokens=_bounds(workload.result_tokens),
        tool_s=workload.tool_s,
        answer_tokens=_bounds(workload.answer_tokens),
    )


def _documents(workload: Rag) -> Documents:
    return Documents(
        library=workload.library,
        chunk_tokens=_bounds(workload.chunk_tokens),
        retrieved=min(workload.retrieved, workload.library),
        zipf=workload.zipf,
        system_tokens=_bounds(workload.system_tokens),
        question_tokens=_bounds(workload.question_tokens),
        output_tokens=_bounds(workload.output_tokens),
    )


def _reasoning(workload: Reasoning, times: Iterable[float], rng: Random) -> Iterator[PlannedRequest]:
    shape = Shape(prompt_tokens=_bounds(workload.prompt_tokens), output_tokens=Bounds(low=1, high=1))
    for request in conversations(shape, times, rng):
        tokens = round(workload.output_median * rng.lognormvariate(0.0, workload.output_spread))
        yield replace(request, output_tokens=min(max(tokens, 1), workload.output_most))


def _trace(workload: Trace, load: float, rng: Random, read_trace: ReadTrace) -> Iterator[PlannedRequest]:
    stop = None if workload.limit is None else workload.skip + workload.limit
    rows = list(islice(read_trace(workload.file, workload.block_tokens, workload.model), workload.skip, stop))
    if not rows:
        raise OperatorError(f"{workload.file}: no request is left after skipping {workload.skip}")
    how = Replay(
        speedup=workload.speedup * load, scale_lengths=workload.scale_lengths, block_tokens=workload.block_tokens
    )
    times = None if workload.arrivals is None else workload.arrivals.times(load, Random(rng.getrandbits(64)))
    copies = [replay(rows, how, times)]
    for copy in range(1, workload.copies):
        turned = _rotated(rows, rng.random())
        copies.append(apart(replay(turned, how), copy * _COPY_ROOM, f"{copy}/"))
    return copies[0] if len(copies) == 1 else heapq.merge(*copies, key=_at_s)


def _rotated(rows: Sequence[TraceRow], share: float) -> list[TraceRow]:
    """The same rows over the same time, beginning at another moment."""
    start_s, span_s = rows[0].at_s, rows[-1].at_s - rows[0].at_s
    first = next((i for i, row in enumerate(rows) if row.at_s - start_s >= share * span_s), 0)
    cut_s = rows[first].at_s - start_s
    later = [replace(row, at_s=row.at_s - cut_s) for row in rows[first:]]
    return later + [replace(row, at_s=row.at_s - cut_s + span_s) for row in rows[:first]]


def apart(requests: Iterable[PlannedRequest], room: int, session: str) -> Iterator[PlannedRequest]:
    """The same requests with texts of their own: span ids moved away from zero by `room`, sessions renamed."""

    def moved(span: Span) -> Span:
        return Span(id=_moved(span.id, room), tokens=span.tokens)

    for request in requests:
        yield replace(
            request,
            messages=tuple(Message(role=m.role, spans=tuple(map(moved, m.spans))) for m in request.messages),
            reply_id=_moved(request.reply_id, room),
            session=None if request.session is None else session + request.session,
            later=tuple(
                Turn(
                    user=moved(turn.user),
                    output_tokens=turn.output_tokens,
                    reply_id=_moved(turn.reply_id, room),
                    think_s=turn.think_s,
                )
                for turn in request.later
            ),
        )


def _moved(span_id: int, room: int) -> int:
    return span_id + room if span_id >= 0 else span_id - room


def _bounds(tokens: int | tuple[int, ...]) -> Bounds:
    low, high = (tokens, tokens) if isinstance(tokens, int) else tokens
    return Bounds(low=low, high=high)


def _at_s(request: PlannedRequest) -> float:
    return request.at_s
