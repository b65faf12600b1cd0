"""One request's passage: its body to an endpoint, the answer back to the client, and word of it to the router.

The head of an answer is held until the first byte of its body, so that whatever fails before can still be sent elsewhere.
"""

from math import ceil
from typing import Protocol

from msgspec import Raw

from beaconry.disagg.connectors import Connector
from beaconry.io.http_exchange import Exchange
from beaconry.io.opening_leg import OpeningLeg
from beaconry.io.prefill_leg import PrefillLeg
from beaconry.io.upstream import Call, Leg, UpstreamPool
from beaconry.router.effects import Answer, BreakStream, StartLeg
from beaconry.router.facts import Fact, Fault, LegFailed, LegFinished, LegProgressed, LegStarted
from beaconry.values.endpoint import Endpoint
from beaconry.values.outcome import DROPPED_REASONS
from beaconry.values.request import Api, Request, Usage
from beaconry.values.stage import Stage
from beaconry.values.tenant import Allowance
from beaconry.wire.errors import error_body
from beaconry.wire.headers import for_client, is_stream, without_encoding
from beaconry.wire.model_name import NameRestorer
from beaconry.wire.openai import Parsed, with_priority
from beaconry.wire.rate_limits import RATE_LIMIT_PREFIX, rate_limit_headers
from beaconry.wire.tokens import PromptTokens
from beaconry.wire.usage import StreamWatch, usage_of

PROGRESS_S = 1.0
USAGE_BODY_BYTES = 4_194_304
"""Whole answers up to this size are searched for usage; larger ones are embeddings."""
ABORT_WINDOW_BYTES = 4096
_ABORTED = b'"finish_reason":"abort"'
"""What vLLM answers, with status 200, to requests that reach it while it shuts down."""


class Desk(Protocol):
    """What a relay needs of its driver."""

    def tell(self, fact: Fact) -> None:
        """Hand a fact to the router and carry out what it wants."""
        ...

    def now_s(self) -> float:
        """Loop time."""
        ...

    def kept_nothing(self, endpoint: Endpoint) -> None:
        """It has computed a prompt for others, and its answer names no KV."""
        ...


REQUEST_ID = b"x-request-id"


class Relay:
    """A request between client and endpoint. It is the `Leg` of its upstream calls."""

    __slots__ = (
        "_arrived_s",
        "_call",
        "_collected",
        "_collected_bytes",
        "_desk",
        "_failing",
        "_handoff",
        "_head",
        "_leg",
        "_length",
        "_reported_s",
        "_restorer",
        "_started",
        "_watch",
        "allowances",
        "client_id",
        "debug",
        "exchange",
        "first_s",
        "head_headers",
        "parsed",
        "placement",
        "request",
        "status",
        "tokens",
        "usage",
    )

    def __init__(self, desk: Desk, exchange: Exchange, parsed: Parsed, head: bytes) -> None:
        self._desk = desk
        self.exchange = exchange
        self.parsed = parsed
        self._head = head
        """Request headers for the endpoint, without request line and host."""
        self.placement: StartLeg | None = None
        """The latest leg."""
        self.request: Request | None = None
        """What the router knows it as, once it does."""
        self.client_id: bytes | None = None
        """What the client calls the request; its answer bears that name, engines know it by ours."""
        self.first_s: float | None = None
        """Arrival to first byte, once there is one."""
        self.debug = False
        """The client asked for the decision in headers, and may."""
        self.tokens: PromptTokens | None = None
        """The prompt's tokens, or why there are none; None if nobody asked."""
        self.allowances: tuple[Allowance, ...] = ()
        """What is left of the tenant's limits, for the answer's headers."""
        self.status = 0
        self.usage: Usage | None = None
        self.head_headers: list[tuple[bytes, bytes]] = []
        self._call: Call | None = None
        self._handoff: Raw | None = None
        """What the prefill leg's answer says of the KV, from its end until the decode leg starts."""
        self._leg = 0
        self._length: int | None = None
        self._failing = False
        """The endpoint answers with a status that makes the leg a failure; its body is dropped."""
        self._started = False
        """The answer has begun to go to the client."""
        self._restorer: NameRestorer | None = None
        """Of the current leg's answer; None if the engine knows the model by the name that the client used."""
        self._watch: StreamWatch | None = None
        self._collected: list[bytes] | None = None
        """The answer so far, while it may hold usage and is no longer than `USAGE_BODY_BYTES`."""
        self._collected_bytes = 0
        self._arrived_s = desk.now_s()
        self._reported_s = 0.0
        """When the answer began, or progress was last reported."""

    # -- from the router

    def start(self, effect: StartLeg, pool: UpstreamPool) -> None:
        """Send the request to an endpoint."""
        parsed = self.parsed
        announced = parsed.stream and parsed.api is Api.RESPONSES
        self._start(effect, pool, parsed.body, OpeningLeg(self, self._said_nothing) if announced else None)

    def start_stage(self, effect: StartLeg, pool: UpstreamPool, connector: Connector) -> None:
        """Send what computes the prompt alone; or, after that, what answers from its KV."""
        parsed = self.parsed
        handoff, self._handoff = self._handoff, None
        if effect.stage is Stage.PREFILL:
            self.placement = effect
            leg = PrefillLeg(effect.leg, connector, self._prefilled)
            body = connector.prefill_body(parsed.body, parsed.api)
            self._send(leg, pool, without_encoding(self._head), _told(body, effect.priority))
        else:
            assert handoff is not None  # the router starts a decode leg at the end of the prefill leg
            body = connector.decode_body(parsed.body, handoff)
            self._start(effect, pool, body, OpeningLeg(self, self._said_nothing))

    def _start(self, effect: StartLeg, pool: UpstreamPool, body: bytes, leg: Leg | None = None) -> None:
        self.placement = effect
        self._leg = effect.leg
        self._failing = False
        if self.parsed.asked_model != self.parsed.model:
            self._restorer = NameRestorer(self.parsed.model, self.parsed.asked_model)
        self._send(leg or self, pool, self._head, _told(body, effect.priority))

    def _send(self, leg: Leg, pool: UpstreamPool, head: bytes, body: bytes) -> None:
        exchange = self.exchange
        payload = b"%b %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
            exchange.method.encode(),
            exchange.target,
            pool.address,
            len(body),
            head,
            body,
        )
        self._call = Call(leg, payload)
        pool.send(self._call)

    def cancel(self) -> None:
        """Drop the leg."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def answer(self, effect: Answer) -> None:
        """Answer in the engine's stead."""
        self.status = effect.status
        headers = [(b"x-llm-d-request-dropped-reason", DROPPED_REASONS.get(effect.outcome, effect.code).encode())]
        if effect.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, ceil(effect.retry_after_s))))
        headers += rate_limit_headers(self.allowances)
        if self.client_id is not None:
            headers.append((REQUEST_ID, self.client_id))
        self.exchange.respond(
            effect.status, error_body(effect.message, status=effect.status, code=effect.code), headers=headers
        )

    def break_off(self, effect: BreakStream) -> None:
        """End an answer that cannot be completed so that the client notices: an error event, or a cut connection."""
        if self._watch is not None:
            event = error_body(effect.message, status=502, code=effect.code)
            self.exchange.keep_alive = False
            self.exchange.finish(b"data: %b\n\n" % event)
        else:
            self.exchange.abort()

    # -- from the endpoint

    def on_answer(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        """The head is there; what it means shows with the body."""
        self.status = status
        self._length = length if self._restorer is None else None
        self._failing = status >= 500 or status == 429
        self.head_headers = headers

    def on_data(self, data: bytes, *, ended: bool) -> None:
        """Pass a piece on."""
        if self._restorer is not None:
            data = self._restorer.feed(data)
            if ended:
                data += self._restorer.finish()
        if self._failing:
            if ended:
                self._call = None
                self._desk.tell(LegFailed(self._leg, Fault.STATUS, self.status))
        elif self._started:
            self._continue(data, ended=ended)
        elif data or ended:
            if self.status == 200 and _ABORTED in data[:ABORT_WINDOW_BYTES]:
                self.cancel()
                self._desk.tell(LegFailed(self._leg, Fault.ABORTED, detail="the engine is shutting down"))
            else:
                self._begin(data, ended=ended)

    def on_failure(self, fault: Fault, detail: str) -> None:
        """The endpoint did not complete its answer."""
        self._call = None
        self._desk.tell(LegFailed(self._leg, fault, 0, detail))

    def _prefilled(self, outcome: LegFinished | LegFailed, handoff: Raw | None) -> None:
        """The prefill leg has ended: the router says what follows."""
        self.cancel()  # of an answer that was too long, more would come
        self._handoff = handoff
        if handoff is None and self.placement is not None and type(outcome) is LegFinished and outcome.status == 200:
            self._desk.kept_nothing(self.placement.endpoint)
        self._desk.tell(outcome)

    def _said_nothing(self) -> None:
        """A leg's stream has failed before it said anything: as good as the status 500 that it came too late for."""
        self.cancel()
        self.status = 500
        self._desk.tell(LegFailed(self._leg, Fault.STATUS, 500))

    def _begin(self, data: bytes, *, ended: bool) -> None:
        self._started = True
        self._reported_s = now_s = self._desk.now_s()
        self.first_s = now_s - self._arrived_s
        streamed = is_stream(self.head_headers)
        if ended and not streamed:
            self._answer_at_once(data)
            return
        if streamed:
            self._watch = StreamWatch(strip=self.parsed.stream and not self.parsed.wants_usage)
        elif self._length is None or self._length <= USAGE_BODY_BYTES:
            self._collected = []
        self.exchange.start(self.status, self._headers_for_client(), None if streamed else self._length)
        if not ended:
            self._desk.tell(LegStarted(self._leg, self.status))
        self._continue(data, ended=ended)

    def _answer_at_once(self, data: bytes) -> None:
        """Pass on an answer that came in one piece."""
        self._call = None
        if len(data) <= USAGE_BODY_BYTES:
            self.usage = usage_of(data)
        self.exchange.start(self.status, self._headers_for_client(), len(data))
        self.exchange.finish(data)
        self._desk.tell(LegFinished(self._leg, self.status, self.usage))

    def _headers_for_client(self) -> list[tuple[bytes, bytes]]:
        headers = for_client(self.head_headers)
        if self.client_id is not None:
            headers = [header for header in headers if header[0] != REQUEST_ID]
            headers.append((REQUEST_ID, self.client_id))
        if self.allowances:
            headers = [header for header in headers if not header[0].startswith(RATE_LIMIT_PREFIX)]
            headers += rate_limit_headers(self.allowances)
        if self.debug and self.placement is not None and self.first_s is not None:
            headers += debug_headers(self.placement, self.first_s)
            if self.tokens is not None:
                headers.append((b"x-beaconry-tokens", self.tokens.told.encode()))
        return headers

    def _continue(self, data: bytes, *, ended: bool) -> None:
        watch = self._watch
        if watch is not None:
            data = watch.feed(data)
            if ended:
                data += watch.finish()
                self.usage = watch.usage
        elif self._collected is not None and data:
            self._collected.append(data)
            self._collected_bytes += len(data)
            if self._collected_bytes > USAGE_BODY_BYTES:
                self._collected = None
        if ended:
            self._finish(data)
            return
        if data and not self.exchange.write(data) and self._call is not None:
            self._call.pause()
            self.exchange.on_writable = self._call.resume
        now_s = self._desk.now_s()
        if now_s - self._reported_s >= PROGRESS_S:
            self._reported_s = now_s
            self._desk.tell(LegProgressed(self._leg))

    def _finish(self, data: bytes) -> None:
        self._call = None
        if self._collected is not None:
            self.usage = usage_of(b"".join(self._collected))
            self._collected = None
        self.exchange.finish(data)
        self._desk.tell(LegFinished(self._leg, self.status, self.usage))


def _told(body: bytes, priority: int | None) -> bytes:
    """The body as its endpoint gets it."""
    return body if priority is None else with_priority(body, priority)


def debug_headers(placement: StartLeg, first_byte_s: float) -> list[tuple[bytes, bytes]]:
    """Where a request went, what was expected of it, and what came: `first_byte_s` after its arrival."""
    decision = placement.decision
    headers = [
        (b"x-beaconry-endpoint", placement.endpoint.name.encode()),
        (b"x-beaconry-policy", decision.policy.encode()),
        (b"x-beaconry-view", b"exact" if decision.chosen.candidate.exact else b"approximate"),
        (b"x-beaconry-matched-tokens", b"%d" % decision.chosen.candidate.matched_tokens),
        (b"x-beaconry-loaded-tokens", b"%d" % sum(tokens for _, tokens in decision.chosen.candidate.loads)),
        (b"x-beaconry-first-byte-ms", b"%.1f" % (1e3 * first_byte_s)),
    ]
    if decision.queued_s > 0:
        headers.append((b"x-beaconry-queued-ms", b"%.1f" % (1e3 * decision.queued_s)))
        headers.append((b"x-beaconry-waited-for", decision.waited_for.encode()))
    if decision.plan:
        headers.append((b"x-beaconry-plan", decision.plan.encode()))
    if decision.source:
        headers.append((b"x-beaconry-prefill-endpoint", decision.source.encode()))
        headers.append((b"x-beaconry-prefill-ms", b"%.1f" % (1e3 * decision.prefill_s)))
    prediction = decision.chosen.prediction
    if prediction is not None:
        headers.append((b"x-beaconry-predicted-ttft-ms", b"%.1f" % (1e3 * prediction.ttft_s)))
        headers.append((b"x-beaconry-predicted-itl-ms", b"%.2f" % (1e3 * prediction.itl_s)))
    return headers
