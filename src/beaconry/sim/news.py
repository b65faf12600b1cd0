"""What routers are told of engines: load samples, health checks, KV events; late, and sometimes not at all.

Health follows the real monitor: a check each interval, a failed one confirmed soon. KV events go through the real
`kvindex.stream.SourceStream`, one for each router replica and engine, so gaps, restarts and replays are handled as in production.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from beaconry.router.facts import Fact, HealthChecked, LoadSampled
from beaconry.sim.conditions import Conditions
from beaconry.sim.flight import Front
from beaconry.sim.heap import EventHeap
from beaconry.sim.host import Host, Life
from beaconry.sim.telling import Telling

RECHECK = 0.25
"""A failed check is repeated after this share of the interval, as by the real monitor."""


class News:
    """Everything that routers learn of engines beside their own traffic.

    `_doubted`: by replica, the endpoints whose latest check failed.
    """

    def __init__(
        self,
        fronts: Sequence[Front],
        hosts: Mapping[str, Host],
        heap: EventHeap,
        tell: Callable[[Front, Fact], None],
        conditions: Conditions,
        rng: Random,
    ) -> None:
        self._fronts = fronts
        self._hosts = hosts
        self._heap = heap
        self._tell = tell
        self._conditions = conditions
        self._rng = rng
        self._doubted: list[set[str]] = [set() for _ in fronts]
        self._tellings = (
            {name: Telling(name, fronts, heap, tell, conditions, rng) for name in hosts} if conditions.kv_events else {}
        )

    def begin(self, scrape_s: float) -> None:
        """Scrape from now on, and check health where something may happen to it."""
        for front in self._fronts:
            self._heap.at(0.0, self._scrape, front, scrape_s)
            if self._conditions.faults:
                self._heap.at(self._conditions.health.interval_s, self._check, front)

    def found(self, host: Host) -> None:
        """An engine has come up, or back."""
        telling = self._tellings.get(host.name)
        if telling is not None:
            telling.connected()

    def lost(self, host: Host) -> None:
        """An engine is gone."""
        telling = self._tellings.get(host.name)
        if telling is not None:
            telling.disconnected()

    def lose(self, host: Host, *, lost: bool) -> None:
        """An engine's KV events get lost from now on, or come again."""
        telling = self._tellings.get(host.name)
        if telling is not None:
            telling.losing = lost

    def stepped(self, host: Host) -> None:
        """An engine has ended a step: tell what its cache has stored and dropped."""
        telling = self._tellings.get(host.name)
        if telling is not None:
            telling.publish(host.engine.take_events())

    def _scrape(self, front: Front, every_s: float) -> None:
        now_s, conditions = self._heap.now_s, self._conditions
        for host in self._hosts.values():
            if not host.answers or not host.listed:
                continue
            if conditions.scrape_loss and self._rng.random() < conditions.scrape_loss:
                continue
            fact = LoadSampled(host.name, host.load_sample())
            if conditions.scrape_delay_s:
                self._heap.at(now_s + conditions.scrape_delay_s, self._tell, front, fact)
            else:
                self._tell(front, fact)
        self._heap.at(now_s + every_s, self._scrape, front, every_s)

    def _check(self, front: Front) -> None:
        """A round of checks; those that pass tell nothing new."""
        doubted, health = self._doubted[front.number], self._conditions.health
        for host in self._hosts.values():
            if host.listed and not host.answers and host.name not in doubted:
                doubted.add(host.name)
                self._heap.at(self._heap.now_s + self._answer_s(host), self._confirm, front, host)
        self._heap.at(self._heap.now_s + health.interval_s, self._check, front)

    def _confirm(self, front: Front, host: Host) -> None:
        """The check of an endpoint in doubt has ended: repeat it soon unless it passed."""
        doubted, health = self._doubted[front.number], self._conditions.health
        healthy = host.answers or not host.listed
        if host.listed:
            self._tell(front, HealthChecked(host.name, healthy))
        if healthy:
            doubted.discard(host.name)
        else:
            again_s = health.interval_s * RECHECK + self._answer_s(host)
            self._heap.at(self._heap.now_s + again_s, self._confirm, front, host)

    def _answer_s(self, host: Host) -> float:
        """How long a failing check takes: a dead process refuses at once, a hung one never answers."""
        return self._conditions.health.timeout_s if host.life is Life.HUNG else 0.0
