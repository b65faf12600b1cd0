"""A planned request: when it is due, and its prompt as spans of made-up text, so that a prompt costs nothing until someone wants its words.

A span is a number that stands for a text. Equal numbers stand for equal texts, so the shared prefix of two prompts is known exactly
without building either. `prompts.py` turns spans into text; the simulator may count tokens only.
"""

from msgspec import Struct


class Span(Struct, frozen=True, kw_only=True):
    """The first `tokens` tokens of the text that `id` stands for. The same id with fewer tokens is a prefix of that text."""

    id: int
    tokens: int


class Message(Struct, frozen=True, kw_only=True):
    """One chat message. `text` is what an engine really answered; where it is None, the words follow from the spans."""

    role: str
    spans: tuple[Span, ...]
    text: str | None = None


class Turn(Struct, frozen=True, kw_only=True):
    """A later turn of a conversation: what the user says `think_s` seconds after the reply came, and how long the answer is to be."""

    user: Span
    output_tokens: int
    reply_id: int
    think_s: float = 0.0


class PlannedRequest(Struct, frozen=True, kw_only=True):
    """One request of a plan. `at_s` counts from the start of the run; `later` holds the turns that follow once the reply is there."""

    at_s: float
    messages: tuple[Message, ...]
    output_tokens: int
    reply_id: int
    """The span that stands for this request's reply in later prompts."""
    session: str | None = None
    turn: int = 0
    later: tuple[Turn, ...] = ()
    index: int = -1
    """Position in the order of sending, given by the plan when it hands the request out."""
    ideal_cached_tokens: int = 0
    """Prompt tokens an infinite cache would hold at that moment, given by the plan too."""

    @property
    def prompt_tokens(self) -> int:
        """Planned tokens of the whole prompt, chat template not counted."""
        return sum(span.tokens for message in self.messages for span in message.spans)
