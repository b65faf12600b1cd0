"""How long a step takes: the seam between the step machine and what is known of a model on its hardware."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class StepTime(Protocol):
    """Duration of one forward pass. Must be affine in `context` (other things equal), so that equal steps can be summed up."""

    def seconds(self, sequences: int, context: float, prefill: int, attended: float) -> float:
        """Return the step's duration.

        `sequences` decode one token each over `context` KV tokens in all; `prefill` prompt tokens are computed besides, and
        `attended` is the number of (token, earlier token) pairs their attention covers.
        """
        ...


class LinearStepTime(Struct, frozen=True, kw_only=True):
    """A coefficient per kind of work: what can be learnt from the outside, and what fits measured engines within a few percent."""

    fixed_s: float
    per_seq_s: float = 0.0
    """Per decoding sequence."""
    per_context_token_s: float = 0.0
    """Per KV token that the decoding sequences read."""
    prefill_tps: float = float("inf")
    """Prompt tokens per second."""
    prompt_s: float = 0.0
    """Per step with prompt tokens: such a step is launched piece by piece."""
    per_attended_s: float = 0.0
    """Attention of one prompt token to one earlier token."""

    def seconds(self, sequences: int, context: float, prefill: int, attended: float) -> float:
        """Return the sum of all terms; see `StepTime`."""
        return (
            self.fixed_s
            + self.per_seq_s * sequences
            + self.per_context_token_s * context
            + prefill / self.prefill_tps
            + (self.prompt_s if prefill else 0.0)
            + self.per_attended_s * attended
        )

    def features(self, sequences: int, context: float, prefill: int, attended: float) -> tuple[float, ...]:
        """Return what each coefficient is multiplied with, in their order; that of prompt tokens is 1 / `prefill_tps`."""
        return (1.0, float(sequences), context, float(prefill), 1.0 if prefill else 0.0, attended)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """In the order of `features`."""
        return (
            self.fixed_s,
            self.per_seq_s,
            self.per_context_token_s,
            1.0 / self.prefill_tps,
            self.prompt_s,
            self.per_attended_s,
        )

    @classmethod
    def of(cls, coefficients: Sequence[float]) -> "LinearStepTime":
        """Return the step time with these coefficients, in the order of `features`."""
        fixed_s, per_seq_s, per_context_token_s, per_prompt_token_s, prompt_s, per_attended_s = coefficients
        return cls(
            fixed_s=fixed_s,
            per_seq_s=per_seq_s,
            per_context_token_s=per_context_token_s,
            prefill_tps=1.0 / per_prompt_token_s if per_prompt_token_s else float("inf"),
            prompt_s=prompt_s,
            per_attended_s=per_attended_s,
        )
