"""Prompts that one engine computes and another decodes: whose KV waits here to be fetched, and who waits here for KV from elsewhere.

Follows vLLM's NIXL connector, which pulls. The prefill engine ends the sequence with its first token and keeps its blocks for the reader,
until that has read them or a lease ends. The decode engine admits a sequence when there are blocks for its whole prompt, but gives it no
place and no tokens: it waits for what its own cache does not hold. When that has come the sequence needs one step, which computes the
last prompt token again and so samples the first token of the answer; it is admitted before all that waits, since it holds memory.

How long a transfer takes is not known here: the driver asks what has to come, and says when it has.

Source: vLLM `v1/core/sched/scheduler.py` (WAITING_FOR_REMOTE_KVS) and `distributed/kv_transfer/kv_connector/v1/nixl`. One difference:
who is aborted while its KV is on the way loses its blocks at once, and not at the end of the transfer.
"""

from collections.abc import Mapping

from beaconry.engine_model.block_pool import BlockPool
from beaconry.engine_model.sequence import Phase, Sequence
from beaconry.engine_model.waiting_queue import WaitingQueue
from beaconry.values.stage import Stage

NEVER = float("inf")


class Holdings:
    """Finished sequences whose blocks are kept for a reader, with the end of each one's lease, by id."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._held: dict[str, tuple[Sequence, float]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._held

    @property
    def sequences(self) -> list[Sequence]:
        """Those held, oldest first."""
        return [sequence for sequence, _ in self._held.values()]

    @property
    def first_end_s(self) -> float:
        """When the next lease ends; NEVER if none does."""
        return min((until_s for _, until_s in self._held.values()), default=NEVER)

    def keep(self, sequence: Sequence, until_s: float) -> None:
        """Hold a sequence."""
        self._held[sequence.id] = (sequence, until_s)

    def renew(self, sequence_id: str, until_s: float) -> bool:
        """Hold a sequence until another time. False if it is not held any more."""
        if sequence_id not in self._held:
            return False
        self.keep(self._held[sequence_id][0], until_s)
        return True

    def extend(self, sequence_id: str, until_s: float) -> bool:
        """Hold a sequence at least until another time. False if it is not held any more."""
        _, end_s = self._held.get(sequence_id, (None, 0.0))
        return self.renew(sequence_id, max(until_s, end_s))

    def release(self, sequence_id: str) -> bool:
        """Free a sequence's blocks: they are read. False if it is not held any more."""
        sequence, _ = self._held.pop(sequence_id, (None, 0.0))
        if sequence is not None:
            self._pool.release(sequence)
        return sequence is not None

    def expire(self, now_s: float) -> int:
        """Free the blocks of those whose lease has ended; returns how many sequences those are."""
        due = [name for name, (_, until_s) in self._held.items() if until_s <= now_s]
        for name in due:
            self.release(name)
        return len(due)

    def copy(self, pool: BlockPool) -> "Holdings":
        """Return independent holdings in a copied pool."""
        other = Holdings(pool)
        other._held = {name: (sequence.copy(), until_s) for name, (sequence, until_s) in self._held.items()}
        return other


class Imports:
    """Sequences that have blocks for their prompt, and no KV in them or no step yet.

    `_coming` and `_come` have them by id, before and after their KV has come; `_untold` are those of `_coming` that the driver does not
    know of.

    Attributes:
        tokens: prompt tokens that have come since the start.
        found: prompt tokens, of sequences whose KV has come, that were in the own cache.

    """

    def __init__(self, pool: BlockPool, waiting: WaitingQueue) -> None:
        """`waiting` is the engine's queue, for those whose KV does not come."""
        self._pool = pool
        self._waiting = waiting
        self._coming: dict[str, Sequence] = {}
        self._come: dict[str, Sequence] = {}
        self._untold: list[Sequence] = []
        self.tokens = self.found = 0

    def __len__(self) -> int:
        return len(self._coming) + len(self._come)

    @property
    def ready(self) -> bool:
        """Whether anybody's KV has come."""
        return bool(self._come)

    @property
    def ids(self) -> set[str]:
        """Of all of them."""
        return {*self._coming, *self._come}

    def begin(self, sequence: Sequence) -> None:
        """Make room for a whole prompt, of which the blocks in `table` are here already. The caller has checked that there is room."""
        size = self._pool.block_tokens
        missing = -(-sequence.prompt_tokens // size) - len(sequence.table)
        self._pool.allocate(missing)
        sequence.private_blocks += missing
        sequence.cached_tokens = len(sequence.table) * size
        sequence.fetched = sequence.prompt_tokens - sequence.cached_tokens
        sequence.phase = Phase.IMPORT
        self._coming[sequence.id] = sequence
        self._untold.append(sequence)

    def take_untold(self) -> list[Sequence]:
        """Return whose KV may come, each once: that of the last `fetched` tokens of the prompt."""
        untold = self._untold
        if untold:
            self._untold = []
        return untold

    def arrive(self, sequence_id: str) -> bool:
        """A sequence's KV has come. False if nobody here waits for it."""
        sequence = self._coming.pop(sequence_id, None)
        if sequence is None:
            return False
        self._come[sequence_id] = sequence
        self.tokens += sequence.fetched
        self.found += sequence.prompt_tokens - sequence.fetched
        sequence.computed = sequence.prompt_tokens - 1
        self._pool.publish(sequence, sequence.computed // self._pool.block_tokens)
        return True

    def lose(self, sequence_id: str) -> bool:
        """A sequence's KV will not come: it waits again, as long as it has, to be computed here. False if nobody here waits for it."""
        sequence = self._coming.get(sequence_id)
        if sequence is None:
            return False
        self.discard(sequence)
        self._pool.release(sequence)
        sequence.stage = Stage.WHOLE
        sequence.fetched = 0
        sequence.admitted_s = sequence.cached_tokens = None
        self._waiting.push(sequence)
        return True

    def take_ready(self, most: int) -> list[Sequence]:
        """Take out those whose KV has come, most urgent first."""
        first = sorted(self._come.values(), key=self._waiting.rank)[:most]
        for sequence in first:
            del self._come[sequence.id]
        return first

    def discard(self, sequence: Sequence) -> None:
        """Drop a sequence, whether its KV has come or not."""
        self._come.pop(sequence.id, None)
        if self._coming.pop(sequence.id, None) is not None and sequence in self._untold:
            self._untold.remove(sequence)

    def copy(self, pool: BlockPool, waiting: WaitingQueue, twins: Mapping[str, Sequence]) -> "Imports":
        """Return imports of the sequences' twins, by id, in a copied pool; the driver is told of none of them."""
        other = Imports(pool, waiting)
        other.tokens, other.found = self.tokens, self.found
        other._coming = {name: twins[name] for name in self._coming}
        other._come = {name: twins[name] for name in self._come}
        return other
