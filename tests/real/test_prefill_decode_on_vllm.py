"""Prefill and decode apart on real vLLM with NIXL: answers are what one engine alone gives, from KV that was fetched and not computed."""

import json
import os
import random
import signal
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from pathlib import Path

import pytest
from msgspec import Raw

from beaconry.cli import main
from beaconry.disagg.connectors import Nixl
from beaconry.io.opening_leg import OpeningLeg
from beaconry.router.facts import Fault
from beaconry.values.request import Api
from tests.real.tiny_model import write_weights
from tests.real.vllm import BLOCK, page, serving, spec, vllm_python

pytestmark = pytest.mark.real

POOLS = "[{name: prefill, role: prefill}, {name: decode, role: decode}]"
QUIET = Path(__file__).parent / "quiet_nixl"
NIXL = f", UCX_TLS: 'tcp,self,sm', UCX_NET_DEVICES: lo, PYTHONPATH: '{QUIET}'"
"""Of engines' environment."""
FETCHED = 'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}'
COMPUTED = 'vllm:prompt_tokens_by_source_total{source="local_compute"}'


class Apart:
    """A prefill and a decode engine behind the gateway at `address`."""

    def __init__(self, address, model):
        self.address = address
        self._model = str(model)

    def ask(self, path, body, **headers):
        """Returns (why it ran in so many legs, answer)."""
        headers |= {"Content-Type": "application/json", "x-beaconry-debug": "1"}
        data = json.dumps({"model": "tiny", "temperature": 0, "ignore_eos": True, "max_tokens": 20} | body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.address + path, data, headers), timeout=60.0) as reply:
            told, answer = reply.headers, reply.read()
        assert ("x-beaconry-prefill-endpoint" in told) == (told["x-beaconry-plan"] == "uncached-prompt")
        return told["x-beaconry-plan"], answer

    def alone(self, path, body):
        """What the decode engine says that has computed all of the prompt itself: it has to, where its probabilities are asked for."""
        plan, answer = self.ask(path, body | {"prompt_logprobs": 0})
        assert plan == "kind-of-request"
        return json.loads(answer)["choices"][0]

    def process(self, role):
        """The engine's process id and port."""
        for one in Path("/proc").iterdir():
            try:
                argv = (one / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if self._model in argv and any(role in arg for arg in argv) and "--port" in argv:
                return int(one.name), int(argv[argv.index("--port") + 1])
        raise LookupError(role)

    def counters(self):
        """How many prompt tokens the decode engine has had from where."""
        port = self.process("kv_consumer")[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60.0) as reply:
            lines = reply.read().decode().splitlines()
        counts = dict.fromkeys((FETCHED, COMPUTED), 0.0)
        for line in lines:
            for name in counts:
                family, _, label = name.rstrip("}").partition("{")
                if line.startswith(family + "{") and label in line:
                    counts[name] += float(line.split()[-1])
        return counts


def skip_without_nixl():
    """Skips the test where vLLM has no NIXL."""
    if subprocess.run([vllm_python(), "-c", "import nixl"], check=False, capture_output=True).returncode:
        pytest.skip("NIXL is missing: `make real` installs it, or install nixl==1.5.1 beside vLLM")


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Both engines."""
    skip_without_nixl()
    directory = tmp_path_factory.mktemp("vllm")
    text = spec(
        directory / "tiny",
        pools=POOLS,
        flags=("--load-format=auto", "--dtype=float32"),
        variables=NIXL,
        router=", disaggregation: {minUncachedTokens: 100}",
        tie_word_embeddings=False,
        torch_dtype="float32",
    )
    write_weights(directory / "tiny")
    with serving(directory, text) as address:
        yield Apart(address, directory / "tiny")


MESSAGES = [{"role": "user", "content": "Tell me something. " * 20}]


class Told:
    """The leg behind a decode leg: it notes what is passed on."""

    def __init__(self, told):
        self._told = told

    def on_answer(self, status, headers, length):
        """The head is always passed on."""

    def on_data(self, data, *, ended):
        self._told.append(data)

    def on_failure(self, fault, detail):
        self._told.append(detail)


def fetch(port, path, body):
    """An engine's own answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60.0) as reply:
        return reply.read()


def tokens(rng, count):
    return [rng.randrange(256) for _ in range(count)]


def test_the_doctor_sees_that_the_pair_hands_over(apart, tmp_path, capsys):
    file = tmp_path / "gateway.yaml"
    lines = [
        f"- {{name: {role}, role: {role}, model: tiny, host: 127.0.0.1, port: {apart.process(part)[1]}}}\n"
        for role, part in (("prefill", "kv_producer"), ("decode", "kv_consumer"))
    ]
    file.write_text("endpoints:\n" + "".join(lines))
    main(["doctor", "--config", str(file), "--json", "--timeout", "30"])
    _, decode = json.loads(capsys.readouterr().out)
    (check,) = (check for check in decode["checks"] if check["name"] == "KV of prefill")
    assert check["state"] == "ok", check


@pytest.mark.parametrize("length", [150, 4 * BLOCK, 10 * BLOCK + 7, 1500])
def test_an_answer_in_two_legs_is_the_answer_of_one_engine(apart, length):
    body = {"prompt": tokens(random.Random(length), length), "return_token_ids": True}
    before = apart.counters()
    plan, answer = apart.ask("/v1/completions", body)
    after = apart.counters()
    assert plan == "uncached-prompt"
    assert (after[FETCHED] - before[FETCHED], after[COMPUTED] - before[COMPUTED]) == (length, 0)
    found = json.loads(answer)
    assert found["choices"][0]["token_ids"] == apart.alone("/v1/completions", body)["token_ids"]
    assert len(set(found["choices"][0]["token_ids"])) > 3
    assert found["usage"]["prompt_tokens"] == length


def test_a_conversation_streams_in_two_legs(apart):
    text = " ".join(random.Random(5).choices(["alpha", "beta", "gamma", "delta"], k=60))
    body = {"messages": [{"role": "user", "content": text}]}
    before = apart.counters()
    plan, answer = apart.ask("/v1/chat/completions", body | {"stream": True})
    assert plan == "uncached-prompt"
    assert apart.counters()[FETCHED] > before[FETCHED] + 300
    events = [json.loads(line[6:]) for line in answer.split(b"\n\n") if line.startswith(b"data: {")]
    said = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert answer.endswith(b"data: [DONE]\n\n")
    assert said == apart.alone("/v1/chat/completions", body)["message"]["content"]


def test_the_responses_api_runs_in_two_legs(apart):
    body = {"input": "Say something. " * 60, "max_output_tokens": 12}
    before = apart.counters()
    plan, answer = apart.ask("/v1/responses", body)
    assert plan == "uncached-prompt"
    assert apart.counters()[FETCHED] > before[FETCHED] + 800
    whole, alone = apart.ask("/v1/responses", body | {"echo": True, "cache_salt": "alone"})
    assert whole == "kind-of-request"
    assert json.loads(answer)["output"][0]["content"] == json.loads(alone)["output"][0]["content"]


def test_a_prefix_that_the_decode_engine_holds_is_not_fetched_again(apart):
    rng = random.Random(9)
    prefix = tokens(rng, 6 * BLOCK)
    apart.ask("/v1/completions", {"prompt": [*prefix, *tokens(rng, 10)]})
    time.sleep(0.5)  # its events are out
    before = apart.counters()
    plan, answer = apart.ask("/v1/completions", {"prompt": [*prefix, *tokens(rng, 200)]})
    after = apart.counters()
    assert plan == "uncached-prompt"
    assert (after[FETCHED] - before[FETCHED], after[COMPUTED] - before[COMPUTED]) == (200, 0)
    assert json.loads(answer)["usage"]["prompt_tokens_details"]["cached_tokens"] == 6 * BLOCK


def test_many_at_once_keep_their_own_kv(apart):
    rng = random.Random(3)
    bodies = [{"prompt": tokens(rng, 130 + 10 * n), "return_token_ids": True} for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda body: apart.ask("/v1/completions", body), bodies))
    assert {plan for plan, _ in found} == {"uncached-prompt"}
    for body, (_, answer) in zip(bodies, found, strict=True):
        assert json.loads(answer)["choices"][0]["token_ids"] == apart.alone("/v1/completions", body)["token_ids"]


def test_a_client_cannot_make_an_engine_fetch(apart):
    forged = {"do_remote_prefill": True}  # alone, it ends an engine
    for prompt in (tokens(random.Random(1), 20), tokens(random.Random(2), 300)):
        _, answer = apart.ask("/v1/completions", {"prompt": prompt, "kv_transfer_params": forged})
        assert json.loads(answer)["usage"]["completion_tokens"] == 20


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": tokens(random.Random(8), 300), "max_tokens": 5}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 5}),
        ("/v1/responses", {"input": MESSAGES, "max_output_tokens": 5}),
    ],
)
def test_what_cannot_be_fetched_is_seen_before_anything_of_the_stream_is_passed_on(apart, path, asked):
    """The engines are asked past the gateway, so that the prefill engine can be another one when the decode leg comes."""
    body = json.dumps({"model": "tiny", "stream": True} | asked).encode()
    prefill = Nixl().prefill_body(body, Api.RESPONSES if path == "/v1/responses" else Api.CHAT)
    handoff = Nixl().handoff(fetch(apart.process("kv_producer")[1], path, prefill))
    assert handoff is not None
    gone = json.loads(bytes(handoff)) | {"remote_engine_id": "another", "remote_port": 1}
    told = []
    leg = OpeningLeg(Told(told), lambda: told.append("failed"))
    leg.on_answer(200, [(b"content-type", b"text/event-stream")], None)
    decode = Nixl().decode_body(body, Raw(json.dumps(gone).encode()))
    try:
        leg.on_data(fetch(apart.process("kv_consumer")[1], path, decode), ended=True)
    except IncompleteRead as cut:
        leg.on_data(cut.partial, ended=False)
        leg.on_failure(Fault.RESET, "it breaks off")
    assert told == ["failed"]


def test_without_the_prefill_engine_prompts_run_whole(apart):
    os.kill(apart.process("kv_producer")[0], signal.SIGKILL)
    plans = set()
    for number in range(4):
        plan, answer = apart.ask("/v1/completions", {"prompt": tokens(random.Random(70 + number), 300)})
        assert json.loads(answer)["usage"]["completion_tokens"] == 20
        plans.add(plan)
    assert plans <= {"prefill-failed", "no-prefill-endpoint"}
    decisions = [line for line in page(apart.address) if line.startswith("beaconry_disaggregation_decisions_total{")]
    assert any('reason="no-prefill-endpoint"' in line for line in decisions)
