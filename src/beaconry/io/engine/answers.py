"""A generation request being answered: its choices, and the bytes of their chunks as vLLM writes them.

The text of a choice is known from the start, so a whole answer is rendered once, at its end, and a stream costs one `bytes` join
and one write per choice and step. A client that reads slowly is not written to; it gets what it missed in one chunk.
"""

import time
from typing import Final

import msgspec

from beaconry.engine_model.replies import WORD_CHARS, Reply
from beaconry.engine_model.sequence import Sequence
from beaconry.io.engine.faults import Fault
from beaconry.io.engine.kv_params import Keep, Source
from beaconry.io.engine.requests import Asked
from beaconry.io.http_exchange import Exchange

ABORTED: Final = Reply(words="", shown=0, tokens=0, finish_reason="abort")
"""What a vLLM that is shutting down answers: status 200, no text, and this finish reason."""
SSE_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
)

_json = msgspec.json.encode
INTERNAL_ERROR: Final = _json(
    {"error": {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}}
)
"""What vLLM answers if the KV of a prompt cannot be fetched."""


class Choice:
    """One sequence of an answer.

    Attributes:
        generated: tokens so far; kept for streams and for requests with a fault only.
        sent: tokens whose text was sent; in a stream only, and less than `generated` only while the client is slow.

    """

    __slots__ = ("answer", "generated", "index", "reply", "sent", "sequence")

    def __init__(self, answer: "Answer", index: int, sequence: Sequence, reply: Reply) -> None:
        self.answer = answer
        self.index = index
        self.sequence = sequence
        self.reply = reply
        self.generated = 0
        self.sent = 0

    @property
    def text(self) -> str:
        """All text the client gets."""
        return self.reply.words[: self.reply.shown]

    def unsent_text(self) -> str:
        """Return the text the client gets of the tokens generated and not sent."""
        return self.reply.words[WORD_CHARS * self.sent : min(WORD_CHARS * self.generated, self.reply.shown)]


class Answer:
    """The answer to one exchange, from the first token to the end.

    Attributes:
        choices: in the order of their index.
        fault: what is to go wrong with it, None if nothing is.
        transfer: what is asked of the prompt's KV, None for nothing.
        kept: where that KV is kept, as the decode engine is to be told; None if it is not, or not yet. Not told in a stream.
        ended: set by its owner when it has all its tokens, or was dropped; nothing is to be delivered any more.

    `_open` counts the choices whose end was not sent.

    """

    def __init__(
        self, exchange: Exchange, asked: Asked, name: str, fault: Fault | None, transfer: Keep | Source | None
    ) -> None:
        """`name` is the answer's id."""
        self.exchange = exchange
        self.asked = asked
        self.fault = fault
        self.transfer = transfer
        self.kept: bytes | None = None
        self.ended = False
        self.choices: list[Choice] = []
        self._open = asked.sequences
        self._started = False
        self._paused = False
        kind = "chat.completion" if asked.chat else "text_completion"
        if asked.chat and asked.stream:
            kind += ".chunk"
        self._head = b'{"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            _json(name),
            kind.encode(),
            int(time.time()),
            _json(asked.model),
        )
        if asked.chat:
            self._before_text, self._after_text = (
                b',"delta":{"content":"',
                b'"},"logprobs":null,"finish_reason":null}]}\n\n',
            )
        else:
            self._before_text, self._after_text = (
                b',"text":"',
                b'","logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n',
            )
        exchange.on_writable = self._catch_up

    def add(self, sequence: Sequence, reply: Reply) -> Choice:
        """Add the next choice."""
        choice = Choice(self, len(self.choices), sequence, reply)
        self.choices.append(choice)
        return choice

    @property
    def complete(self) -> bool:
        """All choices have all their tokens, whether sent or not."""
        return all(choice.generated == choice.reply.tokens for choice in self.choices)

    # -- streams

    def push(self, choice: Choice) -> None:
        """Send the text of the generated tokens of a choice that was not sent; the last token ends it."""
        if not self._paused:
            self._write(choice)

    def _catch_up(self) -> None:
        self._paused = False
        for choice in self.choices:
            if choice.sent < choice.generated:
                self.push(choice)

    def _write(self, choice: Choice) -> None:
        first = choice.sent == 0
        text = choice.unsent_text().encode("ascii")
        choice.sent = choice.generated
        last = choice.generated == choice.reply.tokens
        parts = []
        if first and self.asked.chat:
            parts.append(self._opening(choice))
        if last:
            parts.append(self._chunk(choice, self._last_words(choice, text)))
            self._open -= 1
        elif text:
            parts += (b"data: ", self._head, b'{"index":%d' % choice.index, self._before_text, text, self._after_text)
        if not self._open:
            if self.asked.include_usage:
                parts.append(b"data: %b],%b}\n\n" % (self._head, self._usage()))
            parts.append(b"data: [DONE]\n\n")
        self._send(b"".join(parts))

    def _send(self, data: bytes) -> None:
        if not self._started:
            self._started = True
            self.exchange.start(200, SSE_HEADERS)
        if not self._open:
            self.exchange.finish(data)
        elif data:
            self._paused = not self.exchange.write(data)

    def _chunk(self, choice: Choice, fields: bytes) -> bytes:
        return b'data: %b{"index":%d,%b}]}\n\n' % (self._head, choice.index, fields)

    def _opening(self, choice: Choice) -> bytes:
        """The first chunk of a chat's choice."""
        return self._chunk(choice, b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null')

    def _last_words(self, choice: Choice, text: bytes) -> bytes:
        end = b'"logprobs":null,"finish_reason":"%b","stop_reason":%b' % (
            choice.reply.finish_reason.encode(),
            _json(choice.reply.stop_reason),
        )
        return (b'"delta":{"content":"%b"},%b' if self.asked.chat else b'"text":"%b",%b') % (text, end)

    # -- whole answers

    def end_choice(self) -> None:
        """A choice of an answer that is not streamed has all its tokens; with the last one the answer is sent."""
        self._open -= 1
        if self._open:
            return
        choices = b",".join(map(self._whole, self.choices))
        kept = b"" if self.kept is None else b',"kv_transfer_params":%b' % self.kept
        body = b'%b%b],%b,"system_fingerprint":null%b}' % (self._head, choices, self._usage(), kept)
        self.exchange.respond(200, body)

    def fail(self) -> None:
        """Nothing comes of it. A stream has its status before that is known: it ends with an error event, behind a chat's first chunk."""
        if not self.asked.stream:
            self.exchange.respond(500, INTERNAL_ERROR)
            return
        self.exchange.start(200, SSE_HEADERS)
        opening = b"".join(map(self._opening, self.choices)) if self.asked.chat else b""
        self.exchange.finish(b"%bdata: %b\n\ndata: [DONE]\n\n" % (opening, INTERNAL_ERROR))

    def _whole(self, choice: Choice) -> bytes:
        reply = choice.reply
        if self.asked.chat:
            content = b'"message":{"role":"assistant","content":%b,"refusal":null,"tool_calls":[]}' % _json(choice.text)
        else:
            content = b'"text":%b' % _json(choice.text)
        return b'{"index":%d,%b,"logprobs":null,"finish_reason":"%b","stop_reason":%b}' % (
            choice.index,
            content,
            reply.finish_reason.encode(),
            _json(reply.stop_reason),
        )

    def _usage(self) -> bytes:
        prompt_tokens = self.asked.prompt_tokens
        completion_tokens = sum(choice.reply.tokens for choice in self.choices)
        if isinstance(self.transfer, Source) and self.transfer.cached_tokens is not None:
            cached_tokens = self.transfer.cached_tokens
        else:
            cached_tokens = sum(choice.sequence.cached_tokens or 0 for choice in self.choices[:: self.asked.n])
        return (
            b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":'
            b'{"cached_tokens":%d,"created_cache_tokens":null,"multimodal_tokens":null},"completion_tokens_details":null}'
            % (prompt_tokens, prompt_tokens + completion_tokens, completion_tokens, cached_tokens)
        )
