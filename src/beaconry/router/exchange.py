"""The state of one request and of its current leg: records without behaviour, changed by the router only."""

from msgspec.structs import replace

from beaconry.disagg.plan import Reason
from beaconry.flowcontrol.ticket import Ticket
from beaconry.kvindex.approximate import Placement
from beaconry.router.member import Member
from beaconry.values.candidate import Candidate
from beaconry.values.request import Request
from beaconry.values.stage import DECODE, PREFILL

RECALLS = 8
"""How often a request may be sent and taken back."""


class Leg:
    """One attempt of a request on one endpoint."""

    __slots__ = (
        "batch_at_first",
        "began_s",
        "block_tokens",
        "candidate",
        "dispatched_s",
        "ended_mark",
        "exchange",
        "first_byte_s",
        "fresh_tokens",
        "id",
        "loose_tokens",
        "member",
        "placement",
        "prefilled_mark",
        "prompt_tokens",
        "request",
        "stage",
        "uncached_tokens",
    )

    def __init__(
        self,
        leg: int,
        exchange: "Exchange",
        member: Member,
        candidate: Candidate,
        placement: Placement | None,
        now_s: float,
    ) -> None:
        """`candidate`: its `stage` is the leg's."""
        self.id = leg
        self.stage = candidate.stage
        self.request = request = as_prefill(exchange.request) if self.stage is PREFILL else exchange.request
        """What the engine is asked for."""
        self.exchange = exchange
        self.member = member
        self.candidate = candidate
        """The endpoint as it was when it was chosen."""
        self.placement = placement
        """What the index noted of it; None for a prompt without blocks."""
        self.dispatched_s = now_s
        self.prompt_tokens = request.prompt_tokens
        self.block_tokens = request.block_tokens
        uncached_tokens = request.prompt_tokens - candidate.matched_tokens - candidate.fetched_tokens
        self.uncached_tokens = uncached_tokens if uncached_tokens > 0 else 0
        self.fresh_tokens = request.prompt_tokens - (candidate.matched_tokens if candidate.sharers else 0)
        """Prompt tokens whose blocks were its own at dispatch: others in flight held those that it shares with them."""
        loose_tokens = request.prompt_tokens - len(request.prefix) * request.block_tokens
        self.loose_tokens = loose_tokens if loose_tokens > 0 else 0.0
        """Prompt tokens in no block that the index counts."""
        self.began_s = now_s
        """When its prefill was over; until then its dispatch."""
        self.ended_mark = member.ended
        """The member's `ended` at dispatch."""
        self.first_byte_s: float | None = None
        self.batch_at_first = 0
        self.prefilled_mark = 0
        """The member's `prefilled_tokens` at first byte."""

    def gives_way(self, priority: int) -> bool:
        """It is taken back for a request of `priority`, if it has no first byte. Not for ever; not if it is to fetch KV that is kept for
        it; and where a leg failed before there has been trouble enough."""
        exchange = self.exchange
        return (
            self.request.priority < priority
            and exchange.recalls < RECALLS
            and self.stage is not DECODE
            and not exchange.tried
        )


class Exchange:
    """One request from arrival to its one outcome."""

    __slots__ = ("attempts", "late_s", "leg", "plan", "prefill", "recalls", "request", "ticket", "tried", "whole")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.leg: Leg | None = None
        """The attempt in flight; None while it waits, and between two of the router's own steps."""
        self.ticket: Ticket | None = None
        """Its place in the queue, kept after dispatch; None if it was never queued."""
        self.prefill: Leg | None = None
        """The leg that has prefilled and whose KV the next one is to fetch."""
        self.plan = ""
        """Why it runs in so many legs, as planned last; empty where its model has no prefill endpoints."""
        self.whole: Reason | None = None
        """Why it is not to be split any more; None while it may be."""
        self.attempts = 0
        self.recalls = 0
        """How often it has been sent and taken back, which are no attempts."""
        self.late_s = 0.0
        """By how much its first token was to miss its objective at best; 0 unless it is refused for that."""
        self.tried: list[str] = []
        """Endpoints whose legs failed."""


def as_prefill(request: Request) -> Request:
    """A request as a prefill engine meets it: its end, which comes with the first token, tells how long the prompt took."""
    return replace(request, stream=True, output_tokens=0, slo_itl_s=None)
