"""What can happen to the router: a closed union. Each fact is handed in together with the time at which it happened.

A *leg* is one attempt of a request on one endpoint, named by the router when it starts it.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from beaconry.config.tenants import TenantLimits
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.kv_events import KvEvent, SourceState
from beaconry.values.request import Request, Usage


class Fault(StrEnum):
    """How a leg failed."""

    CONNECT = "connect"
    """No connection could be made."""
    RESET = "reset"
    """The connection ended before the response did."""
    STATUS = "status"
    """A 5xx answer, or 429 for a full engine queue."""
    ABORTED = "aborted"
    """A 200 whose first content is a finish reason "abort": the engine is shutting down."""
    PROTOCOL = "protocol"
    """Not HTTP."""


class RequestArrived(Struct, frozen=True, gc=False):
    """A whole, well-formed request is at the door."""

    request: Request


class RequestRefused(Struct, frozen=True, gc=False):
    """A request ended at the door: malformed, too large, no such path. Only counted."""

    status: int


class ClientLeft(Struct, frozen=True, gc=False):
    """The client's connection closed before its answer was complete."""

    request_id: str


class LegStarted(Struct, frozen=True, gc=False):
    """The first byte of the answer's body came (status below 500): from here on it is relayed."""

    leg: int
    status: int = 200


class LegProgressed(Struct, frozen=True, gc=False):
    """Bytes came since the last report. Sent at most once a second and leg, not per token."""

    leg: int


class LegFinished(Struct, frozen=True, gc=False):
    """The answer is complete; of a prefill leg, the prompt is computed."""

    leg: int
    status: int = 200
    usage: Usage | None = None
    handoff: bool = False
    """Of a prefill leg: its answer named KV that a decode leg can fetch."""


class LegFailed(Struct, frozen=True, gc=False):
    """The leg ended without a complete answer."""

    leg: int
    fault: Fault
    status: int = 0
    detail: str = ""


class EndpointSeen(Struct, frozen=True, gc=False):
    """Discovery names an endpoint: new, or with changed properties."""

    endpoint: Endpoint


class EndpointGone(Struct, frozen=True, gc=False):
    """Discovery no longer names it. Legs in flight there go on; nothing new is sent."""

    name: str


class HealthChecked(Struct, frozen=True, gc=False):
    """An active health check ended."""

    name: str
    healthy: bool


class LoadSampled(Struct, frozen=True, gc=False):
    """An engine's metrics were read."""

    name: str
    sample: LoadSample


class AdaptersSeen(Struct, frozen=True, gc=False):
    """The LoRA adapters that an endpoint serves beside its model, each under a name of its own."""

    name: str
    adapters: Mapping[str, str]
    """Paths by name, as the engine was told them: both enter its block hashes."""


class KvEvents(Struct, frozen=True, gc=False):
    """An engine's cache has changed. A few hundred blocks at most: more come as several facts."""

    name: str
    rank: int
    events: tuple[KvEvent, ...]


class KvCleared(Struct, frozen=True, gc=False):
    """All that was known of an engine's cache is void: it has restarted, or its past has to be told anew."""

    name: str
    rank: int


class KvSourceChanged(Struct, frozen=True, gc=False):
    """An engine's cache is known better or worse than before."""

    name: str
    rank: int
    state: SourceState
    reason: str
    """Why it is not exact; empty if it is."""


class TenantsChanged(Struct, frozen=True, gc=False):
    """All tenants there are from now on, with what they may take."""

    limits: dict[str, TenantLimits]


class TimerDue(Struct, frozen=True, gc=False):
    """A time asked for with `WakeAt` has come."""


class Drain(Struct, frozen=True, gc=False):
    """Graceful stop: refuse what arrives from now on, let the rest finish until `deadline_s`."""

    deadline_s: float


Fact = (
    RequestArrived
    | RequestRefused
    | ClientLeft
    | LegStarted
    | LegProgressed
    | LegFinished
    | LegFailed
    | EndpointSeen
    | EndpointGone
    | HealthChecked
    | LoadSampled
    | AdaptersSeen
    | KvEvents
    | KvCleared
    | KvSourceChanged
    | TenantsChanged
    | TimerDue
    | Drain
)
