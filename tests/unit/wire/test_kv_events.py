"""KV events as recorded from real engines, as older engines wrote them, and as nobody should."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.values.errors import EngineError
from beaconry.values.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvBatch, Tier
from beaconry.wire.kv_events import END, Form, decode, encode, encode_frames, parse_frames, split
from tests.unit.wire.recordings import recorded

LOW_64 = (1 << 64) - 1


def payload(*events, ts=1.5, rank=0):
    return msgspec.msgpack.encode([ts, list(events), rank])


# -- recorded messages


@pytest.mark.parametrize("name", ["vllm032_sha256_cbor_u64", "vllm032_sha256_cbor_bytes", "vllm032_sha256_default"])
def test_a_recording_of_vllm_is_read_whole(name):
    stored, removed, cleared = [], [], 0
    for expected, frames in enumerate(recorded(name)):
        sequence, data = parse_frames(frames)
        assert sequence == expected
        batch = decode(data, tokens=True)
        assert (batch.rank, batch.skipped) == (0, 0)
        for event in batch.events:
            stored += [event] if type(event) is BlockStored else []
            removed += [event] if type(event) is BlockRemoved else []
            cleared += type(event) is AllBlocksCleared
    assert cleared == 1
    assert removed
    for event in stored:
        assert len(event.token_ids) == 32 * len(event.block_hashes)
        assert (event.block_tokens, event.tier, event.group, event.dense) == (32, Tier.GPU, 0, True)
        assert all(0 <= block_hash <= LOW_64 for block_hash in event.block_hashes)
    known = {block_hash for event in stored for block_hash in event.block_hashes}
    assert {event.parent_hash for event in stored if event.parent_hash is not None} <= known
    assert {event.block_hash for event in removed} <= known
    salted = next(event for event in stored if event.extras)
    assert salted.extras == (msgspec.msgpack.encode(["salt-a"]), b"", b"")


def test_an_adapters_blocks_name_it():
    events = [event for frames in recorded("vllm032_sha256_cbor_u64") for event in decode(frames[-1]).events]
    assert {event.lora for event in events if type(event) is BlockStored} == {None, "ad1"}


def test_each_data_parallel_rank_says_which_it_is():
    assert [decode(frames[-1]).rank for frames in recorded("vllm032_dp2_ranks")] == [0, 1]


def test_sglangs_signed_hashes_become_the_same_numbers_without_sign():
    batches = [decode(frames[-1], tokens=True) for frames in recorded("sglang0523")]
    first, second = batches[0].events[0], batches[1].events[0]
    assert first.block_hashes == (8212246562076550692, -8101178882391931639 & LOW_64, 6744516286651483565)
    assert second.parent_hash == first.block_hashes[1]
    assert second.token_ids == (9,) * 64
    assert batches[2].events == (AllBlocksCleared(),)


# -- frames


@pytest.mark.parametrize("front", [[], [b"topic"], [b"", b"topic"], [b""]])
def test_frames_are_read_from_the_end(front):
    assert parse_frames([*front, (7).to_bytes(8, "big"), b"data"]) == (7, b"data")


def test_the_end_of_a_replay_is_no_message():
    assert parse_frames([b"", b"", END, b""]) == (None, b"")


@pytest.mark.parametrize("frames", [[], [b"data"], [b"topic", b"data"], [b"topic", b"1234567", b"data"]])
def test_a_message_without_number_is_refused(frames):
    with pytest.raises(EngineError, match="not a KV-event message"):
        parse_frames(frames)


# -- payloads


def test_fields_that_are_missing_have_their_defaults():
    batch = decode(msgspec.msgpack.encode([1, [{"type": "BlockStored", "block_hashes": [5]}]]))
    event = BlockStored(block_hashes=(5,), parent_hash=None, token_ids=(), block_tokens=0)
    assert batch == KvBatch(ts=1.0, events=(event,), rank=None)
    assert decode(payload({"type": "BlockRemoved", "block_hashes": []})).events == ()


def test_unknown_fields_and_event_types_are_skipped():
    batch = decode(
        payload(
            {"type": "BlockRemoved", "block_hashes": [1, 2], "remaining_copy_counts": [0, 1]},
            {"type": "BlockMoved", "from": "GPU"},
            ["BlockMoved", 3],
            ["AllBlocksCleared", "whatever"],
        )
    )
    assert batch.events == (BlockRemoved(block_hash=1), BlockRemoved(block_hash=2), AllBlocksCleared())
    assert batch.skipped == 2


def test_arrays_of_older_engines_are_read_up_to_where_they_end():
    batch = decode(payload(["BlockStored", [-1], None, [1, 2], 2, None], ["BlockRemoved", [3], "cpu"]), tokens=True)
    assert batch.events == (
        BlockStored(block_hashes=(LOW_64,), parent_hash=None, token_ids=(1, 2), block_tokens=2),
        BlockRemoved(block_hash=3, tier=Tier.CPU),
    )


@pytest.mark.parametrize(
    ("medium", "locality", "tier"),
    [
        (None, None, Tier.GPU),
        ("GPU", "LOCAL", Tier.GPU),
        ("gpu", None, Tier.GPU),
        ("cpu", None, Tier.CPU),
        ("CPU_PINNED", None, Tier.CPU),
        ("STORAGE", None, Tier.STORAGE),
        ("STORAGE", "REMOTE", Tier.SHARED),
        ("SHARED_STORAGE", None, Tier.SHARED),
        ("tape", None, Tier.STORAGE),
    ],
)
def test_mediums_are_normalised(medium, locality, tier):
    fields = {"block_hashes": [1], "medium": medium, "locality": locality}
    batch = decode(payload({"type": "BlockStored", **fields}, {"type": "BlockRemoved", **fields}))
    assert [event.tier for event in batch.events] == [tier, tier]


@pytest.mark.parametrize(
    ("kind", "tokens", "dense"),
    [
        ("full_attention", 4, True),
        ("mla_attention", 64, True),
        ("sink_full_attention", 4, True),
        ("sliding_window", 4, False),
        ("mamba", 4, False),
        ("unknown", 4, False),
        (None, 4, True),
        (None, 0, True),
        (None, 20, False),
        (None, 70_000, False),
    ],
)
def test_only_attention_over_the_whole_prompt_is_dense(kind, tokens, dense):
    event = {"type": "BlockStored", "block_hashes": [1, 2], "token_ids": [7] * tokens, "block_size": 2}
    batch = decode(payload(event | ({} if kind is None else {"kv_cache_spec_kind": kind})))
    assert batch.events[0].dense is dense


@pytest.mark.parametrize(
    "event",
    [
        {"block_hashes": [1]},
        {"type": "BlockStored"},
        {"type": "BlockStored", "block_hashes": [b"short"]},
        {"type": "BlockStored", "block_hashes": ["text"]},
        {"type": "BlockStored", "block_hashes": [1], "block_size": -1},
        {"type": "BlockStored", "block_hashes": [1], "token_ids": ["one"]},
        {"type": "BlockStored", "block_hashes": [1], "extra_keys": 5},
        {"type": "BlockRemoved", "block_hashes": [None]},
        ["BlockStored", 5],
        [],
        "AllBlocksCleared",
        None,
    ],
)
def test_a_malformed_event_is_an_engine_error(event):
    with pytest.raises(EngineError):
        decode(payload(event, {"type": "BlockMoved"}), tokens=True)


@pytest.mark.parametrize("ts", [float("nan"), float("inf"), "now"])
def test_a_time_stamp_that_is_none_is_an_engine_error(ts):
    with pytest.raises(EngineError):
        decode(payload(ts=ts))


def test_deep_nesting_and_claims_of_billions_are_engine_errors():
    for data in (
        b"\x91" * 100_000,
        payload()[:-2] + b"\xdd\xff\xff\xff\xff",
        b"\x93\xcb" + bytes(8) + b"\xdd\xff\xff\xff\xff",
    ):
        with pytest.raises(EngineError):
            decode(data)
    deep = msgspec.msgpack.encode({"type": "BlockRemoved", "block_hashes": [1], "x": 0})[:-1] + b"\x91" * 100_000
    with pytest.raises(EngineError):
        decode(b"\x93\xcb" + bytes(8) + b"\x91" + deep)


EVENT = st.dictionaries(
    st.sampled_from(
        ["type", "block_hashes", "token_ids", "medium", "group_idx", "extra_keys", "parent_block_hash", "x"]
    ),
    st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared"])
    | st.lists(st.integers(-(2**63), 2**64 - 1) | st.binary() | st.none())
    | st.none()
    | st.floats(),
)


@given(st.binary(), st.lists(EVENT | st.lists(st.sampled_from(["BlockStored", [1], None, 5, b"x" * 32]))), st.data())
def test_whatever_comes_is_a_batch_or_an_engine_error(junk, events, data):
    whole = payload(*events)
    cut = data.draw(st.integers(0, len(whole)))
    for bad in (junk, whole, whole[:cut], whole[:cut] + junk, whole[:cut] + junk + whole[cut + len(junk) :]):
        with suppress(EngineError):
            assert type(decode(bad, tokens=True)) is KvBatch


# -- writing


HASHES = st.integers(0, LOW_64)
STORED = st.builds(
    lambda hashes, parent, size, lora, tier, group: BlockStored(
        block_hashes=tuple(hashes),
        parent_hash=parent,
        token_ids=tuple(range(size * len(hashes))),
        block_tokens=size,
        lora=lora,
        tier=tier,
        group=group,
        extras=tuple(msgspec.msgpack.encode([lora]) for _ in hashes) if lora else (),
    ),
    st.lists(HASHES, min_size=1, max_size=5),
    st.none() | HASHES,
    st.integers(1, 4),
    st.none() | st.text(min_size=1),
    st.sampled_from(Tier),
    st.integers(0, 3),
)
REMOVED = st.builds(BlockRemoved, block_hash=HASHES, tier=st.sampled_from(Tier), group=st.integers(0, 3))
BATCH = st.builds(
    KvBatch,
    ts=st.floats(allow_nan=False, allow_infinity=False),
    events=st.lists(STORED | REMOVED | st.just(AllBlocksCleared())).map(tuple),
    rank=st.none() | st.integers(0, 7),
)


@given(BATCH, st.sampled_from(Form), st.booleans())
def test_what_is_written_is_read_back(batch, form, digests):
    assert decode(encode(batch, form, digests=digests), tokens=True) == batch


@given(BATCH, st.sampled_from(Form), st.integers(1, 4))
def test_a_batch_in_parts_is_the_same_batch(batch, form, most):
    parts = [decode(part, tokens=True) for part in split(encode(batch, form), most)]
    assert tuple(event for part in parts for event in part.events) == batch.events
    assert all((part.ts, part.rank) == (batch.ts, batch.rank) for part in parts)
    assert all(len(part.events) <= most for part in parts)


def test_what_cannot_be_read_is_not_split():
    assert list(split(b"\xc1 not msgpack", 1)) == [b"\xc1 not msgpack"]


def test_the_form_is_byte_for_byte_that_of_vllm():
    for frames in recorded("vllm032_sha256_cbor_u64"):
        sequence, data = parse_frames(frames)
        if b"session_id" not in data:
            assert encode(decode(data, tokens=True)) == data
            assert encode_frames(frames[0].decode(), sequence, data) == frames


def test_a_salt_enters_the_first_block_only_and_an_adapter_all():
    event = BlockStored(
        block_hashes=(1 << 255 | 1, 2), parent_hash=None, token_ids=(), block_tokens=1, lora="l", salt="s"
    )
    batch = decode(encode(KvBatch(ts=0.0, events=(event,))), tokens=True)
    assert batch.events[0].block_hashes == (1, 2)
    assert batch.events[0].extras == (msgspec.msgpack.encode(["l", "s"]), msgspec.msgpack.encode(["l"]))
