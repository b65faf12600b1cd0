"""The gateway's HTTP door: which path means what, and requests to values.

Only `/v1/...` reaches an engine, by the `model` in its JSON body; an engine's other paths (sleep, profile, adapter loading) do not.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from msgspec import Struct, structs

from beaconry.config.gateway import Access
from beaconry.io.exposition import CONTENT_TYPE
from beaconry.io.http_exchange import Exchange
from beaconry.io.prompts import Keyed, Prompts
from beaconry.io.relay import Desk as RelayDesk
from beaconry.io.relay import Relay
from beaconry.router.facts import ClientLeft, Fact, RequestArrived, RequestRefused
from beaconry.router.router import Router
from beaconry.tenancy.reception import Reception
from beaconry.tenancy.terms import PLAIN, Terms
from beaconry.values.errors import CallerError
from beaconry.values.request import Api, Request
from beaconry.wire.errors import caller_error_body, no_such_model
from beaconry.wire.framing import Fault, body_bytes
from beaconry.wire.headers import for_engine
from beaconry.wire.openai import TOKEN_BYTES, Parsed, api_of, parse
from beaconry.wire.prefix import BLOCK_BYTES

_LOG = logging.getLogger(__name__)
_FORWARDED = re.compile(r"/v1(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
"""Plain segments only: neither escapes nor dots that an engine might resolve to something else."""
_ADMINISTRATIVE = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""Changes an engine for everybody: the operator's, not a client's."""
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
UNKNOWN_BODY_BYTES = 16_384
"""Read before its sender is known: less than a connection costs anyway, and the usual prompt is answered without closing."""
CLIENT_CLOSED = 499
"""nginx's status for a client that left before there was an answer."""
DEBUG_HEADER = b"x-beaconry-debug"
_CHALLENGE = ((b"www-authenticate", b"Bearer"),)
_ID = frozenset({b"x-request-id"})
_KEY_AND_ID = _ID | {b"authorization"}
_ENCODING = frozenset({b"accept-encoding"})
"""An answer that must be edited must not be compressed."""


class Desk(RelayDesk, Protocol):
    """What the door needs of the driver, beside what its relays need."""

    router: Router

    def admit(self, relay: Relay, request_id: str, fact: Fact) -> None:
        """Bring in a new request."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        """Run in the gateway's task group."""
        ...


class _Received(Struct, frozen=True, gc=False):
    """A request that may be served, before its tokens are known."""

    exchange: Exchange
    parsed: Parsed
    terms: Terms
    request_id: str
    arrived_s: float
    session: str | None
    client_id: bytes | None
    """The id that the client has given it, if that is usable."""


class Door:
    """Turns exchanges into requests, or answers them itself."""

    def __init__(
        self,
        desk: Desk,
        prompts: Prompts,
        reception: Reception,
        metrics: Callable[[], Iterator[bytes]],
        access: Access,
        *,
        engine_key: bytes | None,
    ) -> None:
        self._desk = desk
        self._prompts = prompts
        self._reception = reception
        self._debug_headers = access.debug_headers
        self._session_header = access.session_header.lower().encode() if access.session_header else None
        self._authorization = b"" if engine_key is None else b"authorization: Bearer %b\r\n" % engine_key
        """For the engines, in the client's stead; empty if they ask for no key, or the client's own passes."""
        self._boot_id = secrets.token_hex(4)
        """Makes request ids unique across restarts."""
        self._count = 0
        self._metrics = metrics

    def screen(self, headers: list[tuple[bytes, bytes]]) -> Fault | None:
        """Refuse somebody without a key before a large body is read: it would take the room of those who have one."""
        if self._reception.asks_for_keys and body_bytes(headers) > UNKNOWN_BODY_BYTES:
            try:
                self._reception.caller(headers)
            except CallerError as error:
                return error.status, error.message, error.code or ""
        return None

    def handle(self, exchange: Exchange) -> None:
        """Take one whole request."""
        try:
            if exchange.method == "POST":
                self._forward(exchange)
            else:
                self._look_up(exchange)
        except CallerError as error:
            self._desk.tell(RequestRefused(error.status))
            headers = _CHALLENGE if error.status == HTTPStatus.UNAUTHORIZED else ()
            exchange.respond(error.status, caller_error_body(error), headers=headers)

    def _look_up(self, exchange: Exchange) -> None:
        path = exchange.path
        if exchange.method not in ("GET", "HEAD"):
            raise CallerError(
                f"method {exchange.method[:32]} is not supported here", status=405, code="method_not_allowed"
            )
        if path == "/v1/models":
            cards = [_model_card(name) for name in self._models(exchange)]
            exchange.respond(200, msgspec.json.encode({"object": "list", "data": cards}))
        elif path.startswith("/v1/models/") and path[11:] in self._models(exchange):
            exchange.respond(200, msgspec.json.encode(_model_card(path[11:])))
        elif path == "/health":
            exchange.respond(200, b"", b"text/plain")
        elif path == "/ready":
            ready = any(e.state == "ready" for e in self._desk.router.statistics(self._desk.now_s()).endpoints)
            exchange.respond(200 if ready else 503, b"", b"text/plain")
        elif path == "/metrics":
            self._desk.spawn(_guarded(exchange, self._tell_metrics(exchange)))
        else:
            raise CallerError(f"there is no GET {path[:200]} here", status=404, code="unknown_path")

    async def _tell_metrics(self, exchange: Exchange) -> None:
        """Make the page slice by slice, so that no stream waits for the whole of it."""
        made = []
        for piece in self._metrics():
            made.append(piece)
            await asyncio.sleep(0)
        exchange.respond(200, b"".join(made), CONTENT_TYPE)

    def _models(self, exchange: Exchange) -> list[str]:
        """What this caller may ask for at present."""
        caller = self._reception.caller(exchange.headers)
        names = self._reception.rewrites.names(self._desk.router.models())
        return [name for name in names if caller.may_ask_for(name)]

    def _forward(self, exchange: Exchange) -> None:
        path = exchange.path
        api = api_of(path)
        if api is Api.OTHER and (path in _ADMINISTRATIVE or not _FORWARDED.fullmatch(path)):
            raise CallerError(f"there is no POST {path[:200]} here", status=404, code="unknown_path")
        content_type = exchange.header(b"content-type")
        if content_type is not None and content_type.startswith(b"multipart/"):
            raise CallerError(
                "multipart bodies are not supported; send JSON with a `model`",
                status=415,
                code="unsupported_media_type",
            )
        received = self._receive(exchange, api)
        parsed = received.parsed
        keyed = self._prompts.begin(parsed.model, parsed.api, parsed.body)
        if keyed is None or isinstance(keyed, Keyed):
            self._admit(received, keyed)
        else:
            self._desk.spawn(_guarded(exchange, self._admit_later(received, keyed)))

    def _receive(self, exchange: Exchange, api: Api) -> "_Received":
        """What is asked, and on whose terms. Raises CallerError for a key, a body, a model or a header that is wrong."""
        arrived_s = self._desk.now_s()
        reception = self._reception
        caller = reception.caller(exchange.headers)
        self._count += 1
        request_id = f"{self._boot_id}-{self._count}"
        session = self._session(exchange)
        given_id = exchange.header(b"x-request-id")
        if given_id is not None and not _REQUEST_ID.fullmatch(given_id):
            given_id = None
        target_of = None
        if reception.rewrites:
            by = session or (request_id if given_id is None else given_id.decode())
            target_of = partial(reception.rewrites.target, key=by)
        parsed = parse(api, exchange.body, target_of)
        if not caller.may_ask_for(parsed.asked_model):
            raise CallerError(no_such_model(parsed.asked_model), status=404, code="model_not_found")
        terms = reception.terms(caller, exchange.headers, parsed.asked_model)
        return _Received(exchange, parsed, terms, request_id, arrived_s, session, given_id)

    async def _admit_later(self, received: "_Received", pending: Awaitable[Keyed]) -> None:
        keyed = await pending
        if received.exchange.closed:
            self._desk.tell(RequestRefused(CLIENT_CLOSED))
        else:
            self._admit(received, keyed)

    def _admit(self, received: "_Received", keyed: Keyed | None) -> None:
        """Hand the request to the router."""
        desk = self._desk
        exchange, parsed, terms, request_id = received.exchange, received.parsed, received.terms, received.request_id
        renamed = parsed.asked_model != parsed.model
        density = desk.router.tokens_per_byte(parsed.model)
        exact = parsed.prompt_tokens
        if keyed is not None and keyed.tokens.ids is not None:
            exact = len(keyed.tokens.ids)
        request = Request(
            id=request_id,
            model=parsed.model,
            api=parsed.api,
            arrived_s=received.arrived_s,
            prompt_tokens=exact if exact is not None else int(parsed.prompt_bytes * density) + 1,
            prompt_bytes=parsed.prompt_bytes if parsed.prompt_tokens is None else 0,
            prefix=parsed.prefix,
            block_tokens=BLOCK_BYTES / TOKEN_BYTES if parsed.prompt_tokens is not None else BLOCK_BYTES * density,
            keys=() if keyed is None else keyed.keys,
            key_tokens=0 if keyed is None else keyed.key_tokens,
            tokens_from="" if keyed is None else keyed.tokens.told,
            output_tokens=parsed.output_tokens,
            sequences=parsed.sequences,
            divisible=parsed.divisible,
            stream=parsed.stream,
            session=received.session,
        )
        if renamed or terms is not PLAIN:
            asked_model = parsed.asked_model if renamed else None
            request = structs.replace(request, asked_model=asked_model, **structs.asdict(terms))
        withheld = _KEY_AND_ID if self._authorization or self._reception.asks_for_keys else _ID
        headers = for_engine(exchange.headers, withheld | _ENCODING if renamed else withheld)
        if self._authorization:
            headers += self._authorization
        headers += b"x-request-id: %b\r\n" % request_id.encode()  # two clients' equal ones would meet in an engine
        relay = Relay(desk, exchange, parsed, headers)
        relay.request = request
        relay.client_id = received.client_id
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


async def _guarded(exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
    """Do what an exchange waits for. The gateway's tasks end together, so a bug of ours is caught here, as the server does."""
    try:
        await work
    except Exception:  # noqa: BLE001 -- a bug of ours must cost one request
        _LOG.exception("a request could not be handled")
        exchange.fail()
