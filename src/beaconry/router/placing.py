"""Where a leg goes: which endpoints may get it, what each of them holds of the prompt, and which one the scheduler takes."""

from collections.abc import Sequence
from random import Random

from beaconry.router.caches import Caches
from beaconry.router.members import Members
from beaconry.scheduling.failures import PluginFailures
from beaconry.scheduling.scheduler import Scheduler
from beaconry.values.decision import Decision
from beaconry.values.request import Request


class Placing:
    """The decision. It starts nothing and notes nothing."""

    def __init__(self, scheduler: Scheduler, caches: Caches, members: Members, rng: Random) -> None:
        self._scheduler = scheduler
        self._caches = caches
        self.members = members
        self._rng = rng

    def choose(self, request: Request, tried: Sequence[str], now_s: float) -> Decision | None:
        """The endpoint that `request` is to go to, none of `tried`; None if there is none."""
        finding = self._caches.find(request)
        members = self.members.worth_judging(request, tried, finding, now_s, self._rng)
        if not members:
            return None
        candidates = [member.candidate(finding.view(member.endpoint), now_s) for member in members]
        return self._scheduler.schedule(request, candidates, now_s, self._rng)

    def failures(self) -> dict[str, PluginFailures]:
        """Plugins' failures by name."""
        return self._scheduler.failures()
