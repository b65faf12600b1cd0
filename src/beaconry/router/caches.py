"""What each endpoint's cache holds of a prompt: by its engine's events where these are complete, else by our own routing history.

Both views live side by side all the time, so an endpoint whose events stop falls back from one request to the next, and never to nothing.
A prompt that is being prefilled for another request at this moment counts as there in either view: events tell of blocks only once they
are computed.

What an endpoint holds by its events is known to have been there, whoever sent it: another gateway, or this one before it was restarted.
So a prompt that goes to its holder displaces nothing, although our own history knows nothing of it.

Tokens beside the GPU count as matched, since they need not be computed, and their loading is a price in seconds that comes with them. What
a shared store holds is every endpoint's alike: it makes nobody more attractive than the seconds that an endpoint's own copy saves.
"""

from collections.abc import Mapping
from heapq import nlargest
from random import Random

from msgspec import Struct

from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex, ExactStatistics, Held
from beaconry.kvindex.match import Whereabouts
from beaconry.latency.kv_links import KvLinks
from beaconry.latency.rates import RateBook
from beaconry.latency.tier_loads import Load, TierLoads
from beaconry.values.candidate import TierTokens
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import SourceState, Tier
from beaconry.values.request import Request


class View(Struct, frozen=True, gc=False):
    """One endpoint's cache, seen from one request; in prompt tokens."""

    matched_tokens: int
    """Wherever they are: all of these need not be computed."""
    known_tokens: int
    displaced_tokens: float
    sharers: int
    exact: bool
    loads: tuple[TierTokens, ...] = ()
    """Those of the matched tokens that have to be loaded first."""
    load_s: float = 0.0


_NOTHING = View(matched_tokens=0, known_tokens=0, displaced_tokens=0.0, sharers=0, exact=False)
"""Of a prompt shorter than a block."""
_NONE_HELD = Held(0)
_NOWHERE = Whereabouts([])
_NOBODY: Mapping[str, Held] = {}


class CachesStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot for metrics and tests."""

    exact: ExactStatistics
    loads: dict[tuple[str, Tier], Load]
    """What legs have taught of loading, by variant and tier."""
    fetches: dict[str, Load] = {}
    """Likewise of fetching from other engines, by the variant that fetches."""


class Finding:
    """Both indexes' answers for one request: ask it for each endpoint."""

    __slots__ = ("_approximate", "_caches", "_exact", "_request", "_shared")

    def __init__(self, caches: "Caches", request: Request) -> None:
        self._caches = caches
        self._request = request
        self._approximate = caches.approximate.find(request.prefix) if request.prefix else _NOWHERE
        self._exact: Mapping[str, Held] = caches.exact.match(request.keys) if request.keys else _NOBODY
        self._shared = caches.exact.shared(request.keys) if request.keys else 0

    def holders(self, most: int, rng: Random) -> list[str]:
        """Up to `most` endpoints that hold something of the prompt by either view, those that hold most first."""
        names = dict.fromkeys(nlargest(most, self._exact, key=lambda name: self._exact[name].blocks))
        names.update(dict.fromkeys(self._approximate.holders(most, rng)))
        return list(names)[:most]

    def view(self, endpoint: Endpoint) -> View:
        """What `endpoint` holds of the prompt."""
        request, name = self._request, endpoint.name
        if not request.prefix and not request.keys:
            return _NOTHING
        match = self._approximate.of(name)
        most = max(request.prompt_tokens - 1, 0)  # an engine always computes the last token
        matched = min(int(match.blocks * request.block_tokens), most)
        exact = bool(request.keys) and self._caches.is_exact(name, request.key_tokens)
        held = self._exact.get(name) if exact else None
        known = match.known
        if exact:
            on_gpu = 0 if held is None else held.gpu * request.key_tokens
            known = max(known, int(on_gpu / request.block_tokens))
            matched = min(max(on_gpu, matched if match.sharers else 0), most)
        loads: tuple[TierTokens, ...] = ()
        load_s = 0.0
        if self._shared or (held is not None and held.blocks > held.gpu):
            loads = self._loads(held or _NONE_HELD, matched, most)
            load_s = self._caches.loads.load_s(endpoint, loads)
            matched += sum(tokens for _, tokens in loads)
        new_blocks = len(request.prefix) - known
        displaced = self._caches.approximate.displaced(name, new_blocks) if new_blocks > 0 else 0.0
        return View(
            matched_tokens=matched,
            known_tokens=max(matched, min(int(known * request.block_tokens), most)),
            displaced_tokens=displaced * request.block_tokens,
            sharers=match.sharers,
            exact=exact,
            loads=loads,
            load_s=load_s,
        )

    def _loads(self, held: Held, matched: int, most: int) -> tuple[TierTokens, ...]:
        """What follows the `matched` tokens on the GPU in slower tiers, up to `most` tokens in all. The shared one is everybody's."""
        size = self._request.key_tokens
        ends = (
            (Tier.CPU, held.gpu + held.cpu),
            (Tier.STORAGE, held.blocks),
            (Tier.SHARED, self._shared),
        )
        loads: list[TierTokens] = []
        for tier, blocks in ends:
            end = min(blocks * size, most)
            if end > matched:
                loads.append((tier, end - matched))
                matched = end
        return tuple(loads)


class Caches:
    """Both indexes, and which endpoints' events can be trusted at present."""

    def __init__(
        self,
        approximate: ApproximateIndex,
        exact: ExactIndex,
        loads: TierLoads | None = None,
        links: KvLinks | None = None,
    ) -> None:
        """`loads`, `links`: what loading and fetching cost; None supposes it, for engines nothing is known of."""
        self.approximate = approximate
        self.exact = exact
        self.loads = TierLoads(RateBook()) if loads is None else loads
        self.links = KvLinks(RateBook()) if links is None else links
        self._states: dict[str, dict[int, SourceState]] = {}
        """By endpoint and data-parallel rank; only those that have events at all."""

    def find(self, request: Request) -> Finding:
        """Look a request's prompt up."""
        return Finding(self, request)

    def is_exact(self, name: str, key_tokens: int) -> bool:
        """The endpoint is known, and hashes blocks of as many tokens as the request's keys."""
        return self.is_known(name) and self.exact.block_tokens(name) in (None, key_tokens)

    def is_known(self, name: str) -> bool:
        """All of the endpoint's ranks are exact, and of one kind of attention: requests of its block size are placed by what it holds."""
        ranks = self._states.get(name)
        if not ranks or any(state is not SourceState.EXACT for state in ranks.values()):
            return False
        return self.exact.proves(name)

    def changed(self, name: str, rank: int, state: SourceState) -> None:
        """An engine's events have become complete, or have ceased to be."""
        self._states.setdefault(name, {})[rank] = state

    def state(self, name: str) -> SourceState | None:
        """The worst state of the endpoint's ranks; None if it has no events."""
        ranks = self._states.get(name)
        if not ranks:
            return None
        order = (SourceState.COLD, SourceState.DEGRADED, SourceState.EXACT)
        return min(ranks.values(), key=order.index)

    def statistics(self) -> CachesStatistics:
        """A snapshot of index and load times. Walks over all shards: for a scrape."""
        return CachesStatistics(
            exact=self.exact.statistics(), loads=self.loads.statistics(), fetches=self.links.statistics()
        )

    def forget(self, name: str) -> None:
        """The endpoint is gone, or somebody else by now."""
        self.approximate.forget(name)
        self.exact.clear(name)
        self._states.pop(name, None)
