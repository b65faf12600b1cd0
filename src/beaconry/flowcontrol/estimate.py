"""How much more requests turn out to take than was expected of them."""

_GAIN = 1 / 64
"""Of one request."""
_WORTH = 1000.0
"""Tokens that the belief at the start, that estimates are right, is worth."""
_MOST = 4.0
"""Beyond that factor an estimate is too wrong to be mended by one."""


class Estimate:
    """Of one band: cached prompts that were gone meanwhile, answers longer or shorter than usual.

    Who comes back to the queue begins at the level of those that wait, and their level has in it what is expected of their requests in
    flight. Were that too little or too much as a rule, every newcomer would begin ahead of them, or behind.
    """

    __slots__ = ("_expected", "_took")

    def __init__(self) -> None:
        self._expected = self._took = _WORTH
        """Tokens, means per request with the latest counting most."""

    @property
    def factor(self) -> float:
        """What an estimate is to be multiplied with."""
        return min(max(self._took / self._expected, 1 / _MOST), _MOST)

    def note(self, expected: float, took: float) -> None:
        """A request has ended."""
        self._expected += _GAIN * (expected - self._expected)
        self._took += _GAIN * (took - self._took)
