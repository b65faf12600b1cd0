"""Which models get keys, and what it takes."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from beaconry.config.gateway import Tokens
from beaconry.io.prompts import Keyed, Prompts
from beaconry.router.facts import AdaptersSeen, LoadSampled
from beaconry.values.block_hash import DEFAULT_SEED, BlockHasher
from beaconry.values.endpoint import Endpoint, EngineType, KvEventsAddress, LoadSample
from beaconry.values.kv_events import KvBlocks
from beaconry.values.request import Api, Usage

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 200}]}).encode()


def endpoint(block_tokens: int, **fields: object) -> Endpoint:
    given = {
        "engine": EngineType.SIM,
        "kv_events": KvEventsAddress(endpoint="tcp://127.0.0.1:1"),
        "kv_blocks": KvBlocks(block_tokens=block_tokens, algorithm="fast", seed=DEFAULT_SEED),
        **fields,
    }
    return Endpoint(name="e", host="127.0.0.1", port=1, model="m", **given)


@pytest.fixture
def prompts():
    with ThreadPoolExecutor(1) as executor:
        yield Prompts(Tokens(ask_engines=False), executor, lambda _: None, lambda: 0.0)


def keyed(prompts: Prompts, body: bytes = BODY, model: str = "m", api: Api = Api.CHAT) -> Keyed | None:
    async def main() -> Keyed | None:
        found = prompts.begin(model, api, body)
        return found if found is None or isinstance(found, Keyed) else await found

    return asyncio.run(main())


def test_a_prompt_has_a_key_for_each_full_block(prompts: Prompts):
    prompts.seen(endpoint(16))
    found = keyed(prompts)
    assert found.key_tokens == 16
    assert len(found.keys) == len(found.tokens.ids) // 16 > 10


@pytest.mark.parametrize("missing", ["kv_events", "kv_blocks"])
def test_models_whose_engines_do_not_tell_enough_get_none(prompts: Prompts, missing: str):
    prompts.seen(endpoint(16, **{missing: None}))
    assert keyed(prompts) is None


def test_an_unknown_block_size_is_taken_from_the_metrics(prompts: Prompts):
    prompts.seen(endpoint(0))
    assert keyed(prompts) is None
    prompts.tell(LoadSampled("e", LoadSample(at_s=0.0, block_tokens=32)))
    assert keyed(prompts).key_tokens == 32


def test_a_body_that_cannot_be_tokenized_goes_on_without_keys_and_says_why(prompts: Prompts):
    prompts.seen(endpoint(16))
    found = keyed(prompts, b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}')
    assert (found.keys, found.tokens.ids) == ((), None)
    assert found.tokens.reason is not None


def test_long_prompts_are_hashed_in_slices_to_the_same_keys(prompts: Prompts):
    prompts.seen(endpoint(16))
    long = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 20_000}]}).encode()
    found = keyed(prompts, long)
    if found.tokens.ids is not None:  # else it missed its deadline on a busy machine, and is known the second time
        assert list(found.keys) == list(keyed(prompts, long).keys)


def test_an_adapters_prompts_have_keys_of_their_own_made_of_its_name_and_path(prompts: Prompts):
    prompts.seen(endpoint(16))
    assert keyed(prompts, model="ad") is None
    prompts.tell(AdaptersSeen("e", {"ad": "/adapters/ad"}))
    found = keyed(prompts, model="ad")
    tokens = found.tokens.ids
    assert list(found.keys) == BlockHasher(16).hashes(tokens, lora=("ad", "/adapters/ad"))
    assert not set(found.keys) & set(keyed(prompts).keys)
    prompts.reported("ad", found.tokens, Usage(prompt_tokens=len(tokens), completion_tokens=1))
    assert sum(prompts.statistics()["m"].agreed.values()) == 1
    prompts.gone("e")
    assert keyed(prompts, model="ad") is None


def test_the_block_that_ends_with_the_prompt_has_no_key_since_its_last_token_is_computed_anyway(prompts: Prompts):
    prompts.seen(endpoint(16))
    for tokens, blocks in ((63, 3), (64, 3), (65, 4)):
        found = keyed(prompts, json.dumps({"model": "m", "prompt": [7] * tokens}).encode(), api=Api.COMPLETIONS)
        assert len(found.keys) == blocks
