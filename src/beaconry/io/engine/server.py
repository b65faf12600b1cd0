"""A simulated engine behind vLLM's HTTP interface, in real time.

It serves /v1/chat/completions, /v1/completions, /v1/models, /health, /ping, /version, /load, /metrics, /tokenize, /detokenize,
/kv_event_sources, /reset_prefix_cache, to engines that fetch KV /kv/... (see `kv_holder.py`), and for tests /fault (see `faults.py`).
While it shuts down, what runs goes on, and new requests get status 200 with the finish reason "abort", as from vLLM.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from beaconry import __version__
from beaconry.config.gateway import Limits
from beaconry.engine_model.tokenizer import decode, token_text
from beaconry.io.engine.faults import FAULT_HEADER, EngineFault, Fault, Kind, parse_fault
from beaconry.io.engine.generation import Generation
from beaconry.io.engine.kv_holder import KEEP, READ, RELEASE
from beaconry.io.engine.options import EngineOptions, KvEventsOptions
from beaconry.io.engine.requests import parse_detokenize, parse_tokenize
from beaconry.io.http_exchange import Exchange
from beaconry.io.http_server import HttpServer, serve
from beaconry.values.errors import CallerError, OperatorError

if TYPE_CHECKING:
    from beaconry.io.engine.events import EventPublisher
    from beaconry.io.engine.metrics import EngineMetrics

VERSION: Final = f"0.32.0+beaconry.{__version__}"
"""The vLLM whose interfaces these are, and our own."""
_ERROR_TYPES: Final = {
    400: "BadRequestError",
    404: "NotFoundError",
    405: "Method Not Allowed",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}

_json = msgspec.json.encode


class EngineServer:
    """Answers the exchanges of one engine. `open` and `close` belong to one task.

    `_held` are exchanges that came while the engine stands still (the fault "hang"); `_waking` is set as long as it does and will
    not for ever; `_stack` has what is to be closed.
    """

    def __init__(
        self, options: EngineOptions, loop: asyncio.AbstractEventLoop, publisher: "EventPublisher | None" = None
    ) -> None:
        self.options = options
        self.publisher = publisher
        self.generation = Generation(options, loop, None if publisher is None else publisher.publish)
        self._loop = loop
        self._created = int(time.time())
        self._metrics: EngineMetrics | None = None
        self._fault = EngineFault()
        self._held: list[Exchange] = []
        self._waking: asyncio.TimerHandle | None = None
        self._stack = AsyncExitStack()
        self._routes: dict[str, dict[str, Callable[[Exchange], None]]] = {
            "/v1/chat/completions": {"POST": lambda exchange: self._generate(exchange, chat=True)},
            "/v1/completions": {"POST": lambda exchange: self._generate(exchange, chat=False)},
            "/v1/models": {"GET": self._list_models},
            "/health": {"GET": _respond_empty},
            "/ping": {"GET": _respond_empty, "POST": _respond_empty},
            "/version": {"GET": lambda exchange: exchange.respond(200, _json({"version": VERSION}))},
            "/load": {"GET": self._show_load},
            "/metrics": {"GET": self._expose_metrics},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/kv_event_sources": {"GET": self._list_event_sources},
            "/reset_prefix_cache": {"POST": self._reset_prefix_cache},
            "/fault": {"POST": self._post_fault, "DELETE": self._delete_fault},
        }
        if (holder := self.generation.holder) is not None:
            answers = {KEEP: holder.keep, READ: holder.read, RELEASE: holder.release}
            self._routes |= {path: {"POST": answer} for path, answer in answers.items()}

    async def open(self) -> None:
        """Be ready to take exchanges."""
        if self.publisher is not None:
            self._stack.callback(self.publisher.close)
        if self.generation.holder is not None:
            self._stack.callback(self.generation.holder.close)
        if self.generation.reader is not None:
            group = await self._stack.enter_async_context(asyncio.TaskGroup())
            self._stack.callback(group.create_task(self.generation.reader.run()).cancel)
            await asyncio.sleep(0)  # it runs from here on

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or later."""
        fault = self._fault.at(self._loop.time())
        if fault is not None and fault.kind is Kind.HANG and exchange.path != "/fault":
            self._held.append(exchange)
            return
        try:
            self._route(exchange)(exchange)
        except CallerError as error:
            _refuse(exchange, error)

    async def close(self) -> None:
        """Give back what is not the HTTP server's."""
        await self._stack.aclose()

    def _route(self, exchange: Exchange) -> Callable[[Exchange], None]:
        methods = self._routes.get(exchange.path)
        if methods is None:
            raise CallerError("Not Found", status=404)
        method = "GET" if exchange.method == "HEAD" else exchange.method
        if method not in methods:
            raise CallerError("Method Not Allowed", status=405)
        return methods[method]

    # -- generation

    def _generate(self, exchange: Exchange, *, chat: bool) -> None:
        header = exchange.header(FAULT_HEADER)
        fault = self._fault.at(self._loop.time()) if header is None else parse_fault(header)
        if header is None and fault is not None and fault.kind is Kind.CRASH:
            fault = None  # the engine's own: it counts the tokens of all requests
        self.generation.handle(exchange, fault, chat=chat)

    def _tokenize(self, exchange: Exchange) -> None:
        tokens, with_strings = parse_tokenize(exchange.body, self.options.names)
        answer = {
            "count": len(tokens),
            "max_model_len": self.options.max_model_len,
            "tokens": tokens.tolist(),
            "token_strs": list(map(token_text, tokens)) if with_strings else None,
        }
        exchange.respond(200, _json(answer))

    def _detokenize(self, exchange: Exchange) -> None:
        exchange.respond(200, _json({"prompt": decode(parse_detokenize(exchange.body, self.options.names))}))

    # -- what it says of itself

    def _list_models(self, exchange: Exchange) -> None:
        base = self.options.models[0]
        models = [self._describe_model(name, base) for name in self.options.models]
        models += [self._describe_model(name, path, base) for name, path in self.options.adapters.items()]
        exchange.respond(200, _json({"object": "list", "data": models}))

    def _describe_model(self, name: str, root: str, parent: str | None = None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": self.options.max_model_len,
            "permission": [],
        }

    def _show_load(self, exchange: Exchange) -> None:
        exchange.respond(200, _json({"server_load": self.generation.open_answers}))

    def _expose_metrics(self, exchange: Exchange) -> None:
        if self._metrics is None:
            from beaconry.io.engine.metrics import EngineMetrics  # noqa: PLC0415 (doubles the time it takes to start)

            generation, options = self.generation, self.options
            self._metrics = EngineMetrics(
                options.models[0],
                generation.steps,
                generation.observations,
                options.hash_algorithm,
                len(options.adapters),
                None if options.kv_transfer is None else generation.handovers,
            )
        exchange.respond(200, self._metrics.render(), b"text/plain; version=0.0.4; charset=utf-8")

    def _list_event_sources(self, exchange: Exchange) -> None:
        exchange.respond(200, _json({} if self.publisher is None else {"0": self.publisher.describe()}))

    def _reset_prefix_cache(self, exchange: Exchange) -> None:
        if not self.generation.engine.reset_prefix_cache():
            raise CallerError("The prefix cache is in use by running requests.", status=503)
        _respond_empty(exchange)

    # -- faults of the whole engine

    def _post_fault(self, exchange: Exchange) -> None:
        fault = parse_fault(exchange.body)
        self._set_fault(fault)
        _respond_empty(exchange)

    def _delete_fault(self, exchange: Exchange) -> None:
        self._set_fault(None)
        _respond_empty(exchange)

    def _set_fault(self, fault: Fault | None) -> None:
        self._wake()
        self._fault.set(fault, self._loop.time())
        hangs = fault is not None and fault.kind is Kind.HANG
        if fault is not None and hangs:
            self.generation.steps.pause()
            if fault.for_s is not None:
                self._waking = self._loop.call_later(fault.for_s, self._wake)
        crashes = fault is not None and fault.kind is Kind.CRASH
        self.generation.crash_after(fault.after_tokens if fault is not None and crashes else None)

    def _wake(self) -> None:
        """End a hang: go on with the steps, and answer what came meanwhile."""
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        self._fault.set(None, self._loop.time())
        self.generation.steps.resume()
        held, self._held = self._held, []
        for exchange in held:
            if not exchange.closed:
                self.handle(exchange)


async def serve_engine(options: EngineOptions, host: str, port: int) -> tuple[EngineServer, HttpServer]:
    """Start an engine on the running loop; the caller closes both. OperatorError if its options or an address cannot be had."""
    loop = asyncio.get_running_loop()
    publisher = None if options.kv_events is None else _publisher(options.kv_events, host, loop)
    engine = EngineServer(options, loop, publisher)
    try:
        await engine.open()
        server = await serve(engine.handle, host, port, Limits())
    except OperatorError:
        await engine.close()
        raise
    if engine.generation.holder is not None:
        engine.generation.holder.port = server.port
    return engine, server


def _publisher(options: KvEventsOptions, host: str, loop: asyncio.AbstractEventLoop) -> "EventPublisher":
    from beaconry.io.engine.events import EventPublisher  # noqa: PLC0415 (25 ms that only publishers need)

    return EventPublisher(options, host, loop)


def _respond_empty(exchange: Exchange) -> None:
    exchange.respond(200, b"")


def _refuse(exchange: Exchange, error: CallerError) -> None:
    kind = (
        error.kind if error.kind != "invalid_request_error" else _ERROR_TYPES.get(error.status, "InternalServerError")
    )
    body = {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.status}}
    exchange.respond(error.status, _json(body))
