"""Bodies of both legs, and which of the prefill answers that engines gave, or might give, can be acted on."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.disagg.connectors import CONNECTORS, Nixl
from beaconry.values.request import Api
from beaconry.wire.openai import RESERVED_KEYS, parse

RECORDED = Path("tests/fixtures/kv_transfer/vllm032_nixl_prefill_answers.json")
ANSWERS = {
    name: bytes(raw) for name, raw in msgspec.json.decode(RECORDED.read_bytes(), type=dict[str, msgspec.Raw]).items()
}
PARAMS = json.loads(ANSWERS["pull, 200 tokens"])["kv_transfer_params"]
NIXL = Nixl()
APIS = [Api.CHAT, Api.COMPLETIONS, Api.RESPONSES]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.just([]), "prompt": st.text(max_size=5), "input": st.text(max_size=5)},
    optional={
        "stream": st.booleans(),
        "stream_options": st.none() | st.just({"include_usage": True}),
        "n": st.none() | st.integers(1, 3),
        "min_tokens": st.integers(0, 9),
        "max_tokens": st.none() | st.integers(0, 99),
        "max_completion_tokens": st.none() | st.integers(0, 99),
        "max_output_tokens": st.none() | st.integers(0, 99),
        "temperature": st.floats(0, 2),
        "vllm_xargs": st.dictionaries(st.sampled_from([*RESERVED_KEYS, "own"]), st.integers(), max_size=3),
        **dict.fromkeys(sorted(RESERVED_KEYS), JSON),
    },
)


def answer(**changes: object) -> bytes:
    """The recorded one with other parameters; None takes one away."""
    params = {key: value for key, value in (PARAMS | changes).items() if value is not None}
    return json.dumps({"choices": [], "kv_transfer_params": params}).encode()


def test_every_connector_of_the_configuration_is_there():
    assert list(CONNECTORS) == ["nixl"]


@pytest.mark.parametrize("name", ANSWERS)
def test_what_vllm_answered_is_handed_on_byte_for_byte(name: str):
    recorded = ANSWERS[name]
    handoff = NIXL.handoff(recorded)
    assert handoff is not None
    assert bytes(handoff) in recorded
    assert json.loads(bytes(handoff)) == json.loads(recorded)["kv_transfer_params"]


@pytest.mark.parametrize("blocks", [[1, 2], [[1, 2]], [[], [7]], [[0]]])
def test_blocks_come_with_or_without_groups(blocks: object):
    assert NIXL.handoff(answer(remote_block_ids=blocks)) is not None


@pytest.mark.parametrize(
    "missing",
    ["remote_block_ids", "remote_engine_id", "remote_request_id", "remote_host", "remote_port", "do_remote_prefill"],
)
def test_nothing_is_handed_on_that_lacks_what_the_decode_engine_needs(missing: str):
    assert NIXL.handoff(answer(**{missing: None})) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"do_remote_prefill": False},
        {"do_remote_decode": True},
        {"remote_block_ids": []},
        {"remote_block_ids": [[]]},
        {"remote_block_ids": [1, [2]]},
        {"remote_block_ids": [[-1]]},
        {"remote_block_ids": "12"},
        {"remote_port": 0},
        {"remote_port": "5600"},
        {"remote_host": ""},
        {"remote_engine_id": 7},
    ],
)
def test_nothing_is_handed_on_that_would_break_the_decode_engine(wrong: dict[str, object]):
    assert NIXL.handoff(answer(**wrong)) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'{"kv_transfer_params":null}',
        b'{"kv_transfer_params":[]}',
        b'{"choices":[]}',
        b"[" * 100_000,
        b'{"kv_transfer_params":{"remote_host":"\xff"}}',
    ],
)
def test_an_answer_without_parameters_hands_nothing_on(body: bytes):
    assert NIXL.handoff(body) is None


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps({"kv_transfer_params": value}).encode()))
def test_no_answer_raises_anything(body: bytes):
    assert NIXL.handoff(body) is None


@given(st.sampled_from(APIS), BODIES)
def test_a_prefill_body_asks_for_one_token_in_one_piece_and_the_rest_stays(api: Api, document: dict[str, object]):
    body = parse(api, json.dumps(document).encode()).body
    sent = json.loads(NIXL.prefill_body(body, api))
    params = sent.pop("kv_transfer_params")
    assert (params["do_remote_decode"], params["do_remote_prefill"]) == (True, False)
    assert sent["stream"] is False
    assert not {"stream_options", "min_tokens", "n"} & set(sent)
    limits = ["max_output_tokens"] if api is Api.RESPONSES else ["max_tokens"]
    assert all(sent[name] == 1 for name in limits)
    assert api is not Api.CHAT or sent["max_completion_tokens"] == 1
    kept = (
        set(document)
        - RESERVED_KEYS
        - {"stream", "stream_options", "min_tokens", "n", "max_completion_tokens", *limits}
    )
    assert all(sent[name] == document[name] for name in kept - {"vllm_xargs"})


@given(st.sampled_from(APIS), BODIES, st.sampled_from([b"", b" \r\n"]))
def test_a_clients_own_parameters_survive_in_neither_body(api: Api, document: dict[str, object], end: bytes):
    body = parse(api, json.dumps(document).encode() + end).body
    handoff = NIXL.handoff(answer())
    assert handoff is not None
    for sent, params in (
        (NIXL.decode_body(body, handoff), json.loads(bytes(handoff))),
        (NIXL.prefill_body(body, api), json.loads(NIXL.prefill_body(b"{}", api))["kv_transfer_params"]),
    ):
        pairs = json.loads(sent, object_pairs_hook=list)
        reserved = [(key, dict(value)) for key, value in pairs if key in RESERVED_KEYS]
        assert reserved == [("kv_transfer_params", params)]
        xargs = [dict(value) for key, value in pairs if key == "vllm_xargs"]
        assert not any(RESERVED_KEYS & set(one) for one in xargs)


@given(st.sampled_from(APIS), BODIES)
def test_a_decode_body_is_the_clients_own_with_one_more_field(api: Api, document: dict[str, object]):
    body = parse(api, json.dumps(document).encode()).body
    handoff = NIXL.handoff(ANSWERS["push, 200 tokens"])
    assert handoff is not None
    sent = NIXL.decode_body(body, handoff)
    assert sent.startswith(body[:-1])
    assert sent[len(body) - 1 :] == b',"kv_transfer_params":' + bytes(handoff) + b"}"
