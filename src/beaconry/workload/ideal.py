"""What a prefix cache without limits would hit: the yardstick for every hit rate."""

from collections.abc import Iterator

from beaconry.workload.request import PlannedRequest, Span

ROOT = 0


class IdealCache:
    """One engine with endless memory that holds a prompt, and the reply to it, from the moment the prompt is sent.

    A tree of spans: a node is a prompt prefix that ends where a span ends.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int, int], int] = {}
        """(parent node, span id, tokens) -> node; nodes are numbered from 1 in order of appearance."""
        self._longest: dict[tuple[int, int], int] = {}
        """(parent node, span id) -> most tokens of that span seen there; at least those of every node below."""

    def see(self, request: PlannedRequest) -> int:
        """Add `request`; return how many of its prompt tokens were there before."""
        cached, node, matching = 0, ROOT, True
        for span in prompt_spans(request):
            if matching:
                held = min(span.tokens, self._longest.get((node, span.id), 0))
                cached += held
                matching = (node, span.id, span.tokens) in self._nodes
            node = self._extend(node, span)
        self._extend(node, Span(id=request.reply_id, tokens=request.output_tokens))
        return cached

    def _extend(self, node: int, span: Span) -> int:
        place = (node, span.id)
        if span.tokens > self._longest.get(place, 0):
            self._longest[place] = span.tokens
        return self._nodes.setdefault((node, span.id, span.tokens), len(self._nodes) + 1)

    def statistics(self) -> int:
        """Number of distinct prefixes held."""
        return len(self._nodes)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        assert sorted(self._nodes.values()) == list(range(1, len(self._nodes) + 1)), "nodes are numbered without gaps"
        for node, span_id, tokens in self._nodes:
            assert tokens <= self._longest[node, span_id], "the longest span is at least as long as each one seen"


def prompt_spans(request: PlannedRequest) -> Iterator[Span]:
    """The prompt's spans in order, message borders left out."""
    for message in request.messages:
        yield from message.spans
