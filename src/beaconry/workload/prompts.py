"""The words behind spans: equal span, equal text, on every machine and in every run with the same seed.

Text is made of common three-letter words, each with its space: four characters that nearly every BPE vocabulary holds as one token. The
bytes come from SHAKE-128, whose shorter outputs are prefixes of its longer ones; therefore a span with fewer tokens is a prefix of the
same span with more.
"""

import hashlib

from beaconry.workload.request import Message, PlannedRequest, Span

VOCABULARY = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old see "
    "two way who boy did its let put say she too use dad mom act add age ago aid aim air arm art ask bad bag bar "
    "bed bet big bit box bus buy car cat cup cut dog dry due ear eat egg end eye far few fit fix fly fun gas got "
    "guy hat hit hot ice ill job key kid law lay led leg lie lip log lot low map may men met mix mud net nor odd "
    "off oil own pay per pet pie pop raw red rid row run sad sat sea set sit six sky son sum sun tax tea ten tie "
    "tip toe ton top toy try van via war wet why win won yes yet zoo ace ant ape arc ash ate awe axe ban bat bay "
    "bee beg bid bin bow bud bug bun cab cap cow cry cub cue dam den dig dim dip dot dub dug dye ego elf elm era "
    "eve fan fat fee fig fin fog fox fur gap gem gig gum gut gym ham hay hen hid hip hop hug hut ink inn ion ivy "
    "jam jar jaw jet jog joy jug kit lab lad lap lid lit mad mat mop mug nap nil nut oak oat opt orb ore owe owl "
    "pad pal pan paw pea pen pig pin pit pod pot rag ram "
)
WORDS = tuple(VOCABULARY[start : start + 4] for start in range(0, len(VOCABULARY), 4))
"""256 words of four characters, the space included: one per byte."""


class PromptText:
    """Turns spans into text. Another seed gives other words, so that a second run does not hit the cache that the first one filled."""

    def __init__(self, seed: int = 0, chars_per_token: float = 4.0) -> None:
        self._seed = seed
        self._chars_per_token = chars_per_token

    def span(self, span: Span) -> str:
        """The text of one span: `tokens * chars_per_token` characters of ASCII words."""
        length = round(span.tokens * self._chars_per_token)
        chosen = hashlib.shake_128(b"%d:%d" % (self._seed, span.id), usedforsecurity=False).digest(length // 4 + 1)
        return "".join(map(WORDS.__getitem__, chosen))[:length]

    def message(self, message: Message) -> str:
        """The content of one message."""
        return "".join(map(self.span, message.spans)) if message.text is None else message.text

    def chat(self, request: PlannedRequest) -> list[dict[str, str]]:
        """`messages` of a chat completion."""
        return [{"role": message.role, "content": self.message(message)} for message in request.messages]

    def prompt(self, request: PlannedRequest) -> str:
        """`prompt` of a completion: the messages' contents, one after the other."""
        return "".join(map(self.message, request.messages))
