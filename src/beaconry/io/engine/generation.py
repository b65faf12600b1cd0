"""From a generation request to its sequences in the engine, and from their tokens back to its answer."""

import asyncio
import itertools
import logging
import os
from collections.abc import Callable
from collections.abc import Sequence as Sized
from random import Random
from typing import Final

from msgspec.structs import replace

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.offload_tier import OffloadTier
from beaconry.engine_model.replies import Reply, make_reply
from beaconry.engine_model.sequence import Content, Phase, Sequence
from beaconry.engine_model.values import StepResult
from beaconry.io.engine.answers import ABORTED, Answer, Choice
from beaconry.io.engine.faults import Fault, Kind
from beaconry.io.engine.kv_holder import KvHolder
from beaconry.io.engine.kv_params import Keep, KvRole, Source, carries, parse_transfer
from beaconry.io.engine.kv_reader import KvReader
from beaconry.io.engine.loop import EngineLoop
from beaconry.io.engine.observations import Handovers, Observations
from beaconry.io.engine.options import EngineOptions
from beaconry.io.engine.requests import Asked, Prompt, parse_generation
from beaconry.io.http_exchange import Exchange
from beaconry.values.block_hash import BlockHasher
from beaconry.values.errors import CallerError, OperatorError
from beaconry.values.kv_events import KvEvent
from beaconry.values.stage import Stage

_LOG = logging.getLogger(__name__)
CRASH_STATUS: Final = 70
"""Exit status of a crash on request."""


class Generation:
    """All generation requests of one engine.

    Attributes:
        open_answers: requests taken and not ended.
        handovers: what has become of KV from and to other engines.
        holder, reader: the engine's part in handovers; None where its role has none.

    `_choices` has every sequence that is in the engine; `_live` those of them that have begun and are watched token by token:
    streams, and requests with a fault. `_crash_in` counts the tokens until the process is to crash, None if it is not. `_warned`: it was
    said that `kv_transfer_params` are ignored.

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
        transfer = options.kv_transfer
        settings = options.settings
        if transfer is not None:
            settings = replace(settings, kv_lease_s=transfer.lease_s * options.speed)
        self.engine = Engine(
            settings,
            options.step_time,
            rng=Random(options.seed),
            record_events=publish is not None,
            tiers=() if options.offload is None else (OffloadTier(options.offload.blocks, options.offload.load_s),),
        )
        self.steps = EngineLoop(self.engine, self._stepped, speed=options.speed, loop=loop, fetch=self._fetch)
        self.observations = Observations(options.max_model_len, options.speed)
        self.open_answers = 0
        self.handovers = Handovers()
        self.holder: KvHolder | None = None
        self.reader: KvReader | None = None
        if transfer is not None and transfer.role is not KvRole.CONSUMER:
            self.holder = KvHolder(transfer, self.steps, self.handovers, loop, options.speed)
        if transfer is not None and transfer.role is not KvRole.PRODUCER:
            self.reader = KvReader(transfer, self.steps, self.handovers, self._not_fetched, options.speed)
        self._warned = False
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
        transfer = self._transfer(asked)
        if fault is not None and fault.kind is Kind.HANG:
            return
        delay_s = options.request_s / options.speed
        if fault is not None and fault.kind is Kind.SLOW:
            self._loop.call_later(fault.delay_s + delay_s, self._start, exchange, asked, None, transfer)
        elif delay_s:
            self._loop.call_later(delay_s, self._start, exchange, asked, fault, transfer)
        else:
            self._start(exchange, asked, fault, transfer)

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

    def _transfer(self, asked: Asked) -> Keep | Source | None:
        """What a request wants of its KV. CallerError if that cannot be had."""
        if self.options.kv_transfer is not None:
            return parse_transfer(asked, self.options.kv_transfer.role)
        if not self._warned and carries(asked):
            self._warned = True
            _LOG.warning("kv_transfer_params are ignored: this engine was started without --kv-role")
        return None

    def _start(self, exchange: Exchange, asked: Asked, fault: Fault | None, transfer: Keep | Source | None) -> None:
        if exchange.closed:
            return
        number = next(self._numbers)
        given = exchange.header(b"x-request-id")
        name = f"{'chatcmpl' if asked.chat else 'cmpl'}-{given.decode('latin-1') if given else f'{number:016x}'}"
        answer = Answer(exchange, asked, name, fault, transfer)
        if self._stopping:
            self._abort_at_once(answer)
            return
        self.observations.observe_request(asked.n, asked.max_tokens)
        self.open_answers += 1
        exchange.on_close = lambda: self._drop(answer, "abort")
        for index in range(asked.sequences):
            prompt = asked.prompts[index // asked.n]
            reply = make_reply(prompt.key(asked.seed + self.options.seed, index % asked.n), prompt.limits)
            choice = answer.add(self._sequence(f"{name}-{index}-{number}", answer, prompt, reply), reply)
            self._choices[choice.sequence.id] = choice
            self.steps.submit(choice.sequence)
            if self.reader is not None and isinstance(transfer, Source):
                self.reader.expect(choice.sequence.id, transfer)
        if fault is not None and not fault.after_tokens:
            self._apply(fault, answer)

    def _sequence(self, name: str, answer: Answer, prompt: Prompt, reply: Reply) -> Sequence:
        asked = answer.asked
        tokens = prompt.tokens + reply.token_ids()
        path = self.options.adapters.get(asked.model)
        content = Content(
            hashes=self._hasher.hashes(tokens, lora=None if path is None else (asked.model, path), salt=asked.salt),
            tokens=tokens if self._publish is not None else None,
            lora=None if path is None else asked.model,
            salt=asked.salt,
        )
        return Sequence(
            name,
            len(prompt.tokens),
            reply.tokens,
            content,
            priority=asked.priority,
            stage=_stage_of(answer.transfer),
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
                if self.reader is not None:
                    self.reader.forget(name)
                self.observations.finished[reason] += 1
        self._end(answer)

    def _end(self, answer: Answer) -> None:
        answer.ended = True
        self.open_answers -= 1
        if not self.open_answers and self._stopping:
            self._emptied.set()

    # -- KV from elsewhere

    def _fetch(self, sequence: Sequence) -> None:
        assert self.reader is not None
        self.reader.fetch(sequence)

    def _not_fetched(self, sequence_id: str) -> None:
        """KV that a sequence waits for will not come: it does without, or fails."""
        assert self.options.kv_transfer is not None
        if self.options.kv_transfer.recompute:
            self.engine.imports.lose(sequence_id)
            self.steps.wake()
            return
        answer = self._choices[sequence_id].answer
        self._drop(answer, "error")
        answer.fail()

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
            if self.holder is not None and sequence.stage is Stage.PREFILL:
                choice.answer.kept = self.holder.kept(sequence)
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


def _stage_of(transfer: Keep | Source | None) -> Stage:
    match transfer:
        case Keep():
            return Stage.PREFILL
        case Source():
            return Stage.DECODE
    return Stage.WHOLE


def _validate(options: EngineOptions) -> None:
    capacity = options.settings.num_blocks * options.settings.block_tokens
    if not 1 < options.max_model_len <= capacity:
        raise OperatorError(
            f"the model length of {options.max_model_len} tokens must be above 1 and fit into the KV memory of {capacity}: "
            "lower --max-model-len or raise --blocks"
        )
    if options.speed <= 0.0:
        raise OperatorError(f"--speed is {options.speed}: it must be above 0")
