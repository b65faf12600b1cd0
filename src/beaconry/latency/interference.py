"""What a decoding sequence has met of late in its engine's steps: the other sequences of its batch, and prompts.

Most of what stalls a reply comes later than the reply itself, so at dispatch nobody can count it; but prompts go on coming as they have
come. They come by the second, not by the step: what they add is therefore kept as a share, seconds of prefill by seconds of decoding,
which stays as it is while a growing batch makes every step longer. Each step counts once for each of its sequences, since it is they who
meet it: prompts that are computed while nobody decodes stall nobody.
"""

_KEPT = 0.99
"""What steps keep of their weight when a further request comes: the times of the last hundred count. Fewer follow a change of load sooner,
but prompts of very different lengths need as many for a mean."""


class Interference:
    """One engine's. Sums over the steps, by weight; all of them 0 before the first step in which a sequence decodes."""

    __slots__ = ("_decode_s", "_prefill_s", "_sequences")

    def __init__(self) -> None:
        self._sequences = 0.0
        self._decode_s = 0.0
        self._prefill_s = 0.0

    def age(self) -> None:
        """A request comes: what was counts for a little less."""
        self._sequences *= _KEPT
        self._decode_s *= _KEPT
        self._prefill_s *= _KEPT

    def note(self, sequences: float, decode_s: float, prefill_s: float) -> None:
        """`sequences`, above 0, have met a step of `decode_s`, and of `prefill_s` on top for prompts. Several equal steps: so many times
        the sequences."""
        self._sequences += sequences
        self._decode_s += sequences * decode_s
        self._prefill_s += sequences * prefill_s

    @property
    def step_s(self) -> float | None:
        """The decoding of a step, in seconds on average; None before the first."""
        return self._decode_s / self._sequences if self._sequences else None

    @property
    def stretch(self) -> float:
        """How many times as long as its decoding a step takes, prompts included; at least 1."""
        return 1.0 + self._prefill_s / self._decode_s if self._decode_s else 1.0
