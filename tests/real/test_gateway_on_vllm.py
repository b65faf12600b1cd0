"""`beaconry up` with real vLLM engines: what the gateway expects of a cache is what the engine reports."""

import random
import time

import pytest

from tests.real.tiny_model import SLIDING
from tests.real.vllm import BLOCK, ask, page, serving, spec

pytestmark = pytest.mark.real

REQUESTS = 100
EVENTS_WITHIN_S = 0.25
"""From an answer to the events about it: vLLM publishes after each step. The gateway is not asked whether it has heard them."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The address of a gateway before two engines."""
    directory = tmp_path_factory.mktemp("vllm")
    with serving(directory, spec(directory / "tiny")) as address:
        yield address


def test_the_gateway_expects_what_the_engines_report(gateway):
    rng = random.Random(7)
    beginnings = [[rng.randrange(256) for _ in range(BLOCK * 4 + 7)] for _ in range(4)]
    histories = [[*rng.choice(beginnings), number] for number in range(8)]
    found = []
    for _ in range(REQUESTS):
        turn = rng.randrange(len(histories))
        tokens = [*histories[turn], *(rng.randrange(256) for _ in range(rng.randrange(1, 60)))]
        body = {"prompt": tokens, "max_tokens": rng.randrange(1, 30), "return_token_ids": True}
        view, expected, reported, choice = ask(gateway, "/v1/completions", body)
        found.append((view, expected, reported))
        histories[turn] = [*tokens, *choice["token_ids"]] if len(tokens) < 600 else histories[turn][:150]
        time.sleep(EVENTS_WITHIN_S)
    hits = sum(reported > 0 for _, _, reported in found)
    print(f"{len(found)} requests, {hits} with hits, wrong: {[one for one in found if one[1] != one[2]]}")
    assert hits > REQUESTS // 2
    assert {view for view, _, _ in found} == {"exact"}
    assert sum(expected == reported for _, expected, reported in found) >= 0.99 * REQUESTS


def test_a_conversation_is_expected_where_its_turns_were(gateway):
    messages, served = [], []
    for turn in range(8):
        messages.append(
            {"role": "user", "content": f"This is turn number {turn} of a conversation that is quite long."}
        )
        view, expected, reported, choice = ask(
            gateway, "/v1/chat/completions", {"messages": messages, "max_tokens": 20, "seed": turn}
        )
        served.append((view, expected, reported))
        messages.append({"role": "assistant", "content": choice["message"]["content"]})
        time.sleep(EVENTS_WITHIN_S)
    print(served)
    assert all(expected == reported > 0 for view, expected, reported in served[2:] if view == "exact")
    assert sum(view == "exact" for view, _, _ in served) >= 7


def prompts(rng, count):
    """Beginnings of a few texts, cut anywhere, each with an end of its own."""
    texts = [[rng.randrange(256) for _ in range(BLOCK * rng.randint(2, 12) + rng.randrange(BLOCK))] for _ in range(6)]
    for _ in range(count):
        text = rng.choice(texts)
        beginning = text[: rng.randrange(BLOCK, len(text) + 1)]
        yield [*beginning, *(rng.randrange(256) for _ in range(rng.randrange(1, 200)))]


def expected_and_reported(gateway, rng):
    found = []
    for _ in range(60):  # its block size is known from its metrics, a second after it is ready
        if ask(gateway, "/v1/completions", {"prompt": [0] * BLOCK, "max_tokens": 1})[0] == "exact":
            break
        time.sleep(EVENTS_WITHIN_S)
    for prompt in prompts(rng, REQUESTS):
        found.append(ask(gateway, "/v1/completions", {"prompt": prompt, "max_tokens": rng.choice((1, 5, 40))})[:3])
        time.sleep(EVENTS_WITHIN_S)
    hits = sum(reported > 0 for _, _, reported in found)
    print(f"{len(found)} requests, {hits} with hits, wrong: {[one for one in found if one[1] != one[2]]}")
    return found, hits


def test_a_model_with_a_sliding_window_is_expected_exactly(tmp_path):
    """One of its two layers looks back two blocks: a hit ends where both groups have their part."""
    text = spec(
        tmp_path / "tiny",
        pools="[{}]",
        flags=("--no-disable-hybrid-kv-cache-manager", "--max-model-len=1024"),
        **SLIDING,
    )
    with serving(tmp_path, text) as gateway:
        found, hits = expected_and_reported(gateway, random.Random(5))
        windowed = next(line for line in page(gateway) if line.startswith("beaconry_kv_index_window_blocks{"))
    assert float(windowed.split()[-1]) > 0
    assert hits > REQUESTS // 3
    assert {view for view, _, _ in found} == {"exact"}
    assert sum(expected == reported for _, expected, reported in found) >= 0.99 * REQUESTS
