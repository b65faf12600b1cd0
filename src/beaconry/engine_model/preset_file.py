"""An engine preset as a file: what `beaconry fit` writes of an engine that was measured, and everything that takes a preset reads.

    apiVersion: beaconry/v1alpha1
    kind: EnginePreset
    model: my-model
    stepTime: {fixedS: 0.008, perSeqS: 0.00002, prefillTps: 15000}
    blocks: 20000
    source: "guessed by hand"

All times are seconds of the engine. What is left out of `stepTime` costs nothing.
"""

from typing import Annotated, Literal

import yaml
from msgspec import Meta, to_builtins

from beaconry.config.section import Section
from beaconry.engine_model.presets import Preset, Provenance
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings

Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]


class StepCosts(Section, frozen=True):
    """The coefficients of `LinearStepTime`."""

    fixed_s: Annotated[float, Meta(gt=0)]
    """Each step."""
    per_seq_s: Seconds = 0.0
    per_context_token_s: Seconds = 0.0
    prefill_tps: Annotated[float, Meta(gt=0)] | None = None
    """Prompt tokens per second; absent: they cost nothing."""
    prompt_s: Seconds = 0.0
    """Each step with prompt tokens."""
    per_attended_s: Seconds = 0.0


class PresetFile(Section, frozen=True):
    """The file."""

    api_version: Literal["beaconry/v1alpha1"]
    kind: Literal["EnginePreset"]
    model: str
    """What it answers to if nothing else is asked for."""
    step_time: StepCosts
    blocks: Count
    """KV blocks."""
    request_s: Seconds = 0.0
    """Each request, outside of steps: HTTP, tokenization, hand-over to the engine."""
    block_tokens: Count = 16
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 8192
    kv_bytes_per_token: Annotated[float, Meta(gt=0)] | None = None
    """What a token's KV takes, for engines that keep copies in their host's memory."""
    accelerators: Count = 1
    provenance: Provenance = Provenance.GUESSED
    source: str = ""
    """Where the figures come from, and how good they are."""

    def preset(self, name: str) -> Preset:
        """Return what it describes, under a name."""
        costs = self.step_time
        return Preset(
            name=name,
            model=self.model,
            step_time=LinearStepTime(
                fixed_s=costs.fixed_s,
                per_seq_s=costs.per_seq_s,
                per_context_token_s=costs.per_context_token_s,
                prefill_tps=costs.prefill_tps or float("inf"),
                prompt_s=costs.prompt_s,
                per_attended_s=costs.per_attended_s,
            ),
            request_s=self.request_s,
            settings=EngineSettings(
                num_blocks=self.blocks,
                block_tokens=self.block_tokens,
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_batched_tokens,
            ),
            provenance=self.provenance,
            source=self.source,
            kv_bytes_per_token=self.kv_bytes_per_token,
            accelerators=self.accelerators,
        )


def write_preset(file: PresetFile) -> str:
    """Return the file's text."""
    given = {name: value for name, value in to_builtins(file).items() if value is not None}
    return yaml.safe_dump(given, sort_keys=False, width=120, allow_unicode=True)
