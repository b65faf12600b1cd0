"""The gateway's HTTP door: which path means what, and requests to values.

Only `/v1/...` reaches an engine, by the `model` in its JSON body; an engine's other paths (sleep, profile, adapter loading) do not.
"""

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import msgspec

from beaconry.io.http_exchange import Exchange
from beaconry.io.prompts import Keyed, Prompts
from beaconry.io.relay import Relay
from beaconry.router.facts import ClientLeft, Fact, RequestArrived, RequestRefused
from beaconry.router.router import Router
from beaconry.values.errors import CallerError
from beaconry.values.request import Request
from beaconry.wire.errors import caller_error_body
from beaconry.wire.headers import for_engine
from beaconry.wire.openai import TOKEN_BYTES, Parsed, api_of, parse
from beaconry.wire.prefix import BLOCK_BYTES

_FORWARDED = re.compile(r"/v1(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
"""Plain segments only: neither escapes nor dots that an engine might resolve to something else."""
_ADMINISTRATIVE = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""Changes an engine for everybody: the operator's, not a client's."""
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
CLIENT_CLOSED = 499
"""nginx's status for a client that left before there was an answer."""
DEBUG_HEADER = b"x-beaconry-debug"


class Desk(Protocol):
    """What the door needs of the driver."""

    router: Router

    def admit(self, relay: Relay, request_id: str, fact: Fact) -> None:
        """Bring in a new request."""
        ...

    def tell(self, fact: Fact) -> None:
        """Hand in a fact."""
        ...

    def now_s(self) -> float:
        """Loop time."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        """Run in the gateway's task group."""
        ...


class Door:
    """Turns exchanges into requests, or answers them itself."""

    def __init__(
        self,
        desk: Desk,
        prompts: Prompts,
        metrics: Callable[[], bytes],
        *,
        debug_headers: bool,
        session_header: str | None,
        boot_id: str,
    ) -> None:
        self._desk = desk
        self._prompts = prompts
        self._debug_headers = debug_headers
        self._session_header = session_header.lower().encode() if session_header else None
        self._boot_id = boot_id
        """Makes request ids unique across restarts."""
        self._count = 0
        self._metrics = metrics

    def handle(self, exchange: Exchange) -> None:
        """Take one whole request."""
        try:
            if exchange.method == "POST":
                self._forward(exchange)
            else:
                self._look_up(exchange)
        except CallerError as error:
            self._desk.tell(RequestRefused(error.status))
            exchange.respond(error.status, caller_error_body(error))

    def _look_up(self, exchange: Exchange) -> None:
        path = exchange.path
        if exchange.method not in ("GET", "HEAD"):
            raise CallerError(
                f"method {exchange.method[:32]} is not supported here", status=405, code="method_not_allowed"
            )
        if path == "/v1/models":
            cards = [_model_card(name) for name in self._desk.router.models()]
            exchange.respond(200, msgspec.json.encode({"object": "list", "data": cards}))
        elif path.startswith("/v1/models/") and path[11:] in self._desk.router.models():
            exchange.respond(200, msgspec.json.encode(_model_card(path[11:])))
        elif path == "/health":
            exchange.respond(200, b"", b"text/plain")
        elif path == "/ready":
            ready = any(e.state == "ready" for e in self._desk.router.statistics(self._desk.now_s()).endpoints)
            exchange.respond(200 if ready else 503, b"", b"text/plain")
        elif path == "/metrics":
            exchange.respond(200, self._metrics(), b"text/plain; version=0.0.4; charset=utf-8")
        else:
            raise CallerError(f"there is no GET {path[:200]} here", status=404, code="unknown_path")

    def _forward(self, exchange: Exchange) -> None:
        path = exchange.path
        if path in _ADMINISTRATIVE or not _FORWARDED.fullmatch(path):
            raise CallerError(f"there is no POST {path[:200]} here", status=404, code="unknown_path")
        content_type = exchange.header(b"content-type")
        if content_type is not None and content_type.startswith(b"multipart/"):
            raise CallerError(
                "multipart bodies are not supported; send JSON with a `model`",
                status=415,
                code="unsupported_media_type",
            )
        parsed = parse(api_of(path), exchange.body)
        arrived_s = self._desk.now_s()
        keyed = self._prompts.begin(parsed.model, parsed.api, parsed.body)
        if keyed is None or isinstance(keyed, Keyed):
            self._admit(exchange, parsed, keyed, arrived_s)
        else:
            self._desk.spawn(self._admit_later(exchange, parsed, keyed, arrived_s))

    async def _admit_later(
        self, exchange: Exchange, parsed: Parsed, pending: Awaitable[Keyed], arrived_s: float
    ) -> None:
        keyed = await pending
        if exchange.closed:
            self._desk.tell(RequestRefused(CLIENT_CLOSED))
        else:
            self._admit(exchange, parsed, keyed, arrived_s)

    def _admit(self, exchange: Exchange, parsed: Parsed, keyed: Keyed | None, arrived_s: float) -> None:
        """Hand the request to the router."""
        desk = self._desk
        self._count += 1
        request_id = f"{self._boot_id}-{self._count}"
        density = desk.router.tokens_per_byte(parsed.model)
        exact = parsed.prompt_tokens
        if keyed is not None and keyed.tokens.ids is not None:
            exact = len(keyed.tokens.ids)
        request = Request(
            id=request_id,
            model=parsed.model,
            api=parsed.api,
            arrived_s=arrived_s,
            prompt_tokens=exact if exact is not None else int(parsed.prompt_bytes * density) + 1,
            prompt_bytes=parsed.prompt_bytes if parsed.prompt_tokens is None else 0,
            prefix=parsed.prefix,
            block_tokens=BLOCK_BYTES / TOKEN_BYTES if parsed.prompt_tokens is not None else BLOCK_BYTES * density,
            keys=() if keyed is None else keyed.keys,
            key_tokens=0 if keyed is None else keyed.key_tokens,
            tokens_from="" if keyed is None else keyed.tokens.told,
            output_tokens=parsed.output_tokens,
            sequences=parsed.sequences,
            stream=parsed.stream,
            session=self._session(exchange),
        )
        headers = for_engine(exchange.headers)
        given_id = exchange.header(b"x-request-id")
        if given_id is None or not _REQUEST_ID.fullmatch(given_id):
            headers += b"x-request-id: %b\r\n" % request_id.encode()
        relay = Relay(desk, exchange, parsed, headers)
        relay.request = request
        relay.tokens = None if keyed is None else keyed.tokens
        relay.debug = self._debug_headers and exchange.header(DEBUG_HEADER) == b"1"
        exchange.on_close = lambda: desk.tell(ClientLeft(request_id))
        desk.admit(relay, request_id, RequestArrived(request))

    def _session(self, exchange: Exchange) -> str | None:
        if self._session_header is None:
            return None
        value = exchange.header(self._session_header)
        return value[:256].decode("latin-1") if value else None


def _model_card(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "beaconry"}
