"""Where a leg goes: which endpoints may get it, what each of them holds of the prompt, and which one the scheduler takes.

And what the leg is to compute. A model without prefill endpoints has every request answered in one leg; with them, a request is planned
each time it is placed, unless its prompt has just been prefilled: then the endpoint that answers is chosen, as late as that.
"""

from collections.abc import Sequence
from random import Random

from msgspec import Struct
from msgspec.structs import replace

from beaconry.config.disaggregation import Disaggregation
from beaconry.disagg.plan import LITTLE, Plan, Prefill, Reason, plan
from beaconry.router.admission import Admission
from beaconry.router.caches import Caches, Finding
from beaconry.router.exchange import Exchange, Leg, as_prefill
from beaconry.router.member import Member
from beaconry.router.members import Members
from beaconry.scheduling.failures import PluginFailures
from beaconry.scheduling.scheduler import Scheduler
from beaconry.values.candidate import Candidate
from beaconry.values.decision import Decision
from beaconry.values.request import Request
from beaconry.values.stage import DECODE, PREFILL, WHOLE, Stage


class Planned(Struct, frozen=True):
    """What a request's first leg is to compute, and what was found for it; void after the router's next step."""

    plan: Plan
    finding: Finding


class Placing:
    """The decision. It starts nothing and notes nothing."""

    def __init__(
        self,
        scheduler: Scheduler,
        caches: Caches,
        members: Members,
        admission: Admission,
        rng: Random,
        knobs: Disaggregation,
    ) -> None:
        self.members = members
        self._admission = admission
        self._scheduler = scheduler
        self._caches = caches
        self._rng = rng
        self._knobs = knobs

    def choose(self, exchange: Exchange, now_s: float, planned: Planned | None = None) -> Decision | None:
        """What the next leg of `exchange` is to compute, and where: nowhere that it was tried. None if there is no such place.

        `planned`: it has been planned at this moment already.
        """
        request = exchange.request
        finding = self._caches.find(request) if planned is None else planned.finding
        if exchange.prefill is not None:
            return self._answering(exchange, exchange.prefill, finding, now_s)
        if not self.members.splits(request.model):
            return self._schedule(request, exchange.tried, finding, now_s, WHOLE)
        chosen = self._plan(exchange, finding, now_s) if planned is None else planned.plan
        if chosen.splits and not self.can_answer(exchange, now_s):
            return None
        asked = as_prefill(request) if chosen.splits else request
        decision = self._schedule(asked, exchange.tried, finding, now_s, chosen.stage)
        return None if decision is None else replace(decision, stage=chosen.stage, plan=chosen.reason.value)

    def plan(self, exchange: Exchange, now_s: float) -> Planned:
        """In how many legs a request would run, were it placed now; its model has prefill endpoints."""
        finding = self._caches.find(exchange.request)
        return Planned(self._plan(exchange, finding, now_s), finding)

    def can_prefill(self, exchange: Exchange, now_s: float) -> bool:
        """A prefill endpoint that was not tried may get it."""
        return bool(self.members.open_to(exchange.request.model, now_s, exchange.tried, PREFILL))

    def can_answer(self, exchange: Exchange, now_s: float) -> bool:
        """An endpoint that answers and was not tried may get it."""
        return bool(self.members.open_to(exchange.request.model, now_s, exchange.tried))

    def failures(self) -> dict[str, PluginFailures]:
        """Plugins' failures by name."""
        return self._scheduler.failures()

    def _plan(self, exchange: Exchange, finding: Finding, now_s: float) -> Plan:
        request, tried, whole = exchange.request, exchange.tried, exchange.whole
        if whole is None and self._knobs.mode == "never":
            whole = Reason.NEVER
        if whole is not None:
            return Plan(WHOLE, whole)
        members = self.members.worth_judging(request, tried, finding, now_s, self._rng, WHOLE)
        cached_tokens = max((finding.view(member.endpoint).matched_tokens for member in members), default=0)
        prefill = self._prefill(request, tried, now_s)
        chosen = plan(self._knobs, request, cached_tokens=cached_tokens, prefill=prefill)
        if chosen.reason in LITTLE and self._sooner_apart(request, members, tried, now_s):
            return plan(self._knobs, request, cached_tokens=cached_tokens, prefill=prefill, sooner_apart=True)
        return chosen

    def _sooner_apart(self, request: Request, members: Sequence[Member], tried: Sequence[str], now_s: float) -> bool:
        """Before a prefill on any of `members` it would wait for longer than before one on a prefill endpoint, whose own step and the
        fetching of the whole prompt included."""
        admission = self._admission
        # the age of the oldest one in prefill counts as waiting, but up to a step it is just being computed
        wait_s = min((admission.wait_s(member, now_s) - admission.step_s(member) for member in members), default=0.0)
        if wait_s <= 0.0:
            return False
        apart = self.members.open_to(request.model, now_s, tried, PREFILL)
        if not apart:
            return False
        detour_s = min(admission.wait_s(member, now_s) + admission.step_s(member) for member in apart)
        return wait_s > detour_s + self._caches.links.fetch_s(members[0].endpoint, request.prompt_tokens)

    def _prefill(self, request: Request, tried: Sequence[str], now_s: float) -> Prefill:
        members = self.members.open_to(request.model, now_s, tried, PREFILL)
        if self._admission.any_open(request, members, now_s):
            return Prefill.OPEN
        return Prefill.FULL if members else Prefill.NONE

    def _answering(self, exchange: Exchange, prefill: Leg, finding: Finding, now_s: float) -> Decision | None:
        """The endpoint for the second leg; `prefill` was the first."""
        assert prefill.first_byte_s is not None
        decision = self._schedule(exchange.request, exchange.tried, finding, now_s, DECODE)
        if decision is None:
            return None
        return replace(
            decision,
            stage=DECODE,
            plan=exchange.plan,
            source=prefill.member.endpoint.name,
            prefill_s=prefill.first_byte_s - prefill.dispatched_s,
        )

    def _schedule(
        self, request: Request, tried: Sequence[str], finding: Finding, now_s: float, stage: Stage
    ) -> Decision | None:
        members = self.members.worth_judging(request, tried, finding, now_s, self._rng, stage)
        if not members:
            return None
        urgency = self._admission.urgency(request, now_s)
        candidates = [member.candidate(finding.view(member.endpoint), now_s, urgency) for member in members]
        if stage is PREFILL:
            candidates = [replace(candidate, stage=stage) for candidate in candidates]
        elif stage is DECODE:
            candidates = [self._fetching(candidate, request) for candidate in candidates]
        else:
            candidates = self._admission.choice(request, members, candidates, now_s)
        return self._scheduler.schedule(request, candidates, now_s, self._rng)

    def _fetching(self, candidate: Candidate, request: Request) -> Candidate:
        """An endpoint that fetches what it does not hold, and computes the last token only; nothing it does displaces computed work."""
        tokens = max(request.prompt_tokens - 1 - candidate.matched_tokens, 0)
        return replace(
            candidate,
            stage=DECODE,
            fetched_tokens=tokens,
            load_s=candidate.load_s + self._caches.links.fetch_s(candidate.endpoint, tokens),
            displaced_tokens=0.0,
        )
