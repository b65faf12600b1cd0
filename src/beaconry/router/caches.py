"""What each endpoint's cache holds of a prompt: by its engine's events where these are complete, else by our own routing history.

Both views live side by side all the time, so an endpoint whose events stop falls back from one request to the next, and never to nothing.
A prompt that is being prefilled for another request at this moment counts as there in either view: events tell of blocks only once they
are computed.
"""

from collections.abc import Mapping

from msgspec import Struct

from beaconry.kvindex.approximate import NO_MATCH, ApproximateIndex, Match
from beaconry.kvindex.exact import ExactIndex, Held
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import SourceState
from beaconry.values.request import Request

CPU_WORTH = 0.75
STORAGE_WORTH = 0.25
"""What a cached token saves that has to be loaded first, of one in the GPU's own memory: NVIDIA Dynamo's defaults."""


class View(Struct, frozen=True, gc=False):
    """One endpoint's cache, seen from one request; in prompt tokens."""

    matched_tokens: int
    known_tokens: int
    displaced_tokens: float
    sharers: int
    exact: bool


_NOTHING = View(matched_tokens=0, known_tokens=0, displaced_tokens=0.0, sharers=0, exact=False)
"""Of a prompt shorter than a block."""


class Finding:
    """Both indexes' answers for one request: ask it for each endpoint."""

    __slots__ = ("_approximate", "_caches", "_exact", "_request")

    def __init__(self, caches: "Caches", request: Request) -> None:
        self._caches = caches
        self._request = request
        self._approximate: Mapping[str, Match] = caches.approximate.match(request.prefix) if request.prefix else {}
        self._exact: Mapping[str, Held] = caches.exact.match(request.keys) if request.keys else {}

    def view(self, endpoint: Endpoint) -> View:
        """What `endpoint` holds of the prompt."""
        request, name = self._request, endpoint.name
        if not request.prefix and not request.keys:
            return _NOTHING
        match = self._approximate.get(name, NO_MATCH)
        most = max(request.prompt_tokens - 1, 0)  # an engine always computes the last token
        matched = min(int(match.blocks * request.block_tokens), most)
        exact = bool(request.keys) and self._caches.is_exact(name, request.key_tokens)
        if exact:
            held = self._exact.get(name)
            known = 0 if held is None else _worth(held) * request.key_tokens
            matched = min(max(int(known), matched if match.sharers else 0), most)
        new_blocks = len(request.prefix) - match.known
        displaced = self._caches.approximate.displaced(name, new_blocks) if new_blocks else 0.0
        return View(
            matched_tokens=matched,
            known_tokens=max(matched, min(int(match.known * request.block_tokens), most)),
            displaced_tokens=displaced * request.block_tokens,
            sharers=match.sharers,
            exact=exact,
        )


class Caches:
    """Both indexes, and which endpoints' events can be trusted at present."""

    def __init__(self, approximate: ApproximateIndex, exact: ExactIndex) -> None:
        self.approximate = approximate
        self.exact = exact
        self._states: dict[str, dict[int, SourceState]] = {}
        """By endpoint and data-parallel rank; only those that have events at all."""

    def find(self, request: Request) -> Finding:
        """Look a request's prompt up."""
        return Finding(self, request)

    def is_exact(self, name: str, key_tokens: int) -> bool:
        """All of the endpoint's ranks are exact, of one kind of attention, and hash blocks of as many tokens as the request's keys."""
        ranks = self._states.get(name)
        if not ranks or any(state is not SourceState.EXACT for state in ranks.values()):
            return False
        return self.exact.proves(name) and self.exact.block_tokens(name) in (None, key_tokens)

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

    def forget(self, name: str) -> None:
        """The endpoint is gone, or somebody else by now."""
        self.approximate.forget(name)
        self.exact.clear(name)
        self._states.pop(name, None)


def _worth(held: Held) -> float:
    """Blocks held, those in slower tiers discounted."""
    return held.gpu + CPU_WORTH * held.cpu + STORAGE_WORTH * held.storage
