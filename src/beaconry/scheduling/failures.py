"""What to do when a plugin raises: it is neutral for that request, counted, and its last message kept for the shell to report."""

from msgspec import Struct


class PluginFailures(Struct):
    """How often a plugin raised, and what it said last."""

    count: int = 0
    last: str = ""


class FailureBook:
    """Failures by plugin ("kind/name"). Bounded by the number of plugins in use."""

    def __init__(self) -> None:
        self._failures: dict[str, PluginFailures] = {}

    def note(self, plugin: str, error: Exception) -> None:
        """Count a failure."""
        failures = self._failures.setdefault(plugin, PluginFailures())
        failures.count += 1
        failures.last = f"{type(error).__name__}: {error}"

    def statistics(self) -> dict[str, PluginFailures]:
        """Failures so far."""
        return self._failures
