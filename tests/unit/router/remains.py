"""What a router still knows: every key of every dictionary that hangs on it."""

from collections.abc import Hashable

from msgspec import Struct


def keys_within(thing: object) -> set[Hashable]:
    """The keys of all dictionaries, and the members of all sets, that can be reached from `thing` by attributes and containers."""
    found: set[Hashable] = set()
    seen: set[int] = set()
    todo = [thing]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | type):
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            found.update(one)
            todo += [*one, *one.values()]
        elif isinstance(one, set | frozenset):
            found.update(one)
            todo += one
        elif hasattr(one, "__iter__") and not hasattr(one, "__next__") and not isinstance(one, Struct):
            todo += list(one)  # lists, tuples, deques, and our own that can be walked through
        todo += vars(one).values() if hasattr(one, "__dict__") else ()
        for kind in type(one).__mro__:
            slots = getattr(kind, "__slots__", ())
            todo += [getattr(one, name, None) for name in ((slots,) if isinstance(slots, str) else slots)]
    return found
