"""What the router is told of endpoints: discovery, health, load, adapters, caches."""

from beaconry.router.admission import Admission
from beaconry.router.caches import Caches
from beaconry.router.effects import Effect
from beaconry.router.exchanges import Exchanges
from beaconry.router.facts import (
    AdaptersSeen,
    EndpointGone,
    EndpointSeen,
    HealthChecked,
    KvCleared,
    KvEvents,
    KvSourceChanged,
    LoadSampled,
)
from beaconry.router.learning import Learning
from beaconry.router.legs import Legs
from beaconry.router.members import Members
from beaconry.router.statistics import ModelCounters


class EndpointNews:
    """Takes it in. News of an endpoint that is not known (any more) would be held for ever: it is dropped."""

    def __init__(
        self,
        members: Members,
        caches: Caches,
        learning: Learning,
        admission: Admission,
        exchanges: Exchanges,
        legs: Legs,
    ) -> None:
        self._members = members
        self._caches = caches
        self._learning = learning
        self._admission = admission
        self._exchanges = exchanges
        self._legs = legs

    def seen(self, fact: EndpointSeen, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        """An endpoint is new, or has changed."""
        endpoint = fact.endpoint
        member = self._members.get(endpoint.name)
        if member is not None and (member.endpoint.address != endpoint.address or member.gone):
            self._learning.forget(endpoint.name)
            member.adapters = ()
        self._admission.reopen(self._members.seen(endpoint))
        self._exchanges.counters.setdefault(endpoint.model, ModelCounters())

    def gone(self, fact: EndpointGone, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        """An endpoint gets nothing more."""
        member = self._members.get(fact.name)
        if member is None:
            return
        self._admission.forget(member)
        self._learning.forget(fact.name)
        self._members.lose(member)

    def health_checked(self, fact: HealthChecked, now_s: float, effects: list[Effect]) -> None:
        """An active check has ended."""
        member = self._members.get(fact.name)
        if member is None:
            return
        failed = member.checked(healthy=fact.healthy)
        self._admission.reopen(member)
        if failed:
            self._admission.forget(member)
            self._learning.forget(fact.name)
            self._legs.leave(member, "it stopped answering health checks", now_s, effects)

    def load_sampled(self, fact: LoadSampled, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        """An engine's metrics were read."""
        member = self._members.get(fact.name)
        if member is not None:
            member.sample = fact.sample
            self._learning.sampled(member.endpoint, fact.sample)
            self._admission.sampled(member, fact.sample, now_s)

    def adapters_seen(self, fact: AdaptersSeen, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        """An endpoint serves these LoRA adapters."""
        member = self._members.get(fact.name)
        if member is not None:
            self._members.adapt(member, tuple(fact.adapters))
            for model in self._members.models():
                self._exchanges.counters.setdefault(model, ModelCounters())

    def kv_events(self, fact: KvEvents, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        """An engine's cache has changed."""
        if fact.name in self._members:
            self._caches.exact.apply(fact.name, fact.rank, fact.events)

    def kv_cleared(self, fact: KvCleared, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        """All that was known of an engine's cache is void."""
        self._caches.exact.clear_rank(fact.name, fact.rank)

    def kv_source_changed(self, fact: KvSourceChanged, now_s: float, effects: list[Effect]) -> None:  # noqa: ARG002
        """An engine's cache is known better or worse than before."""
        if fact.name in self._members:
            self._caches.changed(fact.name, fact.rank, fact.state)
