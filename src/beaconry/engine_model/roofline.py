"""Step time from first principles: what a forward pass must read and compute, over what the hardware can read and compute.

    step = host + layers + max(weights read, matrix products) + KV read + prompt attention + all-reduces

Weights are read once a step; a mixture of experts reads those its tokens choose: with E experts, k chosen per token, n tokens
touch E (1 - (1 - k/E)^n) of them. Each decoding sequence reads its whole KV. Cheap to evaluate, and right within some tens of
percent: a simulator's truth and a cold start's prior, not a measurement. Efficiencies and overheads are global, fitted to public
measurements of vLLM; the tests of `presets.py` list those with the errors left.
"""

from msgspec import Struct


class Hardware(Struct, frozen=True, kw_only=True):
    """One accelerator. Peak figures are data-sheet values; efficiencies are what kernels reach of them."""

    name: str
    memory_bytes: float
    bandwidth_bps: float
    """Bytes per second from its memory."""
    flops: float
    """Dense BF16 operations per second."""
    flops_8bit: float
    """Dense FP8 (or INT8) operations per second; equal to `flops` where there is no such unit."""
    link_bps: float
    """Bytes per second to its peers, one direction."""
    weight_efficiency: float = 0.95
    """Share of `bandwidth_bps` reached when reading weights."""
    kv_efficiency: float = 0.97
    """Share reached when reading KV."""
    compute_efficiency: float = 0.62
    """Share of `flops` reached in long prompts."""
    compute_efficiency_8bit: float = 0.53
    """Share of `flops_8bit` reached."""
    source: str = ""


class Model(Struct, frozen=True, kw_only=True):
    """What a decoder costs, per token and in all. Counts are of the whole model, before tensor parallelism."""

    name: str
    params: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int = 1
    experts_per_token: int = 1
    expert_params: float = 0.0
    """Parameters in all experts together; 0 for a dense model."""
    weight_bytes: float = 2.0
    """Bytes per parameter."""
    kv_bytes: float = 2.0
    """Bytes per KV element."""
    full_attention_share: float = 1.0
    """Share of layers that attend to everything; the others have a short window, whose KV is neglected."""
    source: str = ""

    @property
    def kv_bytes_per_token(self) -> float:
        """KV memory per token over all layers."""
        return 2.0 * self.layers * self.full_attention_share * self.kv_heads * self.head_dim * self.kv_bytes

    @property
    def active_params(self) -> float:
        """Parameters one token passes."""
        return self.params - self.expert_params * (1.0 - self.experts_per_token / self.experts)


class Overheads(Struct, frozen=True, kw_only=True):
    """Time that no data sheet explains, in seconds; fitted (see `presets.py`)."""

    step_s: float = 0.0014
    """Per step: scheduling, sampling, and launching what is not captured in a graph."""
    layer_s: float = 24e-6
    """Per layer and step: kernels that neither read nor compute much."""
    prompt_layer_s: float = 150e-6
    """Per layer, in steps with prompt tokens: those are launched piece by piece, not from one graph."""
    all_reduce_s: float = 14e-6
    """Latency of one of a layer's two all-reduces, with more than one accelerator."""
    sequence_s: float = 15e-6
    """Per decoding sequence and step, on the host."""


class Corrections(Struct, frozen=True, kw_only=True):
    """Factors on the terms of a roofline, from measurements of a variant; 1 is what first principles say."""

    overhead: float = 1.0
    """Time per step: host, layers, latency of all-reduces."""
    prompt: float = 1.0
    """Time per step with prompt tokens."""
    sequences: float = 1.0
    """Time per decoding sequence."""
    weights: float = 1.0
    """Reading weights."""
    compute: float = 1.0
    """Matrix products, prompt attention, and the all-reduces' share per token."""
    kv: float = 1.0
    """Reading KV."""


class Roofline(Struct, frozen=True, kw_only=True):
    """A `StepTime` for a model on `tensor_parallel` pieces of hardware: coefficients in seconds, made by `roofline`."""

    fixed_s: float
    """Per step: host, layers, and latency of all-reduces."""
    prompt_s: float
    """Per step with prompt tokens."""
    per_seq_s: float
    dense_read_s: float
    """Reading the weights every step reads."""
    expert_read_s: float
    """Reading all experts' weights."""
    expert_miss: float
    """Probability that a token does not choose a given expert."""
    per_token_s: float
    """Matrix products of one token."""
    per_context_token_s: float
    """Reading the KV of one token."""
    per_attended_s: float
    """Attention of one prompt token to one earlier token."""
    per_token_link_s: float
    """All-reduces of one token."""

    def seconds(self, sequences: int, context: float, prefill: int, attended: float) -> float:
        """Return the step's duration; see `StepTime`."""
        tokens = sequences + prefill
        read_s = self.dense_read_s
        if self.expert_read_s:
            read_s += self.expert_read_s * (1.0 - self.expert_miss**tokens)
        compute_s = self.per_token_s * tokens
        return (
            self.fixed_s
            + (self.prompt_s if prefill else 0.0)
            + self.per_seq_s * sequences
            + max(read_s, compute_s)
            + self.per_context_token_s * context
            + self.per_attended_s * attended
            + self.per_token_link_s * tokens
        )

    def features(self, sequences: int, context: float, prefill: int, attended: float) -> tuple[float, ...]:
        """Return the seconds of each term of `Corrections`, in its order. Of reading weights and computing only the longer one counts."""
        tokens = sequences + prefill
        read_s = self.dense_read_s + self.expert_read_s * (1.0 - self.expert_miss**tokens)
        compute_s = self.per_token_s * tokens
        reading = read_s > compute_s
        return (
            self.fixed_s,
            self.prompt_s if prefill else 0.0,
            self.per_seq_s * sequences,
            read_s if reading else 0.0,
            (0.0 if reading else compute_s) + self.per_attended_s * attended + self.per_token_link_s * tokens,
            self.per_context_token_s * context,
        )

    def corrected(self, by: Corrections) -> "Roofline":
        """Return the step time with each term multiplied."""
        return Roofline(
            fixed_s=self.fixed_s * by.overhead,
            prompt_s=self.prompt_s * by.prompt,
            per_seq_s=self.per_seq_s * by.sequences,
            dense_read_s=self.dense_read_s * by.weights,
            expert_read_s=self.expert_read_s * by.weights,
            expert_miss=self.expert_miss,
            per_token_s=self.per_token_s * by.compute,
            per_context_token_s=self.per_context_token_s * by.kv,
            per_attended_s=self.per_attended_s * by.compute,
            per_token_link_s=self.per_token_link_s * by.compute,
        )


def roofline(model: Model, hardware: Hardware, tensor_parallel: int, overheads: Overheads) -> Roofline:
    """Return the step time of a model split over `tensor_parallel` accelerators."""
    bandwidth = hardware.bandwidth_bps * tensor_parallel
    read_bps = bandwidth * hardware.weight_efficiency
    if model.weight_bytes == 1.0:
        flops = hardware.flops_8bit * hardware.compute_efficiency_8bit * tensor_parallel
    else:
        flops = hardware.flops * hardware.compute_efficiency * tensor_parallel
    all_reduces = 2 * model.layers if tensor_parallel > 1 else 0
    moved_bytes = 2.0 * model.hidden * 2.0 * (tensor_parallel - 1) / tensor_parallel
    return Roofline(
        fixed_s=overheads.step_s + model.layers * overheads.layer_s + all_reduces * overheads.all_reduce_s,
        prompt_s=model.layers * overheads.prompt_layer_s,
        per_seq_s=overheads.sequence_s,
        dense_read_s=(model.params - model.expert_params) * model.weight_bytes / read_bps,
        expert_read_s=model.expert_params * model.weight_bytes / read_bps,
        expert_miss=1.0 - model.experts_per_token / model.experts,
        per_token_s=2.0 * model.active_params / flops,
        per_context_token_s=model.kv_bytes_per_token / (bandwidth * hardware.kv_efficiency),
        per_attended_s=4.0 * model.layers * model.full_attention_share * model.heads * model.head_dim / flops,
        per_token_link_s=all_reduces * moved_bytes / hardware.link_bps,
    )
