"""Recordings of served traffic: what arrived, where it went and what became of it, without a word of any prompt.

A recording is a text file of JSON lines, each with a `kind`. First `recording`, then a `model` line before the first request of each model,
and one `request` line per request that reached the router, in order of their ends. Prompts are runs of numbered blocks: the first time a
block is seen it gets the next number, so a shared prefix is a shared number, while nothing of a text, not even its hash, can be found out.
Block chains are unique, hence a run of consecutive numbers always stands for the same text: run `[s, n]` is the first n blocks of text s.

`traces.py` reads recordings like any other trace, so whatever replays a trace replays yesterday's traffic under another policy or fleet.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec
from msgspec import Struct

from beaconry.values.errors import OperatorError

VERSION = 1
Run = tuple[int, int]
"""The number of its first block, and how many follow it, itself included."""


class Opening(Struct, frozen=True, kw_only=True, tag_field="kind", tag="recording"):
    """The first line."""

    version: int = VERSION
    started: float
    """Unix time of `at_s` 0."""
    policy: str


class RecordedModel(Struct, frozen=True, kw_only=True, tag_field="kind", tag="model"):
    """A model, before its first request."""

    model: str
    block_tokens: int
    """Prompt tokens that one block stands for, as far as was known when the model's first request ended."""


class Recorded(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="request"):
    """One request. Times are in seconds; what is not known is left out."""

    at_s: float
    """Arrival, since the recording began."""
    model: str
    prompt_tokens: int
    output_tokens: int | None = None
    """As the engine reported; absent if it did not answer."""
    cap_tokens: int | None = None
    """The caller's `max_tokens`."""
    runs: tuple[Run, ...] = ()
    stream: bool = True
    sequences: int = 1
    session: int | None = None
    """Numbered as they come."""
    tenant: str = "default"
    priority: int = 0
    slo_ttft_s: float | None = None
    slo_itl_s: float | None = None
    outcome: str = "completed"
    attempts: int = 1
    endpoint: str | None = None
    variant: str | None = None
    ttft_s: float | None = None
    """Arrival to first byte, streams only."""
    e2e_s: float = 0.0
    cached_tokens: int | None = None
    predicted_cached_tokens: int | None = None
    predicted_ttft_s: float | None = None
    predicted_itl_s: float | None = None


Line = Opening | RecordedModel | Recorded


class Numbering:
    """Numbers for what is seen again, in bounded memory: what is not seen for a while gets a new number when it comes back.

    Two generations: the older one is dropped when the younger is full, so what is in use is always remembered.
    """

    def __init__(self, limit: int) -> None:
        """Remember between `limit` / 2 and `limit` things."""
        self._half = max(1, limit // 2)
        self._young: dict[object, int] = {}
        """At most `_half`."""
        self._old: dict[object, int] = {}
        """At most `_half`; shares nothing with `_young` that is not in both with the same number."""
        self._next = 0

    def of(self, thing: object) -> int:
        """Return its number."""
        number = self._young.get(thing)
        if number is None:
            number = self._old.get(thing)
            if number is None:
                number = self._next
                self._next += 1
            if len(self._young) >= self._half:
                self._old, self._young = self._young, {}
            self._young[thing] = number
        return number

    def runs(self, chain: Sequence[int]) -> tuple[Run, ...]:
        """Number a prompt's chained block hashes."""
        found: list[Run] = []
        start = count = 0
        for block in chain:
            number = self.of(block)
            if count and number == start + count:
                count += 1
                continue
            if count:
                found.append((start, count))
            start, count = number, 1
        if count:
            found.append((start, count))
        return tuple(found)

    def __len__(self) -> int:
        """How many things are remembered."""
        return len(self._young.keys() | self._old.keys())


def read_recording(
    lines: Iterable[tuple[int, str]], place: str, model: str | None = None
) -> Iterator[tuple[int, Recorded, int]]:
    """Requests with their line numbers and block sizes. Of several models one must be named by `model`.

    Raises OperatorError naming `place`:line.
    """
    decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
    sizes: dict[str, int] = {}
    chosen = model
    for number, text in lines:
        try:
            line = decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise OperatorError(f"{place}:{number}: not a line of a recording: {error}") from error
        if isinstance(line, Opening):
            if line.version != VERSION:
                raise OperatorError(f"{place}:{number}: recording version {line.version}; this program reads {VERSION}")
        elif isinstance(line, RecordedModel):
            if line.block_tokens < 1:
                raise OperatorError(f"{place}:{number}: block_tokens is {line.block_tokens}; it is at least 1")
            sizes[line.model] = line.block_tokens
        elif line.model not in sizes:
            raise OperatorError(f"{place}:{number}: no line of kind model for {line.model!r} comes before this request")
        elif chosen is None or line.model == chosen:
            chosen = line.model
            yield number, line, sizes[line.model]
        elif model is None:
            raise OperatorError(
                f"{place}:{number}: requests for several models ({', '.join(sizes)});"
                " choose one (`--trace-model`, or `model` of the workload)"
            )
    if model is not None and model not in sizes:
        raise OperatorError(
            f"{place}: no requests for the model {model!r}; there are {', '.join(sizes) or 'none at all'}"
        )
