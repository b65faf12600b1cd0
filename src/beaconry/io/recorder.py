"""Writes a recording of the traffic (`workload/recording.py`): one line per ended request."""

import asyncio
import time

import msgspec

from beaconry.io.line_file import LineFile
from beaconry.io.relay import Relay
from beaconry.router.effects import Ended
from beaconry.values.outcome import Outcome
from beaconry.values.request import Request
from beaconry.wire.prefix import BLOCK_BYTES
from beaconry.workload.recording import Numbering, Opening, Recorded, RecordedModel

REMEMBERED_BLOCKS = 1_000_000
"""About 100 MB, and 64 million tokens: what is not asked for while as many others are counts as new when it comes back."""
REMEMBERED_SESSIONS = 100_000


class Recorder:
    """Makes lines of ended requests."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop, policy: str) -> None:
        """Raises OperatorError if `path` exists already or cannot be written."""
        self._file = LineFile(path, loop, "access.record", fresh=True)
        self._encoder = msgspec.json.Encoder()
        self._start_s = loop.time()
        self._blocks = Numbering(REMEMBERED_BLOCKS)
        self._sessions = Numbering(REMEMBERED_SESSIONS)
        self._models: set[str] = set()
        """Those that have their line; only models that an engine serves get here."""
        self._file.write(self._encoder.encode(Opening(started=round(time.time(), 3), policy=policy)))

    def write(self, request: Request, relay: Relay, ended: Ended, tokens_per_byte: float) -> None:
        """Note one request. `tokens_per_byte` is what its model's texts come to, as far as is known by now.

        A request for a model that does not exist is left out: its name is anything a client likes.
        """
        if ended.outcome is Outcome.REFUSED:
            return
        if request.model not in self._models:
            self._models.add(request.model)
            block_tokens = request.block_tokens
            if request.prompt_bytes:
                block_tokens = tokens_per_byte * BLOCK_BYTES
            line = RecordedModel(model=request.model, block_tokens=max(1, round(block_tokens)))
            self._file.write(self._encoder.encode(line))
        self._file.write(self._encoder.encode(self._recorded(request, relay, ended)))

    def close(self) -> None:
        """Write the rest."""
        self._file.close()

    def _recorded(self, request: Request, relay: Relay, ended: Ended) -> Recorded:
        usage, placement = relay.usage, relay.placement
        chosen = None if placement is None else placement.decision.chosen
        prediction = None if chosen is None else chosen.prediction
        return Recorded(
            at_s=round(request.arrived_s - self._start_s, 6),
            model=request.model,
            prompt_tokens=request.prompt_tokens if usage is None else usage.prompt_tokens,
            output_tokens=None if usage is None else usage.completion_tokens,
            cap_tokens=request.output_tokens,
            runs=self._blocks.runs(request.prefix),
            stream=request.stream,
            sequences=request.sequences,
            session=None if request.session is None else self._sessions.of(request.session),
            tenant=request.tenant,
            priority=request.priority,
            slo_ttft_s=request.slo_ttft_s,
            slo_itl_s=request.slo_itl_s,
            outcome=ended.outcome.value,
            attempts=ended.attempts,
            endpoint=None if placement is None else placement.endpoint.name,
            variant=None if placement is None else placement.endpoint.variant,
            ttft_s=_rounded(relay.first_s if request.stream else None),
            e2e_s=round(ended.e2e_s, 6),
            cached_tokens=None if usage is None else usage.cached_tokens,
            predicted_cached_tokens=None if chosen is None else chosen.candidate.matched_tokens,
            predicted_ttft_s=_rounded(None if prediction is None else prediction.ttft_s),
            predicted_itl_s=_rounded(None if prediction is None else prediction.itl_s),
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
