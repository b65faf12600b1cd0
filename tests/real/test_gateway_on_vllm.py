"""`beaconry up` with real vLLM engines: what the gateway expects of a cache is what the engine reports."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from tests.real.vllm import BLOCK, START_WITHIN_S, spec

pytestmark = pytest.mark.real

REQUESTS = 100
EVENTS_WITHIN_S = 0.25
"""From an answer to the events about it: vLLM publishes after each step. The gateway is not asked whether it has heard them."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The address of a gateway before two engines."""
    directory = tmp_path_factory.mktemp("vllm")
    path = directory / "tiny.yaml"
    path.write_text(spec(directory / "tiny"))
    process = subprocess.Popen(
        [sys.executable, "-m", "beaconry", "up", str(path), "--port", "0", "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    alarm = threading.Timer(START_WITHIN_S, process.kill)
    alarm.start()
    lines = []
    reading = threading.Thread(target=lambda: lines.extend(process.stdout))
    try:
        for ready in process.stdout:
            lines.append(ready)
            if ready.startswith("Ready in"):
                break
        else:
            pytest.fail("".join(lines))
        alarm.cancel()
        reading.start()
        yield next(word for word in ready.split() if word.startswith("http://")).removesuffix("/v1")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60.0) == 0
    finally:
        alarm.cancel()
        process.kill()  # its engines end with it
        process.wait(10.0)
        if reading.is_alive():
            reading.join(10.0)
        process.stdout.close()


def ask(gateway, path, body):
    """Returns (view, expected cached tokens, reported ones, answer)."""
    headers = {"Content-Type": "application/json", "x-beaconry-debug": "1"}
    data = json.dumps({"model": "tiny", "temperature": 0, "ignore_eos": True} | body).encode()
    with urllib.request.urlopen(urllib.request.Request(gateway + path, data, headers), timeout=60.0) as reply:
        told, answer = reply.headers, json.loads(reply.read())
    expected = int(told["x-beaconry-matched-tokens"]) // BLOCK * BLOCK
    reported = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return told["x-beaconry-view"], expected, reported, answer["choices"][0]


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
