"""llm-d's scorers by their names and formulas, from 0 (worst) to 1 (best).

Where an engine has not been scraped yet, our own counters stand in; without either, the score is what the others average.
"""

from collections.abc import Sequence

from beaconry.values.candidate import Candidate
from beaconry.values.request import Request


class Queue:
    """(max - waiting) / (max - min) over the candidates; 1 if all are equal."""

    def score(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[float]:  # noqa: ARG002
        """By requests waiting in the engine, as scraped."""
        return _spread([_waiting(c) for c in candidates])


class RunningRequests:
    """(max - running) / (max - min) over the candidates; 1 if all are equal."""

    def score(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[float]:  # noqa: ARG002
        """By requests running in the engine, as scraped."""
        return _spread([_running(c) for c in candidates])


class KvCacheUtilization:
    """1 - share of KV blocks in use."""

    def score(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[float]:  # noqa: ARG002
        """By KV usage, as scraped."""
        usages = [c.sample.kv_usage if c.sample is not None else None for c in candidates]
        known = [usage for usage in usages if usage is not None]
        mean = sum(known) / len(known) if known else 0.0
        return [1 - (mean if usage is None else usage) for usage in usages]


class PrefixCache:
    """Matched share of the prompt."""

    def score(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[float]:
        """matched / total."""
        total = max(request.prompt_tokens, 1)
        return [c.matched_tokens / total for c in candidates]


class LoadAware:
    """0.5 with an empty queue, down to 0 at 128 waiting."""

    def score(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[float]:  # noqa: ARG002
        """0.5 * (1 - min(waiting, 128) / 128)."""
        return [0.5 * (1 - min(_waiting(c), 128) / 128) for c in candidates]


class TokenLoad:
    """Room below 4,194,304 uncached tokens in flight, this request's own included."""

    LIMIT = 4_194_304

    def score(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[float]:
        """1 - min(tokens, limit) / limit."""
        tokens = [c.prefill_tokens + request.prompt_tokens - c.matched_tokens for c in candidates]
        return [1 - min(t, self.LIMIT) / self.LIMIT for t in tokens]


class ActiveRequests:
    """1 for an idle endpoint, else (max - in flight) / max."""

    def score(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[float]:  # noqa: ARG002
        """By our own count of requests in flight."""
        most = max(c.in_flight for c in candidates)
        return [(most - c.in_flight) / most if c.in_flight else 1.0 for c in candidates]


class LoraAffinity:
    """1 where the request's adapter runs, 0.8 where another one could, 0.6 where others wait for it, else 0.

    A request for the model itself is indifferent to adapters: 1 everywhere. So is one for an endpoint that does not say, at 0.8.
    """

    def score(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[float]:
        """By the adapters running and waiting, as scraped."""
        return [self._score(request.model, c) for c in candidates]

    def _score(self, name: str, candidate: Candidate) -> float:
        load = None if candidate.sample is None else candidate.sample.adapters
        if name == candidate.endpoint.model or (load is not None and name in load.running):
            return 1.0
        if load is None or load.slots is None or len(load.running | load.waiting) < load.slots:
            return 0.8
        return 0.6 if name in load.waiting else 0.0


def _waiting(candidate: Candidate) -> float:
    sample = candidate.sample
    return candidate.prefilling if sample is None or sample.waiting is None else sample.waiting


def _running(candidate: Candidate) -> float:
    sample = candidate.sample
    return candidate.in_flight if sample is None or sample.running is None else sample.running


def _spread(loads: Sequence[float]) -> list[float]:
    least, most = min(loads), max(loads)
    return [(most - load) / (most - least) for load in loads] if most > least else [1.0] * len(loads)
