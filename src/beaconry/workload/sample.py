"""What came of one planned request, measured by a load client or by the simulator: the only input of every summary."""

from collections.abc import Sequence

from msgspec import Struct

INTERRUPTED = "interrupted"
"""The `error` of a request that was in flight when the run was stopped by hand: neither a success nor a failure."""


class Sample(Struct, frozen=True, kw_only=True, gc=False):
    """One request's fate. Times are seconds since the run's start; latencies count from the planned time, never from the actual one."""

    index: int
    planned_s: float
    sent_s: float
    """When the first byte was written. Later than planned if the client was busy or had no connection left."""
    end_s: float
    first_s: float | None = None
    """When the first content came."""
    gaps_s: Sequence[float] = ()
    """Time between one content chunk and the next, in order."""
    prompt_tokens: int | None = None
    """As the engine reports; None if it does not."""
    cached_tokens: int | None = None
    output_tokens: int | None = None
    planned_prompt_tokens: int = 0
    planned_output_tokens: int = 0
    ideal_cached_tokens: int = 0
    error: str | None = None
    """Kind of failure, from a small set such as "timeout" or "status 503"; None for a success."""
    detail: str = ""
    """What exactly failed, in at most a line."""
    endpoint: str | None = None
    """The endpoint that served it, where the gateway says so."""
    session: str | None = None
    turn: int = 0

    @property
    def lag_s(self) -> float:
        """How late the request was sent."""
        return self.sent_s - self.planned_s

    @property
    def ttft_s(self) -> float | None:
        """Planned time to first content."""
        return None if self.first_s is None else self.first_s - self.planned_s

    @property
    def e2e_s(self) -> float:
        """Planned time to the end of the reply."""
        return self.end_s - self.planned_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first: (E2E - TTFT) / (tokens - 1); None below two tokens."""
        if self.first_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.output_tokens - 1)


class Slo(Struct, frozen=True, kw_only=True):
    """Latency targets of one request. None means no target."""

    ttft_s: float | None = None
    itl_s: float | None = None
    """Compared with the request's mean inter-token time, its TPOT: one late chunk does not break a reply."""

    def met_by(self, sample: Sample) -> bool:
        """Whether `sample` succeeded within all targets."""
        return sample.error is None and not self.missed_by(sample)

    def missed_by(self, sample: Sample) -> tuple[str, ...]:
        """The targets, "ttft" and "itl", that a success missed; nothing for a failure."""
        if sample.error is not None:
            return ()
        late = self.ttft_s is not None and (sample.ttft_s is None or sample.ttft_s > self.ttft_s)
        slow = self.itl_s is not None and sample.tpot_s is not None and sample.tpot_s > self.itl_s
        return (*(("ttft",) if late else ()), *(("itl",) if slow else ()))
