"""What all sections of a configuration file share."""

from typing import Annotated

from msgspec import Meta, Struct

ABOVE_0 = Meta(gt=0)
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
"""Of a request: the highest goes first. llm-d's InferenceObjective has the same range; engines take it with either sign."""


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Frozen, strict, camelCase outside."""
