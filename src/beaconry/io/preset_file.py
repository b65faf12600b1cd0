"""A preset by what an operator writes: the name of a model on hardware, or a file that `beaconry fit` has written."""

from pathlib import Path

from beaconry.engine_model.preset_file import PresetFile
from beaconry.engine_model.presets import Preset, variant
from beaconry.io.config_file import read_yaml

SUFFIXES = (".yaml", ".yml")
"""What tells a file from a name."""


def read_preset(name: str) -> Preset:
    """Return the preset called `name`. OperatorError if there is none, or if the file is not one."""
    if name.endswith(SUFFIXES):
        return read_yaml(Path(name), PresetFile).preset(name)
    return variant(name).preset()
