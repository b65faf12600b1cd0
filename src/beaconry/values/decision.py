"""Where a request goes and why: the trace that log, debug headers, `explain` and simulator print alike."""

from msgspec import Struct

from beaconry.values.candidate import Candidate, Prediction
from beaconry.values.endpoint import Endpoint


class Verdict(Struct, frozen=True, kw_only=True):
    """What a policy made of one candidate."""

    candidate: Candidate
    prediction: Prediction | None = None
    terms: dict[str, float] = {}
    """Named parts of the cost in seconds (or of the score, for weighted profiles)."""
    total: float = 0.0
    reason: str = ""
    """Why it lost, or why it won; "" until the pick."""


class Decision(Struct, frozen=True, kw_only=True):
    """The chosen endpoint and the verdict on every candidate, chosen one first."""

    endpoint: Endpoint
    policy: str
    verdicts: tuple[Verdict, ...]

    @property
    def chosen(self) -> Verdict:
        """The verdict on the endpoint that was picked."""
        return self.verdicts[0]
