"""The field `kv_transfer_params` of a request, and of an answer, as vLLM's NIXL connector has it.

A prefill engine is asked with `do_remote_decode` and answers with an object that says where the prompt's KV is kept; a decode engine is
asked with that object, unchanged. Here what is missing or wrong in it is the caller's fault, 400: a real vLLM does not look, and a
malformed object ends the whole engine or leaves the request hanging.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

from beaconry.engine_model.kv_link import KvWay
from beaconry.engine_model.sequence import Sequence
from beaconry.io.engine.requests import Asked
from beaconry.values.errors import CallerError

FIELD: Final = "kv_transfer_params"


class KvRole(StrEnum):
    """What an engine does for others. vLLM's NIXL connector does not hold an engine to it; here a wrong pairing shows."""

    PRODUCER = "producer"
    """It computes prompts whose KV others fetch."""
    CONSUMER = "consumer"
    """It fetches."""
    BOTH = "both"


class KvTransferOptions(Struct, frozen=True, kw_only=True):
    """How an engine hands prompts over, or takes them."""

    role: KvRole
    way: KvWay
    host: str
    """Where other engines reach it; the port is that of its server."""
    tensor: int = 1
    """Accelerators of the engine, as told to readers; nothing follows from it."""
    lease_s: float = 30.0
    """Real seconds for which KV is kept that nobody has asked for; vLLM's `kv_lease_duration`."""
    recompute: bool = False
    """What cannot be fetched is computed, instead of failing the request; vLLM's `kv_load_failure_policy`."""


class Keep(Struct, frozen=True):
    """The prompt's KV is to be kept for another engine."""


class Source(Struct, frozen=True, kw_only=True):
    """The prompt's KV is to be fetched, from the engine at this address."""

    host: str
    port: int
    engine_id: str
    request_id: str
    """What that engine calls it."""
    cached_tokens: int | None
    """Prompt tokens that were cached there."""


class _Params(Struct, frozen=True, kw_only=True):
    do_remote_decode: bool | None = None
    do_remote_prefill: bool | None = None
    remote_engine_id: str | None = None
    remote_request_id: str | None = None
    remote_block_ids: list[list[int]] | None = None
    remote_host: str | None = None
    remote_port: Annotated[int, Meta(gt=0, lt=65536)] | None = None
    remote_num_tokens: int | None = None
    remote_prefill_cached_tokens: int | None = None


_PARAMS: Final = msgspec.json.Decoder(_Params | None)


def carries(asked: Asked) -> bool:
    """Whether a request has the field."""
    return isinstance(asked.kv_transfer_params, Raw) and bytes(asked.kv_transfer_params) != b"null"


def parse_transfer(asked: Asked, role: KvRole) -> Keep | Source | None:
    """Return what a request wants of its KV; None for nothing. CallerError if it cannot be had."""
    if not isinstance(asked.kv_transfer_params, Raw):
        return None  # the field is absent
    try:
        params = _PARAMS.decode(asked.kv_transfer_params)
    except msgspec.MsgspecError as error:
        raise _bad(f"not what the NIXL connector takes: {error}") from None
    if params is None or not (params.do_remote_decode or params.do_remote_prefill):
        return None
    if params.do_remote_decode and params.do_remote_prefill:
        raise _bad("do_remote_decode and do_remote_prefill exclude each other")
    if asked.sequences > 1:
        raise _bad(f"KV of one sequence can be handed over, not of {asked.sequences}: leave n and prompts at one")
    if params.do_remote_decode:
        if role is KvRole.CONSUMER:
            raise _bad("do_remote_decode: this engine keeps no KV for others, it was started with --kv-role consumer")
        return Keep()
    if role is KvRole.PRODUCER:
        raise _bad("do_remote_prefill: this engine fetches no KV, it was started with --kv-role producer")
    return _source(params, asked.prompt_tokens)


def _source(params: _Params, prompt_tokens: int) -> Source:
    host, port = params.remote_host, params.remote_port
    engine_id, request_id, blocks = params.remote_engine_id, params.remote_request_id, params.remote_block_ids
    if not (host and port and engine_id and request_id and blocks and all(blocks)):
        needed = ("remote_host", "remote_port", "remote_engine_id", "remote_request_id", "remote_block_ids")
        missing = [name for name in needed if not getattr(params, name)] or ["remote_block_ids"]
        raise _bad(f"do_remote_prefill needs {', '.join(missing)}, as the prefill engine has answered")
    if params.remote_num_tokens is not None and params.remote_num_tokens < prompt_tokens:
        raise _bad(
            f"the prompt has {prompt_tokens} tokens, and KV of {params.remote_num_tokens} is kept: send what was prefilled"
        )
    return Source(
        host=host,
        port=port,
        engine_id=engine_id,
        request_id=request_id,
        cached_tokens=params.remote_prefill_cached_tokens,
    )


def render_kept(sequence: Sequence, *, engine_id: str, host: str, port: int, tensor: int) -> bytes:
    """Return the object that the decode engine is to be given. Blocks have no numbers here: its list of them says how many there are."""
    blocks = len(sequence.table) + sequence.private_blocks
    return msgspec.json.encode(
        {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(1, blocks + 1))],
            "remote_engine_id": engine_id,
            "remote_request_id": sequence.id,
            "remote_host": host,
            "remote_port": port,
            "tp_size": tensor,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": sequence.prompt_tokens + sequence.generated - 1,
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": sequence.cached_tokens,
        }
    )


def _bad(message: str) -> CallerError:
    return CallerError(f"{FIELD}: {message}", param=FIELD)
