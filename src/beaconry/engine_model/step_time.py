"""How long a step takes: the seam between the step machine and what is known of a model on its hardware."""

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
    """Four coefficients: what can be learnt from the outside, and what fits measured engines within a few percent."""

    fixed_s: float
    per_seq_s: float = 0.0
    """Per decoding sequence."""
    per_context_token_s: float = 0.0
    """Per KV token that the decoding sequences read."""
    prefill_tps: float = float("inf")
    """Prompt tokens per second."""

    def seconds(self, sequences: int, context: float, prefill: int, attended: float) -> float:  # noqa: ARG002 (no such term)
        """Return fixed + sequences + context + prefill time; see `StepTime`."""
        return (
            self.fixed_s + self.per_seq_s * sequences + self.per_context_token_s * context + prefill / self.prefill_tps
        )
