"""KV events between ZeroMQ frames and values: what vLLM, SGLang and our simulated engine publish about their prefix caches.

A message is `[topic, sequence number, payload]`, with an empty frame in front when a ROUTER replays it, and without the topic from
SGLang's and older vLLM's replays: so frames are read from the end. The number has 8 bytes, big-endian, counts from 0, and ff*8 ends
a replay. The payload is msgpack, `[timestamp, events, rank]`; an event is a map with a "type" (vLLM since 0.30) or an array that
begins with it. Hashes are numbers, some of them signed, or digests: the low 64 bits count. Fields that are not there have their
default, fields and event types unknown here are skipped, everything else that is wrong is an EngineError.

Source: vLLM `distributed/kv_events.py`, SGLang `disaggregation/kv_events.py`, and recorded messages (tests/fixtures/kv_events).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import msgspec
from msgspec import Raw, Struct

from beaconry.values.errors import EngineError
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvBatch, KvEvent, Tier

END = b"\xff" * 8
"""In the place of a sequence number: the replay is over."""
_NIL = Raw(b"\xc0")
_LOW_64 = (1 << 64) - 1
_KNOWN = frozenset({"BlockStored", "BlockRemoved", "AllBlocksCleared"})
_DENSE = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
_WINDOWED = frozenset({"sliding_window", "sliding_window_mla"})
_TIERS = {
    None: Tier.GPU,
    "GPU": Tier.GPU,
    "CPU": Tier.CPU,
    "CPU_PINNED": Tier.CPU,
    "HOST": Tier.CPU,
    "SHARED_STORAGE": Tier.SHARED,
    "REMOTE": Tier.SHARED,
}
_MEDIUMS = {Tier.GPU: "GPU", Tier.CPU: "CPU", Tier.STORAGE: "STORAGE", Tier.SHARED: "SHARED_STORAGE"}

Hash = int | bytes


class Form(StrEnum):
    """How events are written."""

    MAPS = "maps"
    ARRAYS = "arrays"


class _Stored(Struct, tag_field="type", tag="BlockStored", gc=False):
    block_hashes: tuple[Hash, ...]
    parent_block_hash: Hash | None = None
    token_ids: Raw = Raw()
    block_size: int = 0
    lora_id: Raw = Raw()
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: Raw = Raw()
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None


class _StoredRow(Struct, array_like=True, tag="BlockStored", gc=False):
    block_hashes: tuple[Hash, ...]
    parent_block_hash: Hash | None = None
    token_ids: Raw = Raw()
    block_size: int = 0
    lora_id: Raw = Raw()
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: Raw = Raw()
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None


class _Removed(Struct, tag_field="type", tag="BlockRemoved", gc=False):
    block_hashes: tuple[Hash, ...]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class _RemovedRow(Struct, array_like=True, tag="BlockRemoved", gc=False):
    block_hashes: tuple[Hash, ...]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class _Cleared(Struct, tag_field="type", tag="AllBlocksCleared"):
    pass


class _ClearedRow(Struct, array_like=True, tag="AllBlocksCleared"):
    pass


_STORED = (_Stored, _StoredRow)
_REMOVED = (_Removed, _RemovedRow)
_Map = _Stored | _Removed | _Cleared
_Row = _StoredRow | _RemovedRow | _ClearedRow


class _MapBatch(Struct, array_like=True):
    ts: float
    events: list[_Map]
    rank: int | None = None


class _RowBatch(Struct, array_like=True):
    ts: float
    events: list[_Row]
    rank: int | None = None


class _AnyBatch(Struct, array_like=True):
    ts: float
    events: list[Raw]
    rank: int | None = None


class _MapType(Struct):
    type: str


class _RowType(Struct, array_like=True):
    type: str


_MAPS = msgspec.msgpack.Decoder(_MapBatch)
_ROWS = msgspec.msgpack.Decoder(_RowBatch)
_ANY = msgspec.msgpack.Decoder(_AnyBatch)
_MAP_TYPE = msgspec.msgpack.Decoder(_MapType)
_ROW_TYPE = msgspec.msgpack.Decoder(_RowType)
_MAP = msgspec.msgpack.Decoder(_Map)
_ROW = msgspec.msgpack.Decoder(_Row)
_TOKENS = msgspec.msgpack.Decoder(tuple[int, ...] | None)
_EXTRAS = msgspec.msgpack.Decoder(list[Raw] | None)
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises about bytes it cannot read."""


def parse_frames(frames: Sequence[bytes]) -> tuple[int | None, bytes]:
    """Split a message into its sequence number, None at a replay's end, and its payload. EngineError if it is not one."""
    if len(frames) < 2 or len(frames[-2]) != 8:
        raise EngineError(f"not a KV-event message: {len(frames)} frames of {[len(f) for f in frames[:8]]} bytes")
    number = frames[-2]
    return (None if number == END else int.from_bytes(number, "big")), frames[-1]


def decode(payload: bytes, *, tokens: bool = False) -> KvBatch:
    """Read a payload. With `tokens` also the blocks' token ids and extra keys, else these stay empty. EngineError if it is not one."""
    try:
        batch, skipped = _read(payload)
        if not math.isfinite(batch.ts):
            raise EngineError(f"KV events: the timestamp is {batch.ts}")
        events: list[KvEvent] = []
        for event in batch.events:
            if isinstance(event, _REMOVED):  # first: engines tell these block by block
                medium, locality, group = event.medium, event.locality, event.group_idx or 0
                tier = _tier(medium, locality) if locality else _TIERS.get(medium) or _tier(medium, None)
                for block_hash in event.block_hashes:
                    low = block_hash & _LOW_64 if type(block_hash) is int else _low_of_digest(block_hash)
                    events.append(BlockRemoved(block_hash=low, tier=tier, group=group))
            elif isinstance(event, _STORED):
                events.append(_stored(event, tokens=tokens))
            else:
                events.append(AllBlocksCleared())
    except _BROKEN as error:
        raise EngineError(f"unreadable KV events: {error}") from None
    return KvBatch(ts=batch.ts, events=tuple(events), rank=batch.rank, skipped=skipped)


def split(payload: bytes, events: int) -> Iterator[bytes]:
    """The same batch as payloads of at most so many events, for those who must not decode a long one in one go.

    One that is short enough, or that cannot be read, stays as it is: decoding says what is wrong with it.
    """
    try:
        batch = _ANY.decode(payload)
    except _BROKEN:
        yield payload
        return
    if len(batch.events) <= events:
        yield payload
        return
    for at in range(0, len(batch.events), events):
        yield msgspec.msgpack.encode([batch.ts, batch.events[at : at + events], batch.rank])


def _read(payload: bytes) -> tuple["_MapBatch | _RowBatch", int]:
    """All events of one form at once, as engines write them; else, or with unknown types between them, one by one."""
    for decoder in (_MAPS, _ROWS):
        try:
            return decoder.decode(payload), 0
        except msgspec.ValidationError:
            continue
    batch = _ANY.decode(payload)
    events: list[_Map | _Row] = []
    for raw in batch.events:
        if _is_array(raw):
            if _ROW_TYPE.decode(raw).type in _KNOWN:
                events.append(_ROW.decode(raw))
        elif _MAP_TYPE.decode(raw).type in _KNOWN:
            events.append(_MAP.decode(raw))
    return _MapBatch(batch.ts, events, batch.rank), len(batch.events) - len(events)  # type: ignore[arg-type]


def _stored(event: _Stored | _StoredRow, *, tokens: bool) -> BlockStored:
    hashes, size, kind = _low(event.block_hashes), event.block_size, event.kv_cache_spec_kind
    if size < 0:
        raise EngineError(f"KV events: a block size of {size}")
    if (
        kind is None
    ):  # the engine is too old to say, but a window shows: it announces fewer blocks than it has tokens for
        count = _length(event.token_ids)
        dense = count in (0, len(hashes) * size)
    else:
        dense = kind in _DENSE
    parent = event.parent_block_hash
    extras: tuple[bytes, ...] = ()
    token_ids: tuple[int, ...] = ()
    if tokens:
        extras = _extras(event.extra_keys)
        token_ids = _TOKENS.decode(event.token_ids) or () if event.token_ids else ()
    return BlockStored(
        block_hashes=hashes,
        parent_hash=None if parent is None else _low((parent,))[0],
        token_ids=token_ids,
        block_tokens=size,
        lora=event.lora_name,
        tier=_tier(event.medium, event.locality),
        group=event.group_idx or 0,
        dense=dense,
        window=event.kv_cache_spec_sliding_window if kind in _WINDOWED else None,
        extras=extras,
    )


def _low(hashes: tuple[Hash, ...]) -> tuple[int, ...]:
    """The low 64 bits of each hash."""
    return tuple([h & _LOW_64 if type(h) is int else _low_of_digest(h) for h in hashes])


def _low_of_digest(digest: Hash) -> int:
    if not isinstance(digest, bytes) or len(digest) < 8:
        raise EngineError(f"KV events: {digest!r} is no block hash")
    return int.from_bytes(digest[-8:], "big")


def _tier(medium: str | None, locality: str | None) -> Tier:
    """An unknown medium is taken for storage: the slowest, so nothing is expected of it that it cannot give."""
    if locality == "REMOTE":
        return Tier.SHARED
    return _TIERS.get(medium) or _TIERS.get(str(medium).upper(), Tier.STORAGE)


def _is_array(raw: Raw) -> bool:
    first = memoryview(raw)[0]
    return first & 0xF0 == 0x90 or first in (0xDC, 0xDD)


def _length(raw: Raw) -> int:
    """How many elements an encoded array has, without reading them; 0 for anything else."""
    head = bytes(memoryview(raw)[:5])
    if not head or not _is_array(raw):
        return 0
    if head[0] == 0xDC:
        return int.from_bytes(head[1:3], "big")
    return int.from_bytes(head[1:5], "big") if head[0] == 0xDD else head[0] & 0x0F


def _extras(raw: Raw) -> tuple[bytes, ...]:
    """Per block what else entered its hash; see BlockStored."""
    if not raw:
        return ()
    found = tuple([b"" if one == _NIL else bytes(one) for one in _EXTRAS.decode(raw) or ()])
    return found if any(found) else ()


def encode_frames(topic: str, sequence: int, payload: bytes) -> list[bytes]:
    """The message that publishes a payload."""
    return [topic.encode(), sequence.to_bytes(8, "big"), payload]


def encode(batch: KvBatch, form: Form = Form.MAPS, *, digests: bool = False) -> bytes:
    """Write a payload as vLLM does: hashes as numbers of 64 bits, or with `digests` as 32 bytes."""

    def hashed(number: int) -> Hash:
        return number.to_bytes(32, "big") if digests else number & _LOW_64

    events = [_fields(event, hashed) for event in batch.events]
    written: object = events if form is Form.MAPS else [list(event.values()) for event in events]
    return msgspec.msgpack.encode([batch.ts, written, batch.rank])


def _fields(event: KvEvent, hashed: Callable[[int], Hash]) -> dict[str, object]:
    """An event's fields in vLLM's order, which is also that of the array form."""
    match event:
        case BlockStored():
            return {
                "type": "BlockStored",
                "block_hashes": [hashed(h) for h in event.block_hashes],
                "parent_block_hash": None if event.parent_hash is None else hashed(event.parent_hash),
                "token_ids": event.token_ids,
                "block_size": event.block_tokens,
                "lora_id": None if event.lora is None else 1,
                "medium": _MEDIUMS[event.tier],
                "lora_name": event.lora,
                "extra_keys": _extra_keys(event),
                "group_idx": event.group,
                "kv_cache_spec_kind": "full_attention" if event.dense else "sliding_window",
                **({} if event.window is None else {"kv_cache_spec_sliding_window": event.window}),
            }
        case BlockRemoved():
            return {
                "type": "BlockRemoved",
                "block_hashes": [hashed(event.block_hash)],
                "medium": _MEDIUMS[event.tier],
                "group_idx": event.group,
            }
        case AllBlocksCleared():
            return {"type": "AllBlocksCleared"}


def _extra_keys(event: BlockStored) -> list[object]:
    """What else entered each block's hash: as it came, or the adapter's name in all blocks and the salt in the first."""
    if event.extras:
        return [Raw(extra or b"\xc0") for extra in event.extras]
    names = [] if event.lora is None else [event.lora]
    first = [*names, event.salt] if event.salt else names
    return [first or None, *[names or None] * (len(event.block_hashes) - 1)]
