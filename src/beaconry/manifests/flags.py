"""What an engine's arguments say, as the engine reads them."""

from collections.abc import Sequence


def last_value(args: Sequence[str], flag: str) -> str | None:
    """The value of a flag: the last one wins; None if it is not there."""
    found = None
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else "".join(args[index + 1 : index + 2])
    return found
