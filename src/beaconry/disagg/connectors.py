"""What each KV connector wants in the bodies of the two legs, and which answers of a prefill engine can be trusted.

A prefill leg samples one token, which nobody sees, and its answer names the KV. To everybody but the decode engine that is opaque: it goes
into the decode leg's body byte for byte. It is looked at first, since vLLM looks at nothing: a decode engine that is told to fetch, and
not from where, ends with all that runs in it.

Source: vLLM 0.32, `distributed/kv_transfer/kv_connector/v1/nixl`; recorded answers in `tests/fixtures/kv_transfer`.
"""

from collections.abc import Mapping
from typing import Annotated, Protocol

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from beaconry.values.request import Api

_ONE = Raw(b"1")
_LIMITS = {
    Api.CHAT: ("max_tokens", "max_completion_tokens"),
    Api.COMPLETIONS: ("max_tokens",),
    Api.RESPONSES: ("max_output_tokens",),
}
"""What bounds the answer. In chat the newer name wins where both are known; older engines know the first one only."""
_NOT_FOR_PREFILL = ("stream_options", "min_tokens", "n", "logprobs", "top_logprobs", "return_token_ids")
"""Engines refuse the first two beside one token in one piece; the others make an answer long that nobody reads."""


class Connector(Protocol):
    """One kind of hand-over between engines: the prompt's leg first, the answer's after it."""

    def prefill_body(self, body: bytes, api: Api) -> bytes:
        """The body of the prefill leg, from one that `wire.openai.parse` has returned."""
        ...

    def handoff(self, answer: bytes) -> Raw | None:
        """What a prefill leg's whole answer says of the KV; None if no engine could fetch by it."""
        ...

    def decode_body(self, body: bytes, handoff: Raw) -> bytes:
        """The body of the decode leg: the client's own, and what `handoff` has returned."""
        ...


Text = Annotated[str, Meta(min_length=1)]
Block = Annotated[int, Meta(ge=0)]


class _NixlParams(Struct, frozen=True):
    """`kv_transfer_params` of a prefill answer, as far as a decode engine cannot do without."""

    do_remote_prefill: bool
    remote_block_ids: list[Block | list[Block]]
    """A list per group of layers; older versions have no groups."""
    remote_engine_id: Text
    remote_request_id: Text
    remote_host: Text
    remote_port: Annotated[int, Meta(ge=1, le=65535)]
    do_remote_decode: bool = False

    def can_be_fetched(self) -> bool:
        """They have a decode engine fetch, and there is something to fetch."""
        blocks = self.remote_block_ids
        kinds = {type(one) for one in blocks}
        return self.do_remote_prefill and not self.do_remote_decode and len(kinds) == 1 and any(b != [] for b in blocks)


class _NixlAnswer(Struct, frozen=True):
    kv_transfer_params: Raw | UnsetType = UNSET


_NIXL_ANSWER = msgspec.json.Decoder(_NixlAnswer)
_NIXL_PARAMS = msgspec.json.Decoder(_NixlParams)
_NIXL_ASKED = Raw(
    b'{"do_remote_decode":true,"do_remote_prefill":false,'
    b'"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}'
)


class Nixl:
    """vLLM's NixlConnector, with which the decode engine reads, and NixlPushConnector, which pairs the legs by their `x-request-id`."""

    def prefill_body(self, body: bytes, api: Api) -> bytes:
        """One token, in one piece, and the KV stays."""
        document: dict[str, Raw] = msgspec.json.decode(body, type=dict[str, Raw])
        for key in _NOT_FOR_PREFILL:
            document.pop(key, None)
        for key in _LIMITS[api]:
            document[key] = _ONE
        document["stream"] = Raw(b"false")
        document["kv_transfer_params"] = _NIXL_ASKED
        return msgspec.json.encode(document)

    def handoff(self, answer: bytes) -> Raw | None:
        """The answer's `kv_transfer_params`, if no field is missing or wrong that vLLM would fall over."""
        try:
            params = _NIXL_ANSWER.decode(answer).kv_transfer_params
            if params is UNSET or not _NIXL_PARAMS.decode(params).can_be_fetched():
                return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return params

    def decode_body(self, body: bytes, handoff: Raw) -> bytes:
        """The client's body with one more field. It has none of that name: the door has taken it out."""
        return b"".join((memoryview(body.rstrip())[:-1], b',"kv_transfer_params":', handoff, b"}"))  # one copy


CONNECTORS: Mapping[str, Connector] = {"nixl": Nixl()}
"""By the name that `disaggregation.connector` gives."""
