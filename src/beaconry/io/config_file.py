"""YAML files to Structs."""

from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from beaconry.config.loading import load_yaml
from beaconry.config.yaml_tree import LIMIT_BYTES
from beaconry.values.errors import OperatorError

T = TypeVar("T", bound=Struct)


def read_yaml(path: Path, kind: type[T]) -> T:
    """Load a file strictly. Raises OperatorError naming file, line and remedy."""
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)  # one more than is taken, so that the loader refuses it
        text = content.decode()
    except OSError as fault:
        raise OperatorError(f"{path}: cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise OperatorError(f"{path}:{line}: is not UTF-8; save it as UTF-8") from None
    return load_yaml(text, kind, str(path))
