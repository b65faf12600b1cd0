"""The requests that wait for the same engines: their bands, highest first, and how fast they go."""

from collections.abc import Callable

from beaconry.config.flow import BandConfig
from beaconry.flowcontrol.band import Band
from beaconry.flowcontrol.demand import Demand
from beaconry.flowcontrol.pace import Pace
from beaconry.flowcontrol.ticket import Ticket
from beaconry.values.errors import InternalError

OTHER = "other"
"""The name of all bands that are not configured."""


class Lane:
    """All bands of one lane. A band of a priority that is not configured is made when needed, and dropped when empty."""

    def __init__(self, configured: tuple[BandConfig, ...], ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._configured = {config.priority: config for config in configured}
        self.bands: dict[int, Band] = {}
        """By priority, highest first."""
        self.pace = Pace()
        """Of dispatches."""
        self.demand = Demand()
        for config in configured:
            self._add(config)

    @property
    def requests(self) -> int:
        """How many wait."""
        return sum(band.room.requests for band in self.bands.values())

    def band(self, priority: int) -> Band:
        """The band of a priority."""
        band = self.bands.get(priority)
        return band if band is not None else self._add(BandConfig(name=OTHER, priority=priority))

    def next(self, admits: Callable[[Band], bool]) -> Ticket | None:
        """The ticket whose turn it is in the highest band that `admits` lets pass; None if there is nobody."""
        for band in self.bands.values():
            if band.room.requests and admits(band):
                return band.head()
        return None

    def tidy(self, band: Band) -> None:
        """Forget a band of its own making that is empty."""
        if not band.room.requests and band.priority not in self._configured:
            self.bands.pop(band.priority, None)

    def requests_before(self, ticket: Ticket) -> int:
        """How many go before one that is about to be queued, were nobody to come after it."""
        priority = ticket.band.priority
        higher = sum(band.room.requests for band in self.bands.values() if band.priority > priority)
        return higher + ticket.band.turns_before(ticket)

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        for band in self.bands.values():
            band.check()
            if not band.room.requests and band.priority not in self._configured:
                raise InternalError(f"flow control: an empty band {band.priority} is kept")

    def _add(self, config: BandConfig) -> Band:
        band = Band(config, self._ttl_s)
        self.bands[config.priority] = band
        self.bands = dict(sorted(self.bands.items(), reverse=True))
        return band
