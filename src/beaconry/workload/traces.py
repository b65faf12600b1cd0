"""Request traces of production systems, read strictly.

Mooncake JSONL (kvcache-ai/Mooncake, FAST25): `timestamp` in ms, `input_length`, `output_length`, `hash_ids`, one id per block of 512
prompt tokens; the last block may be partly filled. An id stands for its block and all before it, so equal ids mean equal text.

Azure CSV (Azure/AzurePublicDataset): `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`; nothing is shared between prompts.

Recordings of this gateway: `recording.py`.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice

import msgspec
from msgspec import Struct, structs

from beaconry.values.errors import OperatorError
from beaconry.workload.recording import Recorded, read_recording
from beaconry.workload.request import Message, PlannedRequest, Span

MOONCAKE_BLOCK_TOKENS = 512
_OPENING = re.compile(r'\s*\{\s*"kind"\s*:\s*"recording"')
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceRow(Struct, frozen=True, kw_only=True):
    """One request of a trace. `at_s` is in the trace's own time; `blocks` are the ids of its prompt blocks, empty if the trace has none."""

    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    """The prompt's spans, where a recording has told them; instead of `blocks`."""


class Replay(Struct, frozen=True, kw_only=True):
    """Which part of a trace to replay, how fast and how large."""

    speedup: float = 1.0
    skip: int = 0
    limit: int | None = None
    scale_lengths: float = 1.0
    """Factor on all lengths, blocks included, so that sharing stays exact."""
    block_tokens: int = MOONCAKE_BLOCK_TOKENS


class _MooncakeLine(Struct, frozen=True, kw_only=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_trace(
    lines: Iterable[str], place: str, block_tokens: int = MOONCAKE_BLOCK_TOKENS, model: str | None = None
) -> Iterator[TraceRow]:
    """Rows of a Mooncake or Azure trace or of a recording, told apart by the first line. Raises OperatorError naming `place`:line.

    `model` chooses one of a recording's models.
    """
    numbered = enumerate(lines, start=1)
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        raise OperatorError(f"{place}: the trace is empty; give a Mooncake JSONL, an Azure CSV file or a recording")
    rows = (row for row in numbered if row[1].strip())
    if _OPENING.match(first[1]):
        yield from _recorded(chain([first], rows), place, model)
    elif first[1].lstrip().startswith("{"):
        yield from _in_order(_mooncake(chain([first], rows), place, block_tokens), place)
    elif tuple(next(csv.reader([first[1].strip()]))) == AZURE_COLUMNS:
        yield from _in_order(_azure(rows, place), place)
    else:
        raise OperatorError(
            f"{place}:{first[0]}: neither a Mooncake trace or recording (one JSON object a line) nor an Azure trace"
            f" (header {','.join(AZURE_COLUMNS)})"
        )


def replay(rows: Iterable[TraceRow], how: Replay, arrivals: Iterable[float] | None = None) -> Iterator[PlannedRequest]:
    """Requests for the rows, the first one due at 0. With `arrivals` their times are used instead of the trace's own."""
    stop = None if how.limit is None else how.skip + how.limit
    times = None if arrivals is None else iter(arrivals)
    start_s: float | None = None
    for number, row in enumerate(islice(rows, how.skip, stop)):
        start_s = row.at_s if start_s is None else start_s
        yield PlannedRequest(
            at_s=(row.at_s - start_s) / how.speedup if times is None else next(times),
            messages=(Message(role="user", spans=_spans(row, number, how)),),
            output_tokens=max(1, round(row.output_tokens * how.scale_lengths)),
            reply_id=-2 * number - 2,
        )


def _spans(row: TraceRow, number: int, how: Replay) -> tuple[Span, ...]:
    """The prompt's blocks, scaled. Without block ids the prompt is one span of its own; negative ids are never a trace's."""
    if row.spans:
        return tuple(structs.replace(span, tokens=max(1, round(span.tokens * how.scale_lengths))) for span in row.spans)
    if not row.blocks:
        return (Span(id=-2 * number - 1, tokens=max(1, round(row.input_tokens * how.scale_lengths))),)
    block = max(1, round(how.block_tokens * how.scale_lengths))
    rest = row.input_tokens - how.block_tokens * (len(row.blocks) - 1)
    spans = [Span(id=block_id, tokens=block) for block_id in row.blocks[:-1]]
    last = min(block, round(rest * how.scale_lengths))
    if last or not spans:
        spans.append(Span(id=row.blocks[-1], tokens=max(1, last)))
    return tuple(spans)


def _mooncake(lines: Iterable[tuple[int, str]], place: str, block_tokens: int) -> Iterator[tuple[int, TraceRow]]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for number, line in lines:
        try:
            row = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise OperatorError(f"{place}:{number}: not a Mooncake request: {error}") from error
        _check_lengths(row.input_length, row.output_length, f"{place}:{number}")
        blocks = -(-row.input_length // block_tokens)
        if row.hash_ids and len(row.hash_ids) != blocks:
            raise OperatorError(
                f"{place}:{number}: {row.input_length} input tokens make {blocks} blocks of {block_tokens},"
                f" but there are {len(row.hash_ids)} hash ids;"
                " if the file's blocks have another size, give --trace-block-tokens"
            )
        if min(row.hash_ids, default=0) < 0:
            raise OperatorError(f"{place}:{number}: hash ids must not be negative")
        yield (
            number,
            TraceRow(
                at_s=row.timestamp / 1000,
                input_tokens=row.input_length,
                output_tokens=row.output_length,
                blocks=tuple(row.hash_ids),
            ),
        )


def _recorded(lines: Iterable[tuple[int, str]], place: str, model: str | None) -> list[TraceRow]:
    """A recording's requests by arrival: it is written in order of their ends. Those without an answer have the length they asked for."""
    rows = []
    for number, line, block_tokens in read_recording(lines, place, model):
        output_tokens = line.output_tokens if line.output_tokens is not None else line.cap_tokens or 1
        _check_lengths(line.prompt_tokens, output_tokens, f"{place}:{number}")
        rows.append(
            TraceRow(
                at_s=line.at_s,
                input_tokens=line.prompt_tokens,
                output_tokens=output_tokens,
                spans=_recorded_spans(line, number, block_tokens),
            )
        )
    rows.sort(key=lambda row: row.at_s)
    return rows


def _recorded_spans(line: Recorded, number: int, block_tokens: int) -> tuple[Span, ...]:
    """The runs, cut to the prompt's length, and what comes after the last full block as text of its own."""
    spans, left = [], line.prompt_tokens
    for start, blocks in line.runs:
        if left > 0:
            spans.append(Span(id=start, tokens=min(left, blocks * block_tokens)))
            left -= spans[-1].tokens
    if left > 0:
        spans.append(Span(id=-2 * number - 1, tokens=left))
    return tuple(spans)


def _azure(lines: Iterable[tuple[int, str]], place: str) -> Iterator[tuple[int, TraceRow]]:
    for number, line in lines:
        fields = line.strip().split(",")
        try:
            stamp, context, generated = fields
            row = TraceRow(at_s=_timestamp_s(stamp), input_tokens=int(context), output_tokens=int(generated))
        except ValueError as error:
            raise OperatorError(
                f"{place}:{number}: not an Azure request ({','.join(AZURE_COLUMNS)}): {error}"
            ) from error
        _check_lengths(row.input_tokens, row.output_tokens, f"{place}:{number}")
        yield number, row


def _timestamp_s(stamp: str) -> float:
    moment = datetime.fromisoformat(stamp)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _check_lengths(input_tokens: int, output_tokens: int, place: str) -> None:
    if input_tokens < 1 or output_tokens < 0:
        raise OperatorError(
            f"{place}: lengths must be positive, found {input_tokens} input and {output_tokens} output tokens"
        )


def _in_order(rows: Iterable[tuple[int, TraceRow]], place: str) -> Iterator[TraceRow]:
    last_s = float("-inf")
    for number, row in rows:
        if row.at_s < last_s:
            raise OperatorError(
                f"{place}:{number}: the request is earlier than the one before it; sort the trace by time"
            )
        last_s = row.at_s
        yield row
