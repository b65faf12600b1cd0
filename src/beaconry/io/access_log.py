"""One JSON line per request with its outcome: never a prompt, a body or a credential. Lines are written in batches."""

import asyncio
import time

import msgspec

from beaconry.io.line_file import LineFile
from beaconry.io.relay import Relay
from beaconry.router.effects import Ended
from beaconry.values.request import Request


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request."""

    time: float
    id: str
    model: str
    path: str
    outcome: str
    status: int
    e2e_ms: float
    client_id: str | None = None
    """Its `x-request-id`, if the client gave one."""
    asked_model: str | None = None
    """What the client called the model, where that is another name."""
    tenant: str | None = None
    endpoint: str | None = None
    attempts: int = 0
    queued_ms: float = 0.0
    """From arrival to dispatch, if it had to wait."""
    waited_for: str = ""
    plan: str = ""
    """Why it ran in one leg or two, where its model has prefill endpoints."""
    prefill_endpoint: str | None = None
    """Where its prompt was computed, if elsewhere."""
    prefill_ms: float = 0.0
    """How long that took."""
    stream: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


class AccessLog:
    """Makes lines of ended requests."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        """Raises OperatorError if `path` cannot be written."""
        self._file = LineFile(path, loop, "access.log")
        self._encoder = msgspec.json.Encoder()

    def write(self, relay: Relay, ended: Ended) -> None:
        """Note one request."""
        usage = relay.usage
        placement = relay.placement
        decision = None if placement is None else placement.decision
        parsed = relay.parsed
        line = Line(
            time=round(time.time(), 3),
            id=ended.request_id,
            model=parsed.model[:200],
            path=relay.exchange.path,
            outcome=ended.outcome.value,
            status=relay.status,
            e2e_ms=round(1e3 * ended.e2e_s, 1),
            client_id=None if relay.client_id is None else relay.client_id.decode(),
            asked_model=None if parsed.asked_model == parsed.model else parsed.asked_model[:200],
            tenant=_tenant(relay.request),
            endpoint=None if placement is None else placement.endpoint.name,
            attempts=ended.attempts,
            queued_ms=0.0 if decision is None else round(1e3 * decision.queued_s, 1),
            waited_for="" if decision is None else decision.waited_for,
            plan="" if decision is None else decision.plan,
            prefill_endpoint=None if decision is None or not decision.source else decision.source,
            prefill_ms=0.0 if decision is None else round(1e3 * decision.prefill_s, 1),
            stream=parsed.stream,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            cached_tokens=None if usage is None else usage.cached_tokens,
            output_tokens=None if usage is None else usage.completion_tokens,
        )
        self._file.write(self._encoder.encode(line))

    def close(self) -> None:
        """Write the rest."""
        self._file.close()


def _tenant(request: Request | None) -> str | None:
    """Who has asked; None where nobody is told apart."""
    return None if request is None or (request.account is None and request.tenant == "default") else request.tenant
