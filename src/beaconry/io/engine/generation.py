"""From a generation request to its sequences in the engine, and from their tokens back to its answer."""

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from collections.abc import Sequence as Sized
from random import Random
from typing import Final

from msgspec import Struct

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.offload_tier import OffloadTier
from beaconry.engine_model.replies import Reply, make_reply
from beaconry.engine_model.sequence import Phase, Sequence
from beaconry.engine_model.step_time import StepTime
from beaconry.engine_model.values import EngineSettings, StepResult
from beaconry.io.engine.answers import ABORTED, Answer, Choice
from beaconry.io.engine.faults import Fault, Kind
from beaconry.io.engine.loop import EngineLoop
from beaconry.io.engine.observations import Observations
from beaconry.io.engine.requests import Asked, Prompt, parse_generation
from beaconry.io.http_exchange import Exchange
from beaconry.values.block_hash import BlockHasher
from beaconry.values.errors import CallerError, OperatorError
from beaconry.values.kv_events import KvEvent
from beaconry.wire.kv_events import Form

CRASH_STATUS: Final = 70
"""Exit status of a crash on request."""


class KvEventsOptions(Struct, frozen=True, kw_only=True):
    """How an engine publishes its KV events. Ports are of the engine's own host, 0 for a free one."""

    port: int
    replay_port: int | None = None
    """None: nothing is remembered for those who come late."""
    topic: str = ""
    form: Form = Form.MAPS
    buffer_steps: int = 10_000
    """Batches remembered; as many as vLLM remembers by default."""


class OffloadOptions(Struct, frozen=True, kw_only=True):
    """The engine keeps copies of cached blocks in its host's memory."""

    blocks: int
    load_s: float
    """Model seconds to load one block from there."""


class EngineOptions(Struct, frozen=True, kw_only=True):
    """One simulated engine, and what it says of itself."""

    models: tuple[str, ...]
    """Names it answers to, its own first."""
    adapters: dict[str, str] = {}
    """LoRA adapters that it serves, paths by name. They keep blocks apart and change nothing else."""
    settings: EngineSettings
    step_time: StepTime
    max_model_len: int
    """Tokens of prompt and reply together; they must fit into the KV memory."""
    request_s: float = 0.0
    """Model seconds from a request's arrival to its being queued: HTTP, tokenization, hand-over."""
    speed: float = 1.0
    """Model seconds per real second."""
    seed: int = 0
    hash_algorithm: str = "fast"
    by_priority: bool = False
    """Serve by the requests' `priority`; else it is ignored and the order is that of arrival."""
    max_queued: int = 16_384
    """Waiting sequences; beyond it new requests get 503. vLLM has no bound by default."""
    kv_events: KvEventsOptions | None = None
    """None: it publishes none."""
    offload: OffloadOptions | None = None
    """None: what the GPU evicts is gone."""

    @property
    def names(self) -> tuple[str, ...]:
        """All that a request may ask for."""
        return (*self.models, *self.adapters)


class Generation:
    """All generation requests of one engine.

    Attributes:
        open_answers: requests taken and not ended.

    `_choices` has every sequence that is in the engine; `_live` those of them that have begun and are watched token by token:
    streams, and requests with a fault. `_crash_in` counts the tokens until the process is to crash, None if it is not.

    """

    def __init__(
        self,
        options: EngineOptions,
        loop: asyncio.AbstractEventLoop,
        publish: Callable[[Sized[KvEvent]], None] | None = None,
    ) -> None:
        """`publish` gets the KV events of each step that has any; without it none are recorded."""
        _validate(options)
        self.options = options
        self._publish = publish
        self.engine = Engine(
            options.settings,
            options.step_time,
            rng=Random(options.seed),
            record_events=publish is not None,
            tiers=() if options.offload is None else (OffloadTier(options.offload.blocks, options.offload.load_s),),
        )
        self.steps = EngineLoop(self.engine, self._stepped, speed=options.speed, loop=loop)
        self.observations = Observations(options.max_model_len, options.speed)
        self.open_answers = 0
        self._loop = loop
        self._hasher = BlockHasher(options.settings.block_tokens, options.hash_algorithm)
        self._numbers = itertools.count()
        self._choices: dict[str, Choice] = {}
        self._live: dict[str, Choice] = {}
        self._crash_in: int | None = None
        self._stopping = False
        self._emptied = asyncio.Event()

    def handle(self, exchange: Exchange, fault: Fault | None, *, chat: bool) -> None:
        """Take a request. CallerError if it asks for what cannot be had."""
        if fault is not None and fault.kind is Kind.ERROR:
            raise CallerError("The engine was asked to fail.", status=fault.status)
        options = self.options
        asked = parse_generation(exchange.body, chat=chat, models=options.names, max_model_len=options.max_model_len)
        if self.engine.statistics().waiting + asked.sequences > options.max_queued:
            self.observations.rejected += 1
            raise CallerError("The engine is currently busy. Please try again later.", status=503)
        if fault is not None and fault.kind is Kind.HANG:
            return
        delay_s = options.request_s / options.speed
        if fault is not None and fault.kind is Kind.SLOW:
            self._loop.call_later(fault.delay_s + delay_s, self._start, exchange, asked, None)
        elif delay_s:
            self._loop.call_later(delay_s, self._start, exchange, asked, fault)
        else:
            self._start(exchange, asked, fault)

    def crash_after(self, tokens: int | None) -> None:
        """End the process when so many more tokens are generated, at once for 0; None takes it back."""
        self._crash_in = tokens
        if tokens == 0:
            crash()

    async def drain(self, grace_s: float) -> bool:
        """Answer new requests as aborted and wait for those that run. True if all of them have ended in time."""
        self._stopping = True
        if self.open_answers:
            try:
                await asyncio.wait_for(self._emptied.wait(), grace_s)
            except TimeoutError:
                return False
        return True

    # -- requests

    def _start(self, exchange: Exchange, asked: Asked, fault: Fault | None) -> None:
        if exchange.closed:
            return
        number = next(self._numbers)
        given = exchange.header(b"x-request-id")
        name = f"{'chatcmpl' if asked.chat else 'cmpl'}-{given.decode('latin-1') if given else f'{number:016x}'}"
        answer = Answer(exchange, asked, name, int(time.time()), fault)
        if self._stopping:
            self._abort_at_once(answer)
            return
        self.observations.observe_request(asked.n, asked.max_tokens)
        self.open_answers += 1
        exchange.on_close = lambda: self._drop(answer, "abort")
        for index in range(asked.sequences):
            prompt = asked.prompts[index // asked.n]
            reply = make_reply(prompt.key(asked.seed + self.options.seed, index % asked.n), prompt.limits)
            choice = answer.add(self._sequence(f"{number}-{index}", asked, prompt, reply), reply)
            self._choices[choice.sequence.id] = choice
            self.steps.submit(choice.sequence)
        if fault is not None and not fault.after_tokens:
            self._apply(fault, answer)

    def _sequence(self, name: str, asked: Asked, prompt: Prompt, reply: Reply) -> Sequence:
        tokens = prompt.tokens + reply.token_ids()
        path = self.options.adapters.get(asked.model)
        return Sequence(
            name,
            len(prompt.tokens),
            reply.tokens,
            hashes=self._hasher.hashes(tokens, lora=None if path is None else (asked.model, path), salt=asked.salt),
            tokens=tokens if self._publish is not None else None,
            priority=asked.priority if self.options.by_priority else 0,
            lora=None if path is None else asked.model,
            salt=asked.salt,
        )

    def _abort_at_once(self, answer: Answer) -> None:
        self.observations.finished["abort"] += 1
        for index in range(answer.asked.sequences):
            answer.add(Sequence(str(index), 1, 1), ABORTED)
        for choice in answer.choices:
            if answer.asked.stream:
                answer.push(choice)
            else:
                answer.end_choice()

    def _drop(self, answer: Answer, reason: str) -> None:
        """The client has left, or must not get the rest: free what the request holds."""
        if answer.ended:
            return
        for choice in answer.choices:
            name = choice.sequence.id
            if self._choices.pop(name, None) is not None:
                self._live.pop(name, None)
                self.steps.abort(name)
                self.observations.finished[reason] += 1
        self._end(answer)

    def _end(self, answer: Answer) -> None:
        answer.ended = True
        self.open_answers -= 1
        if not self.open_answers and self._stopping:
            self._emptied.set()

    # -- tokens

    def _stepped(self, result: StepResult, duration_s: float) -> None:
        self.observations.observe_step(result, duration_s)
        if self._publish is not None and (events := self.engine.take_events()):
            self._publish(events)
        if self._crash_in is not None:
            self.crash_after(max(0, self._crash_in - result.output_tokens))
        for sequence in result.started:
            choice = self._choices[sequence.id]
            if choice.answer.asked.stream or choice.answer.fault is not None:
                self._live[sequence.id] = choice
        for choice in list(self._live.values()):
            if choice.sequence.phase is Phase.DECODE:
                choice.generated += 1
                self._deliver(choice)
        for sequence in result.finished:
            choice = self._choices.pop(sequence.id)
            self._live.pop(sequence.id, None)
            self.observations.observe_end(sequence, choice.reply.finish_reason)
            choice.generated = sequence.generated
            self._deliver(choice)

    def _deliver(self, choice: Choice) -> None:
        answer = choice.answer
        if answer.ended:
            return
        last = choice.generated == choice.reply.tokens
        if answer.asked.stream:
            answer.push(choice)
        elif last:
            answer.end_choice()
        if last and answer.complete:
            self._end(answer)
        elif answer.fault is not None and choice.generated >= answer.fault.after_tokens:
            self._apply(answer.fault, answer)

    def _apply(self, fault: Fault, answer: Answer) -> None:
        if fault.kind is Kind.CRASH:
            crash()
        answer.exchange.abort()
        self._drop(answer, "error")


def crash() -> None:
    """End the process as a segmentation fault would: no answer, no cleaning up."""
    os._exit(CRASH_STATUS)


def _validate(options: EngineOptions) -> None:
    capacity = options.settings.num_blocks * options.settings.block_tokens
    if not 1 < options.max_model_len <= capacity:
        raise OperatorError(
            f"the model length of {options.max_model_len} tokens must be above 1 and fit into the KV memory of {capacity}: "
            "lower --max-model-len or raise --blocks"
        )
    if options.speed <= 0.0:
        raise OperatorError(f"--speed is {options.speed}: it must be above 0")
