"""What a prefix cache without limits would hit: the yardstick for every hit rate."""

from collections.abc import Iterator

from beaconry.workload.request import PlannedRequest, Span

ROOT = 0
_MASK = (1 << 60) - 1
"""Two digits of a Python integer. After a million prompts, two nodes have been taken for one with a chance of one in a hundred thousand."""


class IdealCache:
    """One engine with endless memory that holds a prompt, and the reply to it, from the moment the prompt is sent.

    A tree of spans. A node is a prompt prefix that ends where a span ends; a place is a node with the id of a span that follows it. Both
    are known by chained hashes, so that millions of them fit into memory.
    """

    def __init__(self) -> None:
        self._longest: dict[int, int] = {}
        """Place -> most tokens of its span seen there; the node that ends there exists."""
        self._shorter: set[int] = set()
        """The nodes that end earlier in their place's span than another one."""

    def see(self, request: PlannedRequest) -> int:
        """Add `request`; return how many of its prompt tokens were there before."""
        cached, node, matching = 0, ROOT, True
        for span in prompt_spans(request):
            place, tokens = hash((node, span.id)) & _MASK, span.tokens
            node = _node(place, tokens)
            if matching:
                held = self._longest.get(place, 0)
                cached += min(tokens, held)
                matching = tokens == held or node in self._shorter
            if not matching:
                self._add(place, tokens)
        self._add(hash((node, request.reply_id)) & _MASK, request.output_tokens)
        return cached

    def _add(self, place: int, tokens: int) -> None:
        held = self._longest.get(place, 0)
        if tokens > held:
            self._longest[place] = tokens
        if held and tokens != held:
            self._shorter.add(_node(place, min(tokens, held)))

    def statistics(self) -> int:
        """Number of distinct prefixes held."""
        return len(self._longest) + len(self._shorter)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        longest = {_node(place, tokens) for place, tokens in self._longest.items()}
        assert not longest & self._shorter, "a node is either the longest at its place or not"


def _node(place: int, tokens: int) -> int:
    return hash((place, tokens)) & _MASK


def prompt_spans(request: PlannedRequest) -> Iterator[Span]:
    """The prompt's spans in order, message borders left out."""
    for message in request.messages:
        yield from message.spans
