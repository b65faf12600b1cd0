"""One sequence in an engine: what the caller asks for, and where the engine has got to with it.

A request with `n` completions is `n` sequences that share their prompt (and so its cached blocks).
"""

from collections.abc import Sequence as Sized
from enum import Enum

from msgspec import Struct

from beaconry.values.stage import Stage


class Phase(Enum):
    """Where a sequence is. Preemption goes back from PREFILL or DECODE to WAITING.

    IMPORT comes before PREFILL where a prompt's KV is computed elsewhere: blocks are there, their content is not, or has just come.
    """

    NEW = "new"
    WAITING = "waiting"
    IMPORT = "import"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"
    ABORTED = "aborted"


class Content(Struct, frozen=True, kw_only=True):
    """What a sequence's blocks hold, as far as it matters: which of them are alike, and what KV events say of them."""

    hashes: Sized[int] = ()
    """Chained hashes of the full blocks, prompt first: `hashes[i]` stands for all tokens up to the end of block i. They may grow as
    tokens are generated. Blocks without a hash are never shared."""
    tokens: Sized[int] | None = None
    """Token ids, prompt first, growing likewise; read only when the engine records KV events, and None if nobody needs them."""
    lora: str | None = None
    """The adapter it runs with; the hashes must already differ by it, and by the salt."""
    salt: str | None = None


UNKNOWN = Content()


class Sequence:
    """A prompt and the number of tokens that will be generated for it.

    The caller sets the first group and never changes it after submission. The engine sets the rest, and makes a stage WHOLE whose KV
    does not come; callers only read it.

    Attributes:
        id: unique among the sequences in the engine.
        prompt_tokens: at least 1.
        output_tokens: at least 1; all of them are generated unless the sequence is aborted.
        content: of its blocks.
        priority: lower is more urgent, in an engine that serves by priority.
        stage: PREFILL if its blocks are kept for another engine at its end, see `Holdings`. DECODE if its prompt's KV comes from another
            one, see `Imports`; computed here if it is lost to a preemption, or never comes.
        cached_tokens: prompt tokens found in the prefix cache at the first admission; None before it.
        fetched: prompt tokens whose KV came from another engine, or is to come.
        preemptions: how often the sequence lost its blocks and had to be computed again.
        arrived_s, admitted_s, first_token_s, finished_s: times of the latest submission, first admission, first and last token.

    """

    __slots__ = (
        "admission",
        "admitted_s",
        "arrived_s",
        "cached_tokens",
        "computed",
        "content",
        "due_step",
        "fetched",
        "finished_s",
        "first_token_s",
        "generated",
        "id",
        "origin_step",
        "output_tokens",
        "phase",
        "preemptions",
        "priority",
        "private_blocks",
        "prompt_tokens",
        "serial",
        "stage",
        "table",
    )

    def __init__(
        self,
        id: str,  # noqa: A002
        prompt_tokens: int,
        output_tokens: int,
        content: Content = UNKNOWN,
        *,
        priority: int = 0,
        stage: Stage = Stage.WHOLE,
    ) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.content = content
        self.priority = priority
        self.stage = stage

        self.phase = Phase.NEW
        self.cached_tokens: int | None = None
        self.fetched = 0
        self.preemptions = 0
        self.arrived_s = 0.0
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None
        self.finished_s: float | None = None

        self.serial = (
            0  # order in which it waits: that of submission; after a preemption before all others, unless by priority
        )
        self.admission = 0  # order of (re-)admission: the engine's running order
        self.generated = 0  # tokens generated, exact except in DECODE: there it is `step - origin_step`
        self.computed = 0  # tokens whose KV is computed, exact in PREFILL only
        self.origin_step = 0
        self.due_step = -1  # the step that generates the last token, in DECODE only
        self.table: list[int] = []  # keys of its shared blocks, in order, in the block pool
        self.private_blocks = 0  # blocks held behind `table`, not shareable (yet)

    def copy(self) -> "Sequence":
        """Return an independent sequence in the same place; the content is shared."""
        other = Sequence.__new__(Sequence)
        for name in Sequence.__slots__:
            setattr(other, name, getattr(self, name))
        other.table = self.table.copy()
        return other

    def __repr__(self) -> str:
        return f"<Sequence {self.id} {self.phase.value} {self.prompt_tokens}+{self.generated}/{self.output_tokens}>"
