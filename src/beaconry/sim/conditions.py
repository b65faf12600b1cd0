"""What surrounds router and engines in virtual time: distances, delays, losses, faults and the patience of clients."""

from enum import StrEnum

from msgspec import Struct

from beaconry.config.gateway import Health
from beaconry.engine_model.kv_link import KvWay
from beaconry.sim.host import MANY_STEPS


class Clients(Struct, frozen=True, kw_only=True):
    """How clients take what they get."""

    timeout_s: float | None = None
    """They leave when an answer is not complete by then; None waits for ever."""
    retries: int = 0
    """Times they ask again after an error answer."""
    backoff_s: float = 1.0
    """Pause before the first retry, doubled each time; `Retry-After` counts if it is longer."""


class FaultKind(StrEnum):
    """What happens to engines, or to the news of them."""

    CRASH = "crash"
    """The process dies: its answers break, connections are refused, and it comes back empty."""
    HANG = "hang"
    """It takes connections and does nothing."""
    SLOW = "slow"
    """Each step takes `factor` times as long."""
    EVENT_GAP = "event-gap"
    """Its KV events are lost."""


class Fault(Struct, frozen=True, kw_only=True):
    """Something that befalls endpoints, from `at_s` for `for_s` seconds."""

    kind: FaultKind
    at_s: float
    for_s: float
    endpoints: tuple[str, ...]
    factor: float = 1.0


class Scaling(Struct, frozen=True, kw_only=True):
    """An endpoint is started, or drained and stopped, at `at_s`."""

    at_s: float
    endpoint: str
    up: bool


class Conditions(Struct, frozen=True, kw_only=True):
    """The world of one run. The defaults are a world without distances and faults."""

    client_s: float = 0.0
    """One way between client and router."""
    engine_s: float = 0.0
    """One way between router and engine."""
    request_s: dict[str, float] = {}
    """By endpoint, from a request's arrival at an engine to its queue: HTTP, tokenization, hand-over; absent is no time."""
    scrape_s: float = 1.0
    scrape_delay_s: float = 0.0
    """From an engine's state to the router's knowledge of it."""
    scrape_loss: float = 0.0
    """Share of the scrapes that fail."""
    health: Health = Health()
    kv_ways: dict[str, KvWay] = {}
    """By endpoint, how KV goes between its engine and others; absent is at once."""
    recompute: bool = False
    """Engines that find no KV to fetch compute the prompt, instead of failing the leg."""
    start_s: float = 0.0
    """From an engine's start to its first answer."""
    clients: Clients = Clients()
    faults: tuple[Fault, ...] = ()
    scalings: tuple[Scaling, ...] = ()
    standby: frozenset[str] = frozenset()
    """Endpoints that are not there at the beginning."""
    kv_events: bool = False
    """Engines tell the routers what their caches hold."""
    event_delay_s: float = 0.0
    event_loss: float = 0.0
    """Share of the event batches that get lost on their way to one router."""
    steps_at_once: int = MANY_STEPS
    """1 is an event per engine step: the naive version."""
