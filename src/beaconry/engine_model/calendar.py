"""The decoding sequences of an engine, filed by the steps in which something happens to them.

Each of them generates one token per step, so the step number says all: how many tokens it has, in which steps it fills a block
(every `block_tokens` steps) and in which one it is done. A step costs what happens in it, not the size of the batch.
"""

from collections.abc import Collection, Iterator, Mapping
from heapq import heappop, heappush

from beaconry.engine_model.sequence import Phase, Sequence
from beaconry.values.errors import InternalError


class DecodeCalendar:
    """Who decodes, and what comes due when.

    Attributes:
        step: steps taken; the number of the step in progress while one is.
        context: KV tokens of all members before that step.

    `_due[s]` has the members whose last token is generated in step s, and perhaps such as have left since (their `due_step`
    differs); `_due_steps` is a heap of its keys. `_fills[r]` has the members that fill a block in steps congruent to r.

    """

    def __init__(self, block_tokens: int) -> None:
        self.step = 0
        self.context = 0
        self._members: dict[str, Sequence] = {}
        self._due: dict[int, list[Sequence]] = {}
        self._due_steps: list[int] = []
        self._fills: list[dict[str, Sequence]] = [{} for _ in range(block_tokens)]

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> Collection[Sequence]:
        """The decoding sequences, in no order that matters."""
        return self._members.values()

    def add(self, sequence: Sequence) -> None:
        """File a sequence that has just generated a token and has more to come. `step` is the next step already."""
        sequence.phase = Phase.DECODE
        sequence.origin_step = self.step - sequence.generated
        due = sequence.due_step = sequence.origin_step + sequence.output_tokens - 1
        self.context += sequence.computed
        self._members[sequence.id] = sequence
        self._fills[self._fill_class(sequence)][sequence.id] = sequence
        if due in self._due:
            self._due[due].append(sequence)
        else:
            self._due[due] = [sequence]
            heappush(self._due_steps, due)

    def remove(self, sequence: Sequence) -> None:
        """Take a member out and fix its `generated`."""
        sequence.generated = self.step - sequence.origin_step
        sequence.due_step = -1
        self.context -= self.computed(sequence)
        del self._members[sequence.id]
        del self._fills[self._fill_class(sequence)][sequence.id]

    def advance(self) -> list[Sequence]:
        """End the step: all members have one more token. Returns those that have their last one; they are still members."""
        ended = self.step
        self.step = ended + 1
        self.context += len(self._members)
        if not self._due_steps or self._due_steps[0] > ended:
            return []
        heappop(self._due_steps)
        return [sequence for sequence in self._due.pop(ended) if sequence.due_step == ended]

    def without_room(self, ahead: int = 0) -> Collection[Sequence]:
        """Return the members whose blocks are all full before this step (or the one `ahead` of it)."""
        return self._fills[(self.step + ahead - 1) % len(self._fills)].values()

    def filling(self) -> Collection[Sequence]:
        """Return the members whose last block becomes full in this step."""
        return self._fills[self.step % len(self._fills)].values()

    def without_room_within(self, steps: int) -> Iterator[tuple[Collection[Sequence], int]]:
        """Yield those that `without_room` gives 1 to `steps` steps ahead, with how often; the same ones once."""
        return self._within(self.step, steps)

    def filling_within(self, steps: int) -> Iterator[tuple[Collection[Sequence], int]]:
        """Yield those that `filling` gives 1 to `steps` steps ahead, with how often; the same ones once."""
        return self._within(self.step + 1, steps)

    def skip(self, steps: int) -> None:
        """End that many steps in which nobody has their last token."""
        self.step += steps
        self.context += steps * len(self._members)

    def steps_to_next_end(self) -> int:
        """Return how many steps there are until the next end of a sequence, that one included. Not while it is empty."""
        return self._due_steps[0] - self.step + 1

    def computed(self, sequence: Sequence) -> int:
        """Return the KV tokens of a member before this step."""
        return sequence.prompt_tokens + self.step - sequence.origin_step - 1

    def copy(self, twins: Mapping[str, Sequence]) -> "DecodeCalendar":
        """Return an independent calendar with the members' twins, by id."""
        other = DecodeCalendar(len(self._fills))
        other.step, other.context = self.step, self.context
        other._members = {sequence_id: twins[sequence_id] for sequence_id in self._members}
        other._fills = [{sequence_id: twins[sequence_id] for sequence_id in fill} for fill in self._fills]
        other._due_steps = self._due_steps.copy()
        other._due = {step: [twins[s.id] for s in due if s.due_step == step] for step, due in self._due.items()}
        return other

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        members = self._members
        conditions = {
            "context is summed up": self.context == sum(map(self.computed, members.values())),
            "no end is past": all(s.due_step >= self.step for s in members.values()),
            "ends are filed": all(s in self._due[s.due_step] for s in members.values()),
            "due steps are a heap of the due": sorted(self._due_steps) == sorted(self._due),
            "fill classes are right": all(s.id in self._fills[self._fill_class(s)] for s in members.values()),
            "nobody else is filed": sum(map(len, self._fills)) == len(members),
        }
        broken = [name for name, holds in conditions.items() if not holds]
        if broken:
            raise InternalError(f"decode calendar: not true that {', '.join(broken)}")

    def _within(self, first: int, steps: int) -> Iterator[tuple[Collection[Sequence], int]]:
        classes = self._fills
        size = len(classes)
        for offset in range(min(steps, size)):
            members = classes[(first + offset) % size]
            if members:
                yield members.values(), (steps - offset - 1) // size + 1

    def _fill_class(self, sequence: Sequence) -> int:
        """A member fills a block in the steps that end with a multiple of `block_tokens` KV tokens."""
        return (sequence.origin_step - sequence.prompt_tokens) % len(self._fills)
