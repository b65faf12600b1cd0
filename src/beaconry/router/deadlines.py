"""Deadlines that are all equally far away form a queue: insertion order is due order, so adding and removing are O(1)."""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
NEVER = float("inf")


class DeadlineQueue(Generic[K, V]):
    """Things that are due `timeout_s` after they were last touched."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._waiting: dict[K, tuple[float, V]] = {}
        """Key to (due time, thing), ordered by due time."""

    def touch(self, key: K, thing: V, now_s: float) -> float:
        """Add, or put back to the end; returns when it is due. `now_s` never runs backwards."""
        waiting = self._waiting
        if key in waiting:
            del waiting[key]
        due_s = now_s + self.timeout_s
        waiting[key] = (due_s, thing)
        return due_s

    def discard(self, key: K) -> None:
        """Take out, if there."""
        self._waiting.pop(key, None)

    def due_s(self) -> float:
        """When the first one is due; NEVER if there is none."""
        for due_s, _ in self._waiting.values():
            return due_s
        return NEVER

    def take_due(self, now_s: float) -> list[V]:
        """Remove and return what is due."""
        due: list[tuple[K, V]] = []
        for key, (due_s, thing) in self._waiting.items():
            if due_s > now_s:
                break
            due.append((key, thing))
        for key, _ in due:
            del self._waiting[key]
        return [thing for _, thing in due]

    def __len__(self) -> int:
        return len(self._waiting)
