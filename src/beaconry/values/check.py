"""What an examination of an engine found: a check with its outcome each, and what to do about it."""

from enum import StrEnum

from msgspec import Struct


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    """It works, but worse than it could."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not configured, or it cannot be checked because something before it failed."""


class Check(Struct, frozen=True, kw_only=True):
    """The outcome of one check."""

    name: str
    state: State
    told: str
    """What was found."""
    remedy: str = ""
    """What to do; empty where there is nothing to do."""


class Examined(Struct, frozen=True, kw_only=True):
    """All that was found of one endpoint."""

    endpoint: str
    address: str
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """No check failed."""
        return all(check.state is not State.FAILED for check in self.checks)


def ok(name: str, told: str) -> Check:
    """All is well."""
    return Check(name=name, state=State.OK, told=told)


def warning(name: str, told: str, remedy: str) -> Check:
    """It could be better."""
    return Check(name=name, state=State.WARNING, told=told, remedy=remedy)


def failed(name: str, told: str, remedy: str) -> Check:
    """It does not work."""
    return Check(name=name, state=State.FAILED, told=told, remedy=remedy)


def skipped(name: str, told: str, remedy: str = "") -> Check:
    """It was not checked."""
    return Check(name=name, state=State.SKIPPED, told=told, remedy=remedy)
