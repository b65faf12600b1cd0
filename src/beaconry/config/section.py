"""What all sections of a configuration file share."""

from msgspec import Struct


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Frozen, strict, camelCase outside."""
