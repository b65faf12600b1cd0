"""What the router wants done: a closed union, interpreted by the drivers only."""

from msgspec import Struct

from beaconry.values.decision import Decision
from beaconry.values.endpoint import Endpoint
from beaconry.values.outcome import Outcome
from beaconry.values.stage import Stage
from beaconry.values.tenant import Allowance


class StartLeg(Struct, frozen=True, gc=False):
    """Send the request, or a stage of it, to `endpoint`. Answer with LegStarted/LegFinished or LegFailed under `leg`.

    A prefill leg only finishes or fails. What its answer says of the KV stays with the driver, until the same request's decode leg or end.
    """

    request_id: str
    leg: int
    endpoint: Endpoint
    decision: Decision
    stage: Stage = Stage.WHOLE
    source: Endpoint | None = None
    """Who holds the prompt's KV; of a decode leg only."""
    priority: int | None = None
    """What the engine is to be told of the request's priority, in its own direction; None: nothing."""


class CancelLeg(Struct, frozen=True, gc=False):
    """Close the leg's connection at once; report nothing more of it."""

    request_id: str
    leg: int


class TellAllowance(Struct, frozen=True, gc=False):
    """The answer, whatever it will be, is to say what is left of the tenant's limits."""

    request_id: str
    allowances: tuple[Allowance, ...]


class Answer(Struct, frozen=True, kw_only=True, gc=False):
    """End a request whose answer has not begun with an OpenAI error object."""

    request_id: str
    status: int
    outcome: Outcome
    message: str
    code: str
    retry_after_s: float | None = None


class BreakStream(Struct, frozen=True, kw_only=True, gc=False):
    """End a request whose answer has begun: an SSE error event where it is a stream, then close."""

    request_id: str
    outcome: Outcome
    message: str
    code: str


class Ended(Struct, frozen=True, kw_only=True, gc=False):
    """The request is over: exactly one per request, after its last other effect. For the log."""

    request_id: str
    outcome: Outcome
    attempts: int
    """Legs started."""
    e2e_s: float
    """Since arrival."""


class WakeAt(Struct, frozen=True, gc=False):
    """Hand in TimerDue at this time, unless an earlier WakeAt is pending."""

    at_s: float


Effect = StartLeg | CancelLeg | TellAllowance | Answer | BreakStream | Ended | WakeAt
