"""What all sections of a configuration file share."""

from msgspec import Meta, Struct

ABOVE_0 = Meta(gt=0)


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Frozen, strict, camelCase outside."""
