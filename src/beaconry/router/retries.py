"""How many retries the recent traffic allows, so that an outage is not multiplied by its own retries (linkerd's retry budget).

An engine that dies takes all its legs with it at once, however few requests have come lately: where answers take minutes, a share of
the arrivals would not cover them. So what is running counts too (as in Envoy's budget), unless the fault is that engines are full.
"""

from collections import deque

WINDOW_S = 10.0


class RetryBudget:
    """At most `floor + ratio * requests + running` retries within the last ten seconds, counted in one-second cells."""

    def __init__(self, ratio: float, floor: int) -> None:
        self._ratio = ratio
        self._floor = floor
        self._cells: deque[list[float]] = deque()
        """[second, requests, retries], oldest first, none older than the window."""
        self._now = [0.0, 0.0, 0.0]
        """The cell of the second that ends at `_until_s`; of none before the first request."""
        self._until_s = 0.0
        self._requests = 0.0
        """Sum over the cells; likewise `_retries`."""
        self._retries = 0.0

    def request(self, now_s: float) -> None:
        """Count an arrival."""
        if now_s >= self._until_s:
            self._now = self._cell(now_s)
            self._until_s = self._now[0] + 1.0
        self._now[1] += 1
        self._requests += 1

    def try_retry(self, now_s: float, running: int) -> bool:
        """Count a retry if the budget has one. `running` is the number of requests that one more fault may have hit; 0 if none can."""
        cell = self._cell(now_s)
        if self._retries >= self._floor + self._ratio * self._requests + running:
            return False
        cell[2] += 1
        self._retries += 1
        return True

    def _cell(self, now_s: float) -> list[float]:
        second = float(int(now_s))
        while self._cells and self._cells[0][0] <= second - WINDOW_S:
            _, requests, retries = self._cells.popleft()
            self._requests -= requests
            self._retries -= retries
        if not self._cells or self._cells[-1][0] != second:
            self._cells.append([second, 0.0, 0.0])
        return self._cells[-1]
