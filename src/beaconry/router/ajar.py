"""Which endpoints are not known to be closed: only these need be looked at again when it is somebody's turn.

What closes an endpoint (`Admission.is_open`) is more work in prefill there and the time that passes; only an event there takes work
away. So who was found closed stays so until that endpoint is told of again (`reopen`), and a router of hundreds of full endpoints looks
at one or two of them per fact. An endpoint may be closed to one band and open to another one: each kind of request has its own set.
Rates learnt elsewhere may say meanwhile that it is open after all: that shows with its next first byte, without which it were not closed.
"""

Kind = tuple[float, int | None]
"""A band's ceiling, and the priority to which others give way there, if they do."""
_KINDS = 32
"""Kept at once; bands are few, unless somebody makes them up."""


class Ajar:
    """Names of endpoints, by kind of request. Invariant: each set is a part of `_known`."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        """All that have been open ever, and are not forgotten."""
        self._sets: dict[Kind, set[str]] = {}

    def to(self, kind: Kind) -> set[str]:
        """Those not known to be closed; who finds one to be closed takes it out."""
        names = self._sets.get(kind)
        if names is None:
            if len(self._sets) >= _KINDS:
                self._sets.clear()
            names = self._sets[kind] = set(self._known)
        return names

    def reopen(self, name: str) -> None:
        """Something has happened that may leave room there."""
        self._known.add(name)
        for names in self._sets.values():
            names.add(name)

    def forget(self, name: str) -> None:
        """It gets nothing more."""
        self._known.discard(name)
        for names in self._sets.values():
            names.discard(name)
