"""What goes into an engine at its making, and what comes out of it."""

from msgspec import Struct

from beaconry.engine_model.sequence import Sequence
from beaconry.values.errors import OperatorError


class EngineSettings(Struct, frozen=True, kw_only=True):
    """The knobs of one engine, named and defaulted as in vLLM; `num_blocks` follows from memory, see `presets.py`."""

    num_blocks: int
    block_tokens: int = 16
    max_num_seqs: int = 256
    """Running sequences, at most."""
    max_num_batched_tokens: int = 8192
    """Token budget of a step."""
    prefix_caching: bool = True
    by_priority: bool = False
    """Serve by the sequences' priority, as vLLM does with `--scheduling-policy priority`; else it is ignored."""
    kv_lease_s: float = 30.0
    """How long blocks are kept for another engine that has not read them; that of vLLM's NIXL connector."""
    step_noise: float = 0.0
    """Standard deviation of a step's duration, relative, cut off at three deviations and at half the duration. No rng, no noise."""

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_tokens", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise OperatorError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise OperatorError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running sequence needs a token per step"
            )


class StepResult(Struct, frozen=True, kw_only=True):
    """What a step did. Each sequence that decodes after the step, and each finished one, got one token per step taken."""

    steps: int
    """Steps taken: 1 unless `begin_step` was allowed more."""
    started: list[Sequence]
    """Got the first token of all."""
    finished: list[Sequence]
    """Got their last token and are gone."""
    preempted: list[Sequence]
    """Lost their blocks and wait again; they keep the tokens generated so far."""
    prefill_tokens: int
    """Prompt tokens computed."""
    output_tokens: int
    """Tokens generated."""


class EngineStatistics(Struct, frozen=True, kw_only=True):
    """State, and totals since the start."""

    running: int
    waiting: int
    """Those that wait for KV from elsewhere included."""
    held: int
    """Finished sequences whose blocks are kept for another engine."""
    kv_usage: float
    """Share of blocks in use by sequences, 0..1; idle cached blocks are free."""
    cached_blocks: int
    context_tokens: int
    """KV tokens of the decoding sequences."""
    steps: int
    prefix_queries: int
    """Tokens looked up in the prefix cache, at first admissions."""
    prefix_hits: int
    """Tokens found there, on the GPU."""
    tier_queries: int
    """Tokens not found there and looked up in the tiers beside the GPU, those again after a preemption included."""
    loaded_tokens: int
    """Tokens found in those tiers and loaded."""
    imported_tokens: int
    """Prompt tokens whose KV came from other engines. They are no queries of the prefix cache."""
    found_tokens: int
    """Tokens of those prompts that were in the prefix cache and did not have to come; no hits of the prefix cache."""
    preemptions: int
    evictions: int
    """Cached blocks dropped."""
    prompt_tokens: int
    """Tokens of prompts whose prefill is complete."""
    computed_tokens: int
    """Prefill tokens computed, those again after a preemption included."""
    generation_tokens: int
