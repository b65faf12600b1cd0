"""One request of a load run, from its planned time to its sample."""

import asyncio
import time
from collections.abc import Callable

from beaconry.io.load.reply import ReplyReader
from beaconry.workload.request import PlannedRequest
from beaconry.workload.sample import Sample

ENDPOINT_HEADERS = frozenset((b"x-beaconry-endpoint", b"x-gateway-destination-endpoint-served"))
"""Response headers in which a gateway may name the endpoint that served."""


class LoadExchange:
    """Receives one answer, and tells its owner once when it has ended in whatever way."""

    __slots__ = ("_ended", "_start_s", "deadline", "endpoint", "payload", "reply", "request", "sample", "sent_s")

    def __init__(
        self, request: PlannedRequest, payload: bytes, start_s: float, ended: Callable[["LoadExchange"], None]
    ) -> None:
        self.request = request
        self.payload = payload
        self.reply = ReplyReader()
        self.endpoint: str | None = None
        self.sent_s: float | None = None
        """Since the start of the run; None until the request is written."""
        self.deadline: asyncio.TimerHandle | None = None
        """Ends the exchange if nothing else does; cancelled at its end."""
        self.sample: Sample | None = None
        """What came of it; None while it runs."""
        self._start_s = start_s
        self._ended = ended

    def on_sent(self) -> None:
        """The request is written, for the first time or again."""
        if self.sent_s is None:
            self.sent_s = self._now_s()

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The answer's head is there."""
        self.reply.status = status
        for name, value in headers:
            if name.lower() in ENDPOINT_HEADERS:
                self.endpoint = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        """A piece of the answer's body."""
        self.reply.feed(data, self._now_s())

    def on_end(self) -> None:
        """The answer is complete, though perhaps not good."""
        self._end(self.reply.fault())

    def on_failure(self, kind: str, detail: str) -> None:
        """There will be no complete answer."""
        self._end((kind, detail))

    def _now_s(self) -> float:
        # not the loop's time: uvloop's has steps of a millisecond and stands still while callbacks run
        return time.perf_counter() - self._start_s

    def _end(self, fault: tuple[str, str] | None) -> None:
        if self.sample is not None:
            return
        if self.deadline is not None:
            self.deadline.cancel()
        now_s = self._now_s()
        request, reply, usage = self.request, self.reply, self.reply.usage
        self.sample = Sample(
            index=request.index,
            planned_s=request.at_s,
            sent_s=now_s if self.sent_s is None else self.sent_s,
            end_s=now_s,
            first_s=reply.first_s,
            gaps_s=reply.gaps_s,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            cached_tokens=None if usage is None else usage.cached_tokens,
            output_tokens=reply.chunks if usage is None else usage.completion_tokens,
            planned_prompt_tokens=request.prompt_tokens,
            planned_output_tokens=request.output_tokens,
            ideal_cached_tokens=request.ideal_cached_tokens,
            error=None if fault is None else fault[0],
            detail="" if fault is None else fault[1],
            endpoint=self.endpoint,
            session=request.session,
            turn=request.turn,
        )
        self._ended(self)
