"""Engines by name: `qwen3-32b/h100x2` is a model on two H100s.

Any model here goes with any hardware here and any degree of tensor parallelism; what is known of the result is its provenance:

    measured   its roofline is corrected by factors fitted to public measurements of this very combination (`calibrated.py`)
    fitted     both model and hardware were measured, in other combinations
    guessed    data sheet and efficiencies of its kin

The data sheets' figures are exact; efficiencies and overheads are one set for all. `python -m benchmarks.calibration` shows how far
both are from the measurements.
"""

import re
from enum import StrEnum
from typing import Final

from msgspec import Struct, structs

from beaconry.engine_model.calibrated import CALIBRATED, Calibration
from beaconry.engine_model.roofline import Hardware, Model, Overheads, Roofline, roofline
from beaconry.engine_model.step_time import StepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.values.errors import OperatorError


class Provenance(StrEnum):
    """How far a variant's timing can be trusted."""

    MEASURED = "measured"
    FITTED = "fitted"
    GUESSED = "guessed"


HARDWARE: Final = (
    Hardware(
        name="a100",
        memory_bytes=85.9e9,
        bandwidth_bps=2.04e12,
        flops=312e12,
        flops_8bit=312e12,
        link_bps=300e9,
        source="NVIDIA A100 80GB SXM data sheet; no FP8 unit",
    ),
    Hardware(
        name="h100",
        memory_bytes=85.5e9,
        bandwidth_bps=3.35e12,
        flops=989e12,
        flops_8bit=1979e12,
        link_bps=450e9,
        source="NVIDIA H100 SXM data sheet",
    ),
    Hardware(
        name="h200",
        memory_bytes=150.8e9,
        bandwidth_bps=4.8e12,
        flops=989e12,
        flops_8bit=1979e12,
        link_bps=450e9,
        source="NVIDIA H200 data sheet",
    ),
    Hardware(
        name="b200",
        memory_bytes=192.3e9,
        bandwidth_bps=8.0e12,
        flops=2250e12,
        flops_8bit=4500e12,
        link_bps=900e9,
        source="NVIDIA B200 data sheet",
    ),
    Hardware(
        name="l40s",
        memory_bytes=48.3e9,
        bandwidth_bps=0.864e12,
        flops=362e12,
        flops_8bit=733e12,
        link_bps=32e9,
        source="NVIDIA L40S data sheet; PCIe only",
    ),
    Hardware(
        name="mi300x",
        memory_bytes=206e9,
        bandwidth_bps=5.3e12,
        flops=1307e12,
        flops_8bit=2615e12,
        link_bps=448e9,
        source="AMD MI300X data sheet",
    ),
)

MODELS: Final = (
    Model(
        name="llama-3.1-8b",
        params=8.03e9,
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        source="config.json of meta-llama/Llama-3.1-8B",
    ),
    Model(
        name="llama-3.1-70b",
        params=70.6e9,
        layers=80,
        hidden=8192,
        heads=64,
        kv_heads=8,
        head_dim=128,
        source="config.json of meta-llama/Llama-3.1-70B",
    ),
    Model(
        name="qwen3-14b",
        params=14.8e9,
        layers=40,
        hidden=5120,
        heads=40,
        kv_heads=8,
        head_dim=128,
        source="config.json of Qwen/Qwen3-14B",
    ),
    Model(
        name="qwen3-32b",
        params=32.8e9,
        layers=64,
        hidden=5120,
        heads=64,
        kv_heads=8,
        head_dim=128,
        source="config.json of Qwen/Qwen3-32B",
    ),
    Model(
        name="gpt-oss-120b",
        params=116.8e9,
        layers=36,
        hidden=2880,
        heads=64,
        kv_heads=8,
        head_dim=64,
        experts=128,
        experts_per_token=4,
        expert_params=114.7e9,
        weight_bytes=0.53,
        full_attention_share=0.5,
        source="openai/gpt-oss-120b model card; MXFP4 experts, every second layer has a window of 128",
    ),
)

FP8_SUFFIX: Final = "-fp8"
"""Appended to a model's name: one byte per parameter."""

MEMORY_SHARE: Final = 0.92
"""Share of the accelerator's memory the engine takes; vLLM's default of `gpu-memory-utilization`."""
WORKSPACE_BYTES: Final = 4e9
"""Activations, graphs and libraries, per accelerator."""


class Preset(Struct, frozen=True, kw_only=True):
    """All that a simulated engine is made of."""

    name: str
    model: str
    """What it answers to if nothing else is asked for."""
    step_time: StepTime
    request_s: float
    """Per request, outside of steps."""
    settings: EngineSettings
    provenance: Provenance
    source: str
    kv_bytes_per_token: float | None = None
    """None if it is not known."""
    accelerators: int = 1
    """Each has its own way to the host's memory."""


class Variant(Struct, frozen=True, kw_only=True):
    """A model on hardware: engines of one variant run equally fast."""

    name: str
    model: Model
    hardware: Hardware
    tensor_parallel: int
    overheads: Overheads
    provenance: Provenance
    calibration: Calibration | None = None
    """What measurements of it say; None if there are none."""

    def kv_tokens(self, memory_share: float = MEMORY_SHARE) -> int:
        """Return the tokens of KV memory left beside the weights."""
        share = memory_share * self.hardware.memory_bytes - WORKSPACE_BYTES
        return int(
            (share * self.tensor_parallel - self.model.params * self.model.weight_bytes) / self.model.kv_bytes_per_token
        )

    def prior(self) -> Roofline:
        """Return how long its steps take by first principles alone."""
        return roofline(self.model, self.hardware, self.tensor_parallel, self.overheads)

    def step_time(self) -> Roofline:
        """Return how long its steps take, by what is known best."""
        return self.prior() if self.calibration is None else self.prior().corrected(self.calibration.corrections)

    def settings(self, block_tokens: int = 16, memory_share: float = MEMORY_SHARE) -> EngineSettings:
        """Return vLLM's default settings with all of its KV memory."""
        return EngineSettings(num_blocks=self.kv_tokens(memory_share) // block_tokens, block_tokens=block_tokens)

    def preset(self) -> Preset:
        """Return what engines of this variant are made of."""
        known = self.calibration
        return Preset(
            name=self.name,
            model=self.model.name,
            step_time=self.step_time(),
            request_s=0.0 if known is None else known.request_s,
            settings=self.settings(),
            provenance=self.provenance,
            source="first principles" if known is None else known.source,
            kv_bytes_per_token=self.model.kv_bytes_per_token,
            accelerators=self.tensor_parallel,
        )


def variant(name: str) -> Variant:
    """Return the variant of a name like `llama-3.1-8b/h100` or `qwen3-32b/h100x2`. OperatorError if there is none."""
    match = re.fullmatch(r"(?P<model>[\w.-]+)/(?P<hardware>\w+?)(?:x(?P<parallel>\d+))?", name)
    models = {model.name: model for model in MODELS}
    models |= {
        model.name + FP8_SUFFIX: structs.replace(model, name=model.name + FP8_SUFFIX, weight_bytes=1.0)
        for model in MODELS
        if model.weight_bytes > 1.0
    }
    hardware = {piece.name: piece for piece in HARDWARE}
    if match is None or match["model"] not in models or match["hardware"] not in hardware:
        raise OperatorError(
            f"no variant {name!r}: write MODEL/HARDWARE or MODEL/HARDWARExN with MODEL one of {', '.join(models)} "
            f"and HARDWARE one of {', '.join(hardware)}"
        )
    found = Variant(
        name=name,
        model=models[match["model"]],
        hardware=hardware[match["hardware"]],
        tensor_parallel=int(match["parallel"] or 1),
        overheads=Overheads(),
        provenance=_provenance(name),
        calibration=CALIBRATED.get(name),
    )
    if found.tensor_parallel < 1 or found.kv_tokens() < 1:
        raise OperatorError(f"{name}: the weights leave no memory for KV: use more or larger accelerators")
    return found


def _provenance(name: str) -> Provenance:
    if name in CALIBRATED:
        return Provenance.MEASURED
    model, hardware = name.split("/")
    bare = model.removesuffix(FP8_SUFFIX)
    known_model = any(other.startswith(bare) for other in CALIBRATED)
    known_hardware = any(other.split("/")[1].split("x")[0] == hardware.split("x")[0] for other in CALIBRATED)
    return Provenance.FITTED if known_model and known_hardware else Provenance.GUESSED
