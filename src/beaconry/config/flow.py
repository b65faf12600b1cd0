"""Flow control's knobs: what may wait in the gateway, for how long, and who goes first.

Nothing here needs tuning to an engine: how much an engine can use at once is learnt. The bounds keep a flood from taking all memory.
"""

from typing import Annotated, Literal

from msgspec import Meta

from beaconry.config.section import ABOVE_0, Priority, Section

SHARE = Meta(gt=0, le=1)
Fairness = Literal["tokens", "requests", "round-robin", "least-attained"]
Ordering = Literal["fcfs", "edf", "slo"]


class BandConfig(Section, frozen=True):
    """One priority. Requests of a priority that no band names get a band of their own with these defaults."""

    name: str
    """For metrics and answers."""
    priority: Priority
    """Higher goes first."""
    ttl_s: Annotated[float, ABOVE_0] | None = None
    """How long a request may wait for dispatch, unless it says so itself; absent takes `flow.ttlS`."""
    ceiling: Annotated[float, SHARE] = 1.0
    """Its share of `flow.engineWaitS`: with less of it waiting in the engines, the bands before it find them sooner free."""
    fairness: Fairness = "tokens"
    """Who of several tenants goes next: equal tokens by weight, equal requests by weight, one after the other, or whose agent program
    (tenant, where a request names none) had the least so far."""
    ordering: Ordering = "fcfs"
    """Which of a tenant's requests: by arrival, by the end of its time to live, or by arrival plus its objective for the first token."""
    queued_requests: Annotated[int, Meta(ge=0)] | None = None
    """Bounds for this band alone; absent leaves those of all bands together."""
    queued_tokens: Annotated[int, Meta(ge=0)] | None = None
    queued_bytes: Annotated[int, Meta(ge=0)] | None = None


class Flow(Section, frozen=True):
    """When requests are sent on to an engine."""

    enabled: bool = True
    """Without it every request goes to an engine as it arrives, and waits there in the order of arrival."""
    engine_wait_s: Annotated[float, ABOVE_0] = 1.0
    """What may wait in an engine before its prefill. Some must, or the engine runs dry between two steps (10 to 200 ms each); what waits
    beyond that gains nothing there and can no longer be put in order."""
    ttl_s: Annotated[float, ABOVE_0] = 30.0
    """Waiting for dispatch: after that interactive clients are gone; then 429."""
    hold_s: Annotated[float, Meta(ge=0)] = 0.0
    """Waiting while no engine serves the model, as when it is scaled to zero; then 503. 0 answers at once."""
    recall: bool = True
    """What a lower band has waiting for prefill in an engine gives way to a request of a higher band that is sent there: it is taken back
    to the head of the queue. Its client notices nothing but the wait, and blocks that were computed stay in the engine's cache. For
    engines that do not end a request whose connection closes, turn it off."""
    evict_sheddable: bool = False
    """Running requests of negative priority are ended for higher ones that have waited for `engineWaitS`, one for one: what they have
    computed is lost, so it is for traffic that comes again by itself."""
    refuse_late_below: int = 0
    """Requests of a lower priority than this are refused at once if their first token is forecast to miss their objective wherever they go:
    the default sheds what is sheddable. What is to be served late rather than never is above."""
    queued_requests: Annotated[int, Meta(ge=0)] = 10_000
    """All bands and models together. A waiting request takes about 1 KB beside its body."""
    queued_tokens: Annotated[int, Meta(ge=0)] = 50_000_000
    """Prompt tokens waiting: minutes of prefill for a hundred engines."""
    queued_bytes: Annotated[int, Meta(ge=0)] = 536_870_912
    """Prompt text waiting: half of what `limits.bufferedBytes` lets in at all."""
    bands: tuple[BandConfig, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for bands that cannot be told apart."""
        for what in ("name", "priority"):
            values = [getattr(band, what) for band in self.bands]
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{values.count(value)} bands have the {what} {value!r}; it must differ")
